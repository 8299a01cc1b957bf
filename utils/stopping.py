"""Being asked to stop: by SIGTERM, SIGUSR1 or a file, between two steps.

A scheduler that takes a machine away sends SIGTERM some time before. The step
that is being computed is finished, a checkpoint is saved, and the program ends
with status 0. A launcher of several ranks writes `STOP_FILE` instead, or lets
mpirun hand on SIGUSR1, since mpirun ends ranks itself after SIGTERM.
"""

import os
import signal
import time

import tensorflow.compat.v1 as tf

from utils import files
from utils import replica

STOP_FILE = "launch.stop"
# Written by rank 0 once it has saved; how a launcher knows such an end.
STOPPED_FILE = "launch.stopped"
_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class StopRequest(object):
  """Listens, while it is entered, for a request to stop.

  Args:
    folder: the run's folder.
  """

  def __init__(self, folder):
    self._folder = folder
    self._path = os.path.join(folder, STOP_FILE)
    self._asked = False
    self._looked = 0
    self._before = {}

  def __enter__(self):
    for number in _SIGNALS:
      self._before[number] = signal.signal(number, self._ask)
    return self

  def __exit__(self, *unused):
    for number, handler in self._before.items():
      signal.signal(number, handler)

  def _ask(self, *unused):
    self._asked = True

  def is_asked(self):
    """Says whether this rank was asked; looks at the file once a second."""
    now = time.time()
    if (not self._asked and replica.is_chief()
        and abs(now - self._looked) >= 1):
      self._looked = now
      self._asked = os.path.exists(self._path)
    return self._asked

  def note(self, step):
    """Leaves word of the stop for the launcher, in place of the request."""
    with files.atomic_write(os.path.join(
        self._folder, STOPPED_FILE)) as stream:
      stream.write("step %d\n" % step)
    if os.path.exists(self._path):
      os.remove(self._path)


class StopHook(tf.train.SessionRunHook):
  """Ends training at its last step, or once one of the ranks was asked.

  All ranks end after the same step. Comes after the hook that saves.

  Args:
    request: an entered `StopRequest`.
    asked: scalar placeholder, 1 where this rank was asked, that is part of
      what the ranks add up in each step.
    total: scalar tensor, that sum.
    step: scalar tensor, the step after the update.
    last_step: int, the step to end at.
  """

  def __init__(self, request, asked, total, step, last_step):
    self._request = request
    self._asked = asked
    self._fetches = (total, step)
    self._last_step = last_step
    self.has_stopped = False

  def before_run(self, run_context):
    return tf.train.SessionRunArgs(
        self._fetches, feed_dict={self._asked: float(self._request.is_asked())})

  def after_run(self, run_context, run_values):
    asked, step = run_values.results
    self.has_stopped = asked > 0
    if asked > 0 or step >= self._last_step:
      run_context.request_stop()

  def end(self, session):
    # At once: closing the session may take longer than a launcher waits.
    if self.has_stopped and replica.is_chief():
      self._request.note(session.run(tf.train.get_global_step()))
