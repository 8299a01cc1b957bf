"""run_pretraining.slurm and its remote shell, with stand-ins for Slurm."""

import os
import shutil
import signal
import subprocess
import time

import pytest

from launcher_sandbox import ROOT
from launcher_sandbox import write_program

pytestmark = pytest.mark.once

SCONTROL = """#!/bin/bash
echo "$*" >>"$PLACE/scontrol"
case $* in
  'show hostnames node[1-2]') printf 'node1\\nnode2\\n' ;;
  'show job --oneliner 7') echo "JobId=7 JobState=$STATE Reason=None" ;;
esac
"""
# In the launcher's place: shows what it was given, ends as it is told.
LAUNCHER = """#!/bin/bash
printf '%s\\n' "$@" >"$PLACE/words"
while (($#)); do [[ $1 != --hosts ]] || cp "$2" "$PLACE/hosts"; shift; done
trap 'echo "saved"; exit 85' TERM
if [[ ${WAIT-} ]]; then
  echo >"$PLACE/ready"
  for _ in {1..600}; do sleep 0.05; done
fi
exit "${STATUS:-0}"
"""


class Job:
  """A checkout with the job script alone, and the environment of a job."""

  def __init__(self, folder):
    self.folder = folder
    self.checkout = folder / "check out"
    (self.checkout / "scripts" / "lib").mkdir(parents=True)
    write_program(self.checkout / "scripts/run_pretraining.sh", LAUNCHER)
    programs = folder / "bin"
    programs.mkdir()
    write_program(programs / "scontrol", SCONTROL)
    # Slurm runs a copy of the script from another place.
    self.script = folder / "slurm_script"
    shutil.copy(str(ROOT / "scripts/run_pretraining.slurm"), str(self.script))
    self.env = {
        "PATH": "%s:%s" % (programs, os.environ["PATH"]), "PLACE": str(folder),
        "SLURM_SUBMIT_DIR": str(self.checkout), "SLURM_JOB_ID": "7",
        "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "node[1-2]",
        "STATE": "RUNNING", "TMPDIR": str(folder)}

  def popen(self, *words, **env):
    return subprocess.Popen(
        ["bash", str(self.script)] + list(words), env=dict(self.env, **env),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        universal_newlines=True)

  def run(self, *words, **env):
    process = self.popen(*words, **env)
    out, err = process.communicate(timeout=40)
    return process.returncode, out, err

  def words(self):
    return (self.folder / "words").read_text().splitlines()

  def asked(self):
    path = self.folder / "scontrol"
    return path.read_text().splitlines() if path.exists() else []


@pytest.fixture
def job(tmp_path):
  return Job(tmp_path)


def test_several_machines(job):
  assert job.run("--bert_model", "base", "--", "--log_every_steps=5")[0] == 0
  words = job.words()
  assert words[-4:] == ["--bert_model", "base", "--", "--log_every_steps=5"]
  options = dict(zip(words[:-4:2], words[1:-4:2]))
  assert sorted(options) == ["--hosts", "--remote_shell", "--stop_seconds",
                             "--stopped_status"]
  assert (job.folder / "hosts").read_text() == "node1\nnode2\n"
  assert not os.path.exists(options["--hosts"])
  assert options["--remote_shell"] == "bash %s/scripts/lib/slurm_shell.sh" % (
      job.checkout)


def test_one_machine(job):
  assert job.run("4", SLURM_JOB_NUM_NODES="1")[0] == 0
  assert "--hosts" not in job.words() and job.words()[-1] == "4"
  assert not job.asked()


def test_status_and_wrong_folder(job):
  assert job.run(STATUS="3")[0] == 3
  assert not any("requeue" in line for line in job.asked())
  status, out, err = job.run(SLURM_SUBMIT_DIR="/")
  assert status == 1 and out == ""
  assert "submit the job from the checkout" in err and err.count("\n") == 1


@pytest.mark.parametrize("state, again", [
    ("RUNNING", True), ("CANCELLED", False), ("COMPLETING", False)])
def test_time_is_up(job, state, again):
  process = job.popen(WAIT="1", STATE=state)
  while not (job.folder / "ready").exists():
    assert process.poll() is None
    time.sleep(0.02)
  process.send_signal(signal.SIGTERM)
  out, err = process.communicate(timeout=40)
  assert process.returncode == 0 and out == "saved\n"
  assert ("requeue 7" in job.asked()) == again
  assert ("back to the queue" in err) == again


def test_header_is_what_slurm_reads():
  """Options end with the first command; the signal goes to the script."""
  lines = (ROOT / "scripts/run_pretraining.slurm").read_text().splitlines()
  first = next(i for i, line in enumerate(lines) if line[:1] != "#")
  options = [line for line in lines[:first] if line.startswith("#SBATCH ")]
  assert len(options) == sum("SBATCH --" in line and line.startswith("#SBATCH")
                             for line in lines)
  assert any("--signal=B:TERM@" in option for option in options)
  assert "#SBATCH --requeue" in options


def test_remote_shell(job):
  write_program(job.folder / "bin" / "srun",
                "#!/bin/bash\nprintf '%s|' \"$@\"\n")
  done = subprocess.run(
      ["bash", str(ROOT / "scripts/lib/slurm_shell.sh"), "node2", "echo", "a",
       "'b c'"], env=job.env, stdout=subprocess.PIPE, check=True)
  words = done.stdout.decode().split("|")
  assert "--nodelist=node2" in words and "--overlap" in words
  assert words[-4:] == ["bash", "-c", "echo a 'b c'", ""]
