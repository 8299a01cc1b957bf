"""Calls the runners as their users do: a process each, output captured.

Importing TensorFlow takes seconds, so a fork server imports the runners once
and every call is a fork of it, with flags, streams and exit status of its
own.
"""

import importlib
import multiprocessing
import os
import pathlib
import sys
import tempfile
from typing import NamedTuple

ROOT = pathlib.Path(__file__).resolve().parent.parent
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["run_pretraining", "run_squad"])


class Result(NamedTuple):
  """How a call ended: exit status and what it printed."""
  status: int
  out: str
  err: str

  @property
  def error(self):
    """The one line that a user sees; fails if there is not exactly one."""
    lines = [l for l in self.err.splitlines() if l.startswith("ERROR: ")]
    assert self.status == 1, self.err
    assert "Traceback" not in self.err, self.err
    assert len(lines) == 1, self.err
    return lines[0]


def _child(name, argv, out, err):
  for descriptor, path in ((1, out), (2, err)):
    os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), descriptor)
  sys.stdout, sys.stderr = open(1, "w"), open(2, "w", buffering=1)
  # The server was started with pytest's arguments.
  sys.argv = [name + ".py"] + argv
  sys.path.insert(0, str(ROOT))
  module = importlib.import_module(name)
  module.define_flags()
  try:
    importlib.import_module("utils.errors").run_main(module.main)
  except SystemExit as end:
    # multiprocessing takes None for a failure on Python 3.7.
    sys.exit(end.code or 0)


def arguments(settings):
  """Returns {name: value} as a list of --name=value; None leaves one out."""
  return ["--%s=%s" % item for item in sorted(settings.items())
          if item[1] is not None]


def call(name, settings, extra=()):
  """Runs runner `name` with flags and returns its Result."""
  with tempfile.TemporaryDirectory() as folder:
    out, err = os.path.join(folder, "out"), os.path.join(folder, "err")
    process = _CONTEXT.Process(
        target=_child, args=(name, arguments(settings) + list(extra), out,
                             err))
    process.start()
    process.join(300)
    assert process.exitcode is not None, "timed out"
    with open(out) as o, open(err) as e:
      return Result(process.exitcode, o.read(), e.read())


def command(name, settings):
  """Returns the command line of a runner, for subprocess."""
  return [sys.executable, str(ROOT / (name + ".py"))] + arguments(settings)
