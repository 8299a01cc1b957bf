"""Many requests to a server at a time: retries, deadlines, an end to it all.

Threads with a connection each: tritonclient's asynchronous calls over HTTP
pause for 10 ms each. What may pass is asked again, after pauses that double;
once that has not helped, or the server refuses a request, no further one is
sent, so that a dead or drowned server is known in seconds, however many
questions there are. A server that fails in a request may do better with the
next one: what it cannot compute costs that one alone.
"""

import queue
import random
import threading
import time
import uuid
from typing import NamedTuple

from utils import serving_client

FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0
# Seconds that requests in flight are given after Ctrl-C.
GRACE = 5.0
# Requests in a row that the server fails in before it is given up.
FAULTS = 3
_TICK = 0.2


class RequestSettings(NamedTuple):
  """How requests are sent; names and meaning are the client's flags'."""
  concurrency: int
  max_retries: int
  # Seconds from the first request to the last reply; 0: any.
  timeout: float


class Outcome(object):
  """What became of the requests.

  Attributes:
    seconds: list of float, for each reply the time since it was first asked
      for, with the pauses before it was asked for again.
    retries: how many requests were sent again.
    failed: {number of a job: why it has no reply}.
    stopped: why no further request was sent; None if all were.
    is_interrupted: whether that was Ctrl-C or SIGTERM.
  """

  def __init__(self):
    self.seconds = []
    self.retries = 0
    self.failed = {}
    self.stopped = None
    self.is_interrupted = False


def _pause(attempt):
  """Returns the seconds before attempt 1, 2, ...; jitter spreads clients."""
  longest = min(FIRST_PAUSE * 2 ** (attempt - 1), LONGEST_PAUSE)
  return longest * random.uniform(0.5, 1)


class Requests(object):
  """Sends jobs to a server and hands on the replies.

  Args:
    connect: function that returns a `serving_client.Connection`; called once
      in each thread.
    settings: RequestSettings.
    take: function of (number of a job, its outputs), called with one reply at
      a time.
    tick: function without arguments, called several times a second.
  """

  def __init__(self, connect, settings, take, tick=lambda: None):
    self._connect = connect
    self._settings = settings
    self._take = take
    self._tick = tick
    self._jobs = queue.Queue(maxsize=2 * settings.concurrency)
    self._stop = threading.Event()
    self._lock = threading.Lock()
    self._fault = None
    self._faults = 0
    self._outcome = Outcome()
    self._looked = time.monotonic()
    # So that a late reply to somebody else's request is never taken for ours.
    self._token = uuid.uuid4().hex[:12]

  def run(self, jobs):
    """Sends all jobs and returns the Outcome, also after Ctrl-C.

    Args:
      jobs: iterable of inputs, {name: int32 array}; made when there is room in
        the queue. Their numbers are 0, 1, ...
    """
    self._end = time.monotonic() + (self._settings.timeout or float("inf"))
    threads = [threading.Thread(target=self._work, daemon=True)
               for _ in range(self._settings.concurrency)]
    try:
      for thread in threads:
        thread.start()
      for job in enumerate(jobs):
        if not self._put(job):
          break
      for _ in threads:
        self._put(None)
      self._wait(threads, self._end)
    except KeyboardInterrupt:
      self._outcome.is_interrupted = True
      self._give_up("interrupted")
      self._wait(threads, time.monotonic() + GRACE)
    finally:
      self._stop.set()
      with self._lock:
        # A reply that still comes finds nobody to take it.
        outcome, self._outcome = self._outcome, None
    if self._fault:
      raise self._fault
    return outcome

  def _put(self, job):
    """Queues a job; returns whether it was before the end."""
    while not self._stop.is_set():
      # A server that keeps up never lets the queue be full for long.
      now = time.monotonic()
      if now - self._looked >= _TICK:
        self._look(now)
      try:
        self._jobs.put(job, timeout=_TICK)
        return True
      except queue.Full:
        pass
    return False

  def _wait(self, threads, end):
    """Waits for the threads, but not beyond `end`, a monotonic time."""
    for thread in threads:
      while thread.is_alive():
        now = time.monotonic()
        self._look(now)
        if now >= end:
          return
        thread.join(min(_TICK, end - now))

  def _look(self, now):
    """Does what has to be done several times a second."""
    self._looked = now
    self._tick()
    if now >= self._end:
      self._give_up("--timeout=%g seconds are over" % self._settings.timeout)

  def _give_up(self, reason):
    """Lets no further request be sent."""
    with self._lock:
      if self._outcome and not self._outcome.stopped:
        self._outcome.stopped = reason
    self._stop.set()

  def _work(self):
    """What a thread does: asks, job after job, to the end or a stop."""
    connection = self._connect()
    try:
      while not self._stop.is_set():
        try:
          job = self._jobs.get(timeout=_TICK)
        except queue.Empty:
          continue
        if job is None:
          return
        self._ask(connection, *job)
    except Exception as error:  # pylint: disable=broad-except
      self._fault = error
      self._stop.set()
    finally:
      connection.close()

  def _ask(self, connection, number, inputs):
    """Asks until there is a reply, a refusal or no more hope."""
    begin = time.perf_counter()
    for attempt in range(self._settings.max_retries + 1):
      if attempt:
        if self._stop.wait(_pause(attempt)):
          break
        self._count_retry()
      try:
        outputs = connection.infer(
            inputs, "%s-%d-%d" % (self._token, number, attempt))
      except serving_client.Passing as error:
        fault = error
        continue
      except serving_client.BadReply as error:
        self._fail(number, str(error))
        return
      except serving_client.Refused as error:
        self._fail(number, str(error))
        self._give_up("the server refuses: %s" % error)
        return
      self._receive(number, outputs, time.perf_counter() - begin)
      return
    self._fail(number, str(fault))
    if (not isinstance(fault, serving_client.ServerFault)
        or self._count_fault() >= FAULTS):
      self._give_up("%s (asked %d times)" % (
          fault, self._settings.max_retries + 1))

  def _count_fault(self):
    """Returns how many requests the server has failed in since a reply."""
    with self._lock:
      self._faults += 1
      return self._faults

  def _count_retry(self):
    with self._lock:
      if self._outcome:
        self._outcome.retries += 1

  def _fail(self, number, reason):
    with self._lock:
      if self._outcome:
        self._outcome.failed[number] = reason

  def _receive(self, number, outputs, seconds):
    with self._lock:
      if self._outcome:
        self._faults = 0
        self._outcome.seconds.append(seconds)
        self._take(number, outputs)
