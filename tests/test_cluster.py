"""Pre-training on two machines: over ssh and under Slurm, with a cut between.

The machines are namespaces with real networks, sshd and Slurm; see cluster.py.
"""

import contextlib
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import cluster
from test_run_pretraining import place  # pylint: disable=unused-import
from test_run_pretraining import PREDICTIONS
from test_run_pretraining import rows
from test_run_pretraining import SEQ
from test_run_pretraining import weights

pytestmark = pytest.mark.slow
SCRIPTS = pathlib.Path(__file__).resolve().parent.parent / "scripts"
# Steps of a whole run, and from checkpoint to checkpoint.
STEPS, SAVED = 400, 40
# What a job may take to end on all machines once one of them is cut off.
MINUTE = 60
# What anything else may take, on a machine that others use as well.
PATIENCE = 600

# Talks all the time, so that a cut finds words on their way.
TALKER = """#!/bin/sh
main=$$
(while sleep 0.5 && kill -0 "$main"; do echo chatter; done) 2>/dev/null &
exec "%s" "$@"
""" % sys.executable


def options(place, run_dir):
  """Returns the words behind run_pretraining.sh for a tiny model."""
  return [
      "--bert_config", place / "config.json",
      "--input_file", place / "part-*.tfrecord", "--run_dir", run_dir,
      "--train_batch_size", 4, "--learning_rate", "5e-3", "--num_gpus", 1,
      "--train_steps", STEPS, "--warmup_steps", 5, "--save_checkpoint_steps",
      SAVED, "--max_seq_length", SEQ, "--max_predictions_per_seq", PREDICTIONS,
      "--seed", 7, "--do_eval", "false"]


def wait_till_idle(network, seconds=10):
  """Waits until nothing of a job runs on the machines; fails if it goes on."""
  def running():
    return [words for machine in network.machines
            for words in machine.processes().values()]
  cluster.wait_until(lambda: not running(), seconds, running)


class Site(object):
  """Two machines on which run_pretraining.sh can be started."""

  def __init__(self, network, programs):
    self.network = network
    self.first, self.second = network.machines
    self.hosts = network.folder / "machines"
    self.hosts.write_text("# both\n" + "".join(
        machine.name + "\n" for machine in network.machines))
    folders = [str(programs), os.environ["PATH"]]
    self.environment = {
        "PATH": os.pathsep.join(folders), "HOME": str(network.folder),
        "TMPDIR": str(network.folder / "tmp"), "BERT_PYTHON": sys.executable,
        "CUDA_VISIBLE_DEVICES": "", "LC_ALL": "C"}

  def start(self, place, log, words=(), **environment):
    """Starts a run over both machines in folder `place` / log's stem.

    Args:
      place: folder of model and records.
      log: pathlib.Path of the file for what the launcher says.
      words: more arguments of it.
    """
    command = ["bash", SCRIPTS / "run_pretraining.sh", "--hosts", self.hosts]
    with open(str(log), "ab") as stream:
      return self.first.popen(
          command + options(place, log.with_suffix("")) + list(words),
          self.network.folder, stdin=subprocess.DEVNULL, stdout=stream,
          stderr=subprocess.STDOUT, env=dict(self.environment, **environment))

  def run(self, place, log, words=()):
    """The same to its end; returns the exit status."""
    return self.start(place, log, words).wait(timeout=PATIENCE)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
  lacking = cluster.lacking_for_ssh()
  if lacking:
    pytest.skip(lacking)
  with cluster.Network(tmp_path_factory.mktemp("network"),
                       ["alpha", "beta"]) as network:
    yield Site(network, cluster.start_sshd(network))


@pytest.fixture
def clean_site(site):
  """The site; what a test leaves of jobs and of a cut is mended behind it."""
  yield site
  site.network.mend(site.second)
  for machine in site.network.machines:
    for process in machine.processes():
      with contextlib.suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)


@pytest.fixture(scope="module")
def undisturbed(site, place):
  """Folder of a run over both machines that nothing happened to."""
  log = place / "undisturbed.log"
  assert site.run(place, log) == 0, log.read_text()
  wait_till_idle(site.network)
  return log.with_suffix("")


def same_end(one, other):
  """Says whether two runs have equal weights, to 1e-6 of the largest."""
  one, other = weights(one), weights(other)
  assert set(one) == set(other)
  largest = max(np.abs(v).max() for n, v in one.items() if "bert/" in n)
  return all(np.abs(one[n] - other[n]).max() <= 1e-6 * largest for n in one)


def saved_step(run_dir):
  """Returns the step of the newest checkpoint of a run, 0 without one."""
  steps = [int(path.name.split("-")[1].split(".")[0])
           for path in run_dir.glob("model.ckpt-*.index")]
  return max(steps or [0])


def lines_of(log):
  """Returns the launcher's own lines."""
  return [line for line in log.read_text().splitlines()
          if line.startswith("run_pretraining.sh: ")]


