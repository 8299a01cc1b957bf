"""What the tests of several ranks share: programs of ranks, their processes."""

import os
import pathlib
import shutil
import signal
import sys
import time

import pytest

from launcher_sandbox import Site
from launcher_sandbox import write_program

BIN = pathlib.Path(sys.executable).parent
needs_mpirun = pytest.mark.skipif(
    shutil.which("mpirun") is None, reason="mpirun is not installed")
needs_horovodrun = pytest.mark.skipif(
    not (BIN / "horovodrun").exists(), reason="Horovod is not installed")

# The real one, but for a check that imports TensorFlow for seconds.
HOROVODRUN = """#!%s
if __name__ == "__main__":
  from horovod.runner import launch
  launch.gloo_built = lambda verbose=False: True
  launch.run_commandline()
""" % sys.executable

# What stands before the lines of a test's program: its rank, its run folder,
# how it tells its process and that it has begun, and how it waits (50 seconds
# at most). Its words have to come through mpirun, which for a moment after the
# start of its ranks does not end them in order.
PRELUDE = """#!/usr/bin/env bash
rank=${OMPI_COMM_WORLD_RANK-${HOROVOD_RANK-0}}
for word; do case $word in --output_dir=*) run=${word#*=} ;; esac; done
begun() { echo "$$" >"$run/pid.$rank"; echo 'begun!' >&2; }
wait_long() { for _ in {1..1000}; do sleep 0.05; done; }
wait_for() { for _ in {1..1000}; do [[ -e $1 ]] && break; sleep 0.05; done; }
"""
# Saves when it is told to, as training does; rank 0 tells of it.
_SAVES = """
stop() {
  [[ $rank != 0 ]] || echo 'step 7' >"$run/launch.stopped"
  exit 0
}
trap stop TERM
begun
for _ in {1..1000}; do
  %s
  sleep 0.05
done
"""
SAVES_BY_FILE = _SAVES % "[[ ! -e $run/launch.stop ]] || stop"   # or by signal
SAVES_BY_SIGNAL = _SAVES % ":"


class RankSite(Site):
  """A Site whose program is given by each test, run by two ranks."""

  def __init__(self, folder, starter):
    super().__init__(folder)
    self.starter = starter
    self.run_dir = self.home / "my run"
    # Else mpirun waits for seconds when a rank has died.
    self.env["OMPI_MCA_odls_base_sigkill_timeout"] = "0"
    # Where an mpirun that is killed leaves files.
    self.env["TMPDIR"] = str(folder / "t")
    (folder / "t").mkdir()
    if starter == "horovodrun":
      write_program(folder / "bin" / "horovodrun", HOROVODRUN)

  def program(self, text):
    write_program(pathlib.Path(self.env["BERT_PYTHON"]), PRELUDE + text)

  def words(self, *words):
    return ("--num_gpus=2", "--rank_launcher=" + self.starter,
            "--run_dir=my run") + words

  def two(self, *words, **kwargs):
    """A finished run of two ranks."""
    return self.run("run_squad.sh", *self.words(*words), **kwargs)

  def two_started(self, *words, **kwargs):
    """A run of two ranks that have both begun; their processes."""
    return self.wait_for_begun(
        2, self.popen("run_squad.sh", *self.words(*words), **kwargs))

  def one_started(self, *words):
    """The same with one rank, without a starter."""
    process, (pid,) = self.wait_for_begun(1, self.popen(
        "run_squad.sh", "--num_gpus=1", "--run_dir=my run", *words))
    return process, pid

  def wait_for_begun(self, size, process):
    limit = time.time() + 40
    while self.log().count("begun!") < size:
      assert process.poll() is None, process.communicate()
      assert time.time() < limit
      time.sleep(0.02)
    return process, [int((self.run_dir / ("pid.%d" % rank)).read_text())
                     for rank in range(size)]

  def log(self):
    path = self.run_dir / "squad_large_v1.1.log"
    return path.read_text() if path.exists() else ""

  def left(self):
    """Command lines of what is still there of the run."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
      try:
        with open("/proc/%s/cmdline" % name, "rb") as stream:
          words = stream.read().split(b"\0")
      except OSError:
        continue
      if ("--output_dir=%s" % self.run_dir).encode() in words:
        found.append(words)
    return found


def finish(process):
  """(exit status, stdout, stderr) of a launcher that is about to end."""
  out, err = process.communicate(timeout=40)
  return process.returncode, out, err


def own_lines(err):
  """What the launcher itself said after the line on its run folder."""
  lines = [line.split(": ", 1)[1] for line in err.splitlines()
           if line.startswith("run_")]
  (start,) = [number for number, line in enumerate(lines)
              if line.startswith("run folder")]
  return lines[start + 1:]


def parent(process):
  """The process that started another one."""
  with open("/proc/%d/stat" % process) as stream:
    return int(stream.read().rpartition(")")[2].split()[1])


def kill(process):
  assert process > 1   # 0 would be all of this test's own group
  os.kill(process, signal.SIGKILL)
