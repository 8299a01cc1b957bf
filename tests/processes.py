"""Processes of tests: forked ones, groups, and ending all of a group."""

import os
import signal
import time


def in_child(function):
  """Forks a process that calls `function`; returns its id."""
  process = os.fork()
  if process == 0:
    status = 1
    try:
      function()
      status = 0
    finally:
      os._exit(status)  # pylint: disable=protected-access
  return process


def alive(group):
  """Returns the ids of the living processes of a process group."""
  found = []
  for name in filter(str.isdigit, os.listdir("/proc")):
    try:
      with open("/proc/%s/stat" % name) as stream:
        state, _, pgrp = stream.read().rpartition(")")[2].split()[:3]
    except OSError:
      continue
    if pgrp == str(group) and state not in "ZX":
      found.append(int(name))
  return found


def running(process):
  """Whether a process is there and no zombie."""
  try:
    with open("/proc/%d/stat" % process) as stream:
      return stream.read().rpartition(")")[2].split()[0] not in "ZX"
  except OSError:
    return False


def wait_for_end(group):
  """Waits until a process group has ended; five minutes at most."""
  deadline = time.time() + 300
  while alive(group):
    assert time.time() < deadline, "processes are left"
    time.sleep(0.01)


def kill(process):
  """Sends SIGKILL to a Popen that leads a session of its own, and waits.

  Its workers end by themselves: it takes them a moment.
  """
  process.send_signal(signal.SIGKILL)
  process.wait()
  wait_for_end(process.pid)