def goes_on(run_dir, text, step):
  """Checks that a run of `text` went on from a checkpoint of `step` or more."""
  found = re.findall(r"model\.ckpt-(\d+) \(step", text)
  assert found and int(found[-1]) >= step, text
  steps = [row["step"] for row in rows(run_dir)]
  assert steps == sorted(set(steps)) and steps[-1] == STEPS
  assert saved_step(run_dir) == STEPS


def test_two_machines_train_one_model(site, undisturbed):
  text = undisturbed.with_suffix(".log").read_text()
  assert "on 2 ranks" in text
  assert saved_step(undisturbed) == STEPS
  losses = [row["mlm_loss"] for row in rows(undisturbed)]
  assert losses[-1] < losses[0] - 0.5
  assert (undisturbed / "launch.done").exists()
  assert not list((site.network.folder / "tmp").glob("bert_rank_*"))


@pytest.mark.parametrize("talking", [False, True])
def test_a_machine_that_is_cut_off(clean_site, place, undisturbed, talking):
  """Neither network nor run folder tell the second machine of the end.

  The kernel looks for a lost machine on idle connections only: not on those
  where the ranks are `talking`.
  """
  site = clean_site
  log = place / ("cut_%s" % talking) / "run.log"
  run_dir, changes = log.with_suffix(""), {}
  if talking:
    talker = place / "talker"
    talker.write_text(TALKER)
    talker.chmod(0o755)
    changes = {"BERT_PYTHON": str(talker)}
  # What lies on a server is out of reach as well; rank 0 alone needs it.
  site.second.hide(log.parent)
  process = site.start(place, log, **changes)
  cluster.wait_until(
      lambda: saved_step(run_dir) >= 2 * SAVED or process.poll() is not None,
      PATIENCE, log.read_text)
  assert process.poll() is None, log.read_text()
  site.network.cut(site.second)
  cut = time.time()
  assert process.wait(timeout=PATIENCE) != 0, log.read_text()
  ended = time.time() - cut
  wait_till_idle(site.network, PATIENCE)
  gone = time.time() - cut
  assert max(ended, gone) <= MINUTE, (ended, gone, log.read_text())
  (line,) = lines_of(log)[-1:]
  assert "host beta does not answer any more" in line
  assert "the same command goes on" in line
  assert "Traceback" not in log.read_text()
  assert "------" not in log.read_text()
  before, step = len(log.read_text()), saved_step(run_dir)
  assert 2 * SAVED <= step < STEPS
  site.network.mend(site.second)
  assert site.run(place, log) == 0, log.read_text()
  goes_on(run_dir, log.read_text()[before:], step)
  assert same_end(undisturbed, run_dir)


def test_a_machine_that_does_not_answer(clean_site, place):
  log = place / "silent.log"
  clean_site.network.cut(clean_site.second)
  begun = time.time()
  assert clean_site.run(place, log) == 1, log.read_text()
  assert time.time() - begun < MINUTE
  (line,) = log.read_text().splitlines()
  assert line.startswith("run_pretraining.sh: host beta gives no answer by ssh")
  assert not log.with_suffix("").exists()
  wait_till_idle(clean_site.network)


def test_sigterm_saves_on_both_machines(clean_site, place, undisturbed):
  site = clean_site
  log = place / "stopped.log"
  run_dir = log.with_suffix("")
  process = site.start(place, log)
  cluster.wait_until(
      lambda: saved_step(run_dir) >= SAVED or process.poll() is not None,
      PATIENCE, log.read_text)
  assert process.poll() is None, log.read_text()
  site.first.signal(process)
  assert process.wait(timeout=MINUTE) == 0, log.read_text()
  wait_till_idle(site.network)
  step = saved_step(run_dir)
  (line,) = lines_of(log)[-1:]
  assert "stopped at step %d" % step in line
  assert SAVED <= step < STEPS
  before = len(log.read_text())
  assert site.run(place, log) == 0, log.read_text()
  goes_on(run_dir, log.read_text()[before:], step)
  assert same_end(undisturbed, run_dir)


# --- Slurm -------------------------------------------------------------------


_ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"}


