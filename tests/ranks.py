"""Calls of the runners as several ranks, which mpirun or horovodrun starts."""

import json
import os
import pathlib
import subprocess
import sys
from typing import NamedTuple

import runners

ROOT = pathlib.Path(__file__).resolve().parent.parent
# As root, on machines with fewer cores than ranks, with the loopback alone.
MPIRUN = ["mpirun", "--allow-run-as-root", "--oversubscribe", "--mca", "btl",
          "self,vader"]


class Call(NamedTuple):
  """One call of a runner by all ranks; see rank_driver.py.

  Attributes:
    settings: {flag: value}.
    patch: "rank:function" of rank_driver.py, or None.
    rank_1: settings that are other ones on rank 1.
  """
  settings: dict
  patch: str = ""
  rank_1: dict = {}


class Ended(NamedTuple):
  """How a call ended: its ranks' exit statuses, and what it said."""
  statuses: list
  err: str

  @property
  def errors(self):
    """The distinct lines that users see of what went wrong."""
    return sorted({line for line in self.err.splitlines()
                   if line.startswith("ERROR: ")})


def environment(**changes):
  """The environment of a program that is to start ranks of its own.

  Ranks that share cores take them from each other by asking for messages a
  thousand times a second, as is Horovod's default.
  """
  changes.setdefault("HOROVOD_CYCLE_TIME", "5")
  env = {name: value for name, value in os.environ.items()
         if not name.startswith(("OMPI_", "PMI", "HOROVOD_"))}
  return dict(env, **changes)


def call(folder, runner, calls, size=2):
  """Makes all calls, one after the other, as ranks of one mpirun.

  Args:
    folder: pathlib.Path for files of the driver.
    runner: name of the runner.
    calls: list of `Call`.
    size: number of ranks.

  Returns:
    list of `Ended`.
  """
  path = folder / "calls.json"
  path.write_text(json.dumps([
      {"runner": runner, "flags": runners.arguments(each.settings),
       "rank_1": runners.arguments(each.rank_1), "patch": each.patch}
      for each in calls]))
  done = subprocess.run(
      MPIRUN + ["-np", str(size), sys.executable,
                str(ROOT / "tests" / "rank_driver.py"), str(path)],
      stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
      universal_newlines=True, timeout=600, env=environment())
  assert done.returncode == 0, done.stderr
  ended = []
  for number in range(len(calls)):
    parts = ["%s.%d.%d" % (path, number, rank) for rank in range(size)]
    statuses = [int(pathlib.Path(part).read_text()) for part in parts]
    ended.append(Ended(statuses, "\n".join(
        pathlib.Path(part + ".err").read_text() for part in parts)))
  return ended
