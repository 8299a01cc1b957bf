"""Work shared out to forked processes, none of which can be waited for in vain.

Forking costs milliseconds and shares what the parent has loaded, such as a
vocabulary. Only small things travel: the number of a job, and its result.
"""

import ctypes
import multiprocessing
import os
import pickle
import signal
import traceback
from multiprocessing import connection

from utils.errors import UserError

_CONTEXT = multiprocessing.get_context("fork")
_PR_SET_PDEATHSIG = 1


def default_num_workers():
  """Returns the number of cores that this process may use."""
  return len(os.sched_getaffinity(0))


def die_with_parent(parent):
  """Lets the kernel end this process when its parent ends, however it does.

  Args:
    parent: the parent's process id, to tell whether it is gone already.
  """
  ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
  if os.getppid() != parent:
    os._exit(1)  # pylint: disable=protected-access


def _sendable(error):
  """Returns `error`, or what can be said of it where it cannot be pickled."""
  if isinstance(error, (UserError, OSError)):
    try:
      pickle.loads(pickle.dumps(error))
      return error
    except Exception:  # pylint: disable=broad-except
      pass
  return RuntimeError("in a worker process:\n" + traceback.format_exc())


def _serve(function, jobs, pipe, parent):
  """Does the jobs whose numbers come through `pipe`, until None comes."""
  die_with_parent(parent)
  signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends us
  while True:
    index = pipe.recv()
    if index is None:
      return
    try:
      answer = index, function(jobs[index]), None
    except Exception as error:  # pylint: disable=broad-except
      answer = index, None, _sendable(error)
    pipe.send(answer)


class _Worker(object):
  """One process and the job that it is at."""

  def __init__(self, function, jobs):
    self.pipe, child = _CONTEXT.Pipe()
    self._process = _CONTEXT.Process(
        target=_serve, args=(function, jobs, child, os.getpid()), daemon=True)
    self._process.start()
    child.close()  # so that the worker's end is the pipe's end

  def give(self, index):
    try:
      self.pipe.send(index)
    except OSError:
      self._fail()

  def answer(self):
    """Returns (job's number, result); raises what the job raised."""
    try:
      index, result, error = self.pipe.recv()
    except (EOFError, OSError):
      self._fail()
    if error is not None:
      raise error
    return index, result

  def _fail(self):
    self._process.join()
    code = self._process.exitcode
    how = ("was killed by signal %d" % -code if code < 0
           else "ended with status %d" % code)
    hint = (" (the kernel does that when memory is out: take fewer "
            "--num_workers)" if code == -signal.SIGKILL else "")
    raise UserError("worker process %d %s%s; what is finished is kept: run "
                    "the same command again"
                    % (self._process.pid, how, hint))

  def stop(self, kill):
    if kill:
      self._process.terminate()
    self._process.join()
    self.pipe.close()


def run_all(function, jobs, num_workers):
  """Yields `function(job)` for each job, in the order of the jobs.

  Args:
    function: of one job; small results, which have to be picklable.
    jobs: list.
    num_workers: processes at most; 1 does all in this process.

  Raises:
    UserError: where a worker was killed, or `num_workers` is none. What a job raises is raised here;
      other workers are ended then, so jobs have to write whole or not at all.
  """
  if num_workers < 1:
    raise UserError("--num_workers=%d: give 1 or more" % num_workers)
  if min(num_workers, len(jobs)) <= 1:
    for job in jobs:
      yield function(job)
    return
  workers = []
  finished = False
  try:
    for _ in range(min(num_workers, len(jobs))):
      workers.append(_Worker(function, jobs))
    for result in _results(workers, len(jobs)):
      yield result
    for worker in workers:
      worker.give(None)
    finished = True
  finally:
    for worker in workers:
      worker.stop(kill=not finished)


def _results(workers, num_jobs):
  """Yields the results in the order of the jobs, which it gives out."""
  by_pipe = {worker.pipe: worker for worker in workers}
  todo = iter(range(num_jobs))
  for worker in workers:
    worker.give(next(todo))
  waiting = {}
  wanted = 0
  while wanted < num_jobs:
    for pipe in connection.wait(list(by_pipe)):
      index, result = by_pipe[pipe].answer()
      waiting[index] = result
      index = next(todo, None)
      if index is None:
        del by_pipe[pipe]
      else:
        by_pipe[pipe].give(index)
    while wanted in waiting:
      yield waiting.pop(wanted)
      wanted += 1