class SlurmSite(object):
  """Two machines of a Slurm cluster to which jobs can be submitted."""

  def __init__(self, network):
    self.network = network
    self.slurm = cluster.Slurm(network)
    self.environment = {
        "BERT_PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": "",
        "TMPDIR": str(network.folder / "tmp"), "LC_ALL": "C"}

  def submit(self, place, log, words=(), changes=()):
    """Submits run_pretraining.slurm; returns the number of the job.

    Args:
      place: folder of model and records.
      log: pathlib.Path of the job's output; the run's folder is its stem.
      words: more options of sbatch.
      changes: more arguments of the launcher.
    """
    return self.slurm.ask(
        "sbatch", "--parsable", "--output=%s" % log, *words,
        SCRIPTS / "run_pretraining.slurm",
        *options(place, log.with_suffix("")), *changes, folder=SCRIPTS.parent,
        **self.environment).strip()

  def state(self, job):
    """Returns {name: value} of what Slurm says of a job."""
    return dict(word.split("=", 1) for word in self.slurm.ask(
        "scontrol", "show", "job", "--oneliner", job).split() if "=" in word)

  def wait_for_end(self, job, log):
    """Waits until a job has ended; returns its last state."""
    return cluster.wait_until(
        lambda: _ENDED.intersection([self.state(job)["JobState"]]), PATIENCE,
        lambda: (self.state(job), log.read_text()), pause=1).pop()

  def wait_for(self, text, log):
    """Waits until a job says something."""
    cluster.wait_until(lambda: log.exists() and text in log.read_text(),
                       PATIENCE, lambda: (text, log.read_text()), pause=0.5)


@pytest.fixture(scope="module")
def slurm_site(tmp_path_factory):
  lacking = cluster.lacking_for_slurm()
  if lacking:
    pytest.skip(lacking)
  with cluster.Network(tmp_path_factory.mktemp("slurm"),
                       ["alpha", "beta"]) as network:
    yield SlurmSite(network)


@pytest.fixture(scope="module")
def slurm_undisturbed(slurm_site, place):
  """Folder of a job's run that nothing happened to."""
  log = place / "job.log"
  job = slurm_site.submit(place, log)
  assert slurm_site.wait_for_end(job, log) == "COMPLETED", log.read_text()
  return log.with_suffix("")


def test_slurm_job(slurm_site, slurm_undisturbed):
  text = slurm_undisturbed.with_suffix(".log").read_text()
  assert "on 2 ranks" in text
  assert saved_step(slurm_undisturbed) == STEPS
  assert (slurm_undisturbed / "launch.done").exists()
  wait_till_idle(slurm_site.network)


def test_slurm_preemption(slurm_site, place, slurm_undisturbed):
  """SIGTERM to the batch script, as before a preemption; then it goes on."""
  log = place / "preempted.log"
  run_dir = log.with_suffix("")
  job = slurm_site.submit(place, log)
  cluster.wait_until(lambda: saved_step(run_dir) >= SAVED, PATIENCE,
                     log.read_text)
  slurm_site.slurm.ask("scancel", "--batch", "--signal=TERM", job)
  slurm_site.wait_for("back to the queue", log)
  stopped = re.findall(r"stopped at step (\d+)", log.read_text())
  assert len(stopped) == 1, log.read_text()
  before, step = len(log.read_text()), saved_step(run_dir)
  assert SAVED <= int(stopped[0]) == step < STEPS
  assert slurm_site.wait_for_end(job, log) == "COMPLETED", log.read_text()
  assert slurm_site.state(job)["Restarts"] == "1"
  goes_on(run_dir, log.read_text()[before:], step)
  assert same_end(slurm_undisturbed, run_dir)


def test_slurm_time_limit(slurm_site, place):
  """A run that takes longer than its job is allowed to."""
  log = place / "limited.log"
  run_dir = log.with_suffix("")
  # Slurm may send the signal up to a minute early.
  job = slurm_site.submit(
      place, log, ["--time=3", "--signal=B:TERM@60"],
      ["--train_steps", 10 ** 6, "--save_checkpoint_steps", 10 ** 5])
  slurm_site.wait_for("back to the queue", log)
  text = log.read_text()
  (step,) = re.findall(r"stopped at step (\d+)", text)
  assert saved_step(run_dir) == int(step) > 0
  slurm_site.wait_for("model.ckpt-%s (step" % step, log)
  slurm_site.slurm.ask("scancel", job)
  assert slurm_site.wait_for_end(job, log) == "CANCELLED", log.read_text()
  wait_till_idle(slurm_site.network, MINUTE)


def test_slurm_machine_that_is_cut_off(slurm_site, place, slurm_undisturbed):
  """The launcher notices long before Slurm, which waits for five minutes."""
  log = place / "cut_job.log"
  run_dir = log.with_suffix("")
  second = slurm_site.network.machines[1]
  job = slurm_site.submit(place, log)
  cluster.wait_until(lambda: saved_step(run_dir) >= 2 * SAVED, PATIENCE,
                     log.read_text)
  slurm_site.network.cut(second)
  cut = time.time()
  slurm_site.wait_for("host beta does not answer any more", log)
  wait_till_idle(slurm_site.network, MINUTE)
  assert time.time() - cut <= MINUTE
  slurm_site.network.mend(second)
  assert slurm_site.wait_for_end(job, log) == "FAILED", log.read_text()
  before, step = len(log.read_text()), saved_step(run_dir)
  assert slurm_site.wait_for_end(
      slurm_site.submit(place, log), log) == "COMPLETED", log.read_text()
  goes_on(run_dir, log.read_text()[before:], step)
  assert same_end(slurm_undisturbed, run_dir)
