"""Two ranks through the launcher, killed and stopped: the same run in the end.

The undisturbed run, LAMB with two micro-batches and dropout, is made once.
"""

import os
import signal
import subprocess
import sys
import time

import pytest

import processes
import ranks
import runners
from test_long_runs import one_layer  # pylint: disable=unused-import
from test_ranks import largest_difference
from test_run_pretraining import place  # pylint: disable=unused-import
from test_run_pretraining import PREDICTIONS
from test_run_pretraining import rows
from test_run_pretraining import SEQ
from test_run_pretraining import weights

STEPS = 60


def popen(place, folder, *words):
  """Starts the launcher, in a session of its own."""
  words = ["bash", str(runners.ROOT / "scripts" / "run_pretraining.sh"),
           "--bert_config", str(place / "config.json"), "--input_file",
           str(place / "part-*.tfrecord"), "--run_dir", str(folder),
           "--num_gpus", "2", "--train_batch_size", "4", "--learning_rate",
           "5e-3", "--train_steps", str(STEPS), "--warmup_steps", "5",
           "--max_seq_length", str(SEQ), "--max_predictions_per_seq",
           str(PREDICTIONS), "--save_checkpoint_steps", "20", "--seed", "7",
           "--optimizer_type", "lamb", "--num_accumulation_steps", "2",
           "--do_eval", "false"] + list(words) + [
               "--", "--log_every_steps=1"]
  return subprocess.Popen(
      words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT, universal_newlines=True,
      env=ranks.environment(BERT_PYTHON=sys.executable,
                            CUDA_VISIBLE_DEVICES=""),
      start_new_session=True)


def finish(process, status=0):
  """Returns what it said once it has ended with that status."""
  out = process.communicate(timeout=300)[0]
  assert process.returncode == status, out
  assert "Traceback" not in out, out
  return out


def programs(folder):
  """Returns {rank: process} of the Python programs that work on a run."""
  found = {}
  for name in filter(str.isdigit, os.listdir("/proc")):
    try:
      with open("/proc/%s/cmdline" % name) as stream:
        words = stream.read().split("\0")
      with open("/proc/%s/environ" % name) as stream:
        environ = dict(item.split("=", 1) for item in
                       stream.read().split("\0") if "=" in item)
    except OSError:
      continue
    if ("--output_dir=%s" % folder in words and words[0] == sys.executable
        and "OMPI_COMM_WORLD_RANK" in environ):
      found[int(environ["OMPI_COMM_WORLD_RANK"])] = int(name)
  return found


def wait_until(process, reached):
  deadline = time.time() + 240
  while not reached():
    assert process.poll() is None, process.communicate()[0]
    assert time.time() < deadline
    time.sleep(0.01)


def all_gone(folder):
  deadline = time.time() + 60
  while programs(folder):
    assert time.time() < deadline, "ranks are left"
    time.sleep(0.05)


def losses(folder):
  return {row["step"]: row["loss"] for row in rows(folder)}


@pytest.fixture(scope="module")
def undisturbed(place):
  folder = place / "undisturbed"
  out = finish(popen(place, folder))
  assert "2 ranks x 2 micro-batches x 4" in out
  assert (folder / "launch.done").exists()
  return folder


def is_the_same_run(undisturbed, folder):
  assert largest_difference(weights(undisturbed), weights(folder)) <= 1e-6
  one, other = losses(undisturbed), losses(folder)
  assert sorted(other) == list(range(1, STEPS + 1))
  for step, loss in one.items():
    assert other[step] == pytest.approx(loss, rel=1e-5), step
  assert (folder / "launch.done").exists()


@pytest.mark.parametrize("rank", [
    pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_killed_rank_is_named_and_the_same_command_goes_on(
    place, undisturbed, tmp_path, rank):
  folder = tmp_path / "run"
  process = popen(place, folder)
  wait_until(process, (folder / "model.ckpt-20.index").exists)
  os.kill(programs(folder)[rank], signal.SIGKILL)
  out = process.communicate(timeout=120)[0]
  assert process.returncode not in (0, 1, 2), out
  assert "rank %d (" % rank in out and "ended by signal 9" in out, out
  all_gone(folder)
  assert not (folder / "launch.done").exists()
  out = finish(popen(place, folder))
  assert "going on from" in out
  is_the_same_run(undisturbed, folder)


@pytest.mark.slow
def test_the_launcher_starts_again_by_itself(place, undisturbed, tmp_path):
  folder = tmp_path / "run"
  process = popen(place, folder, "--max_restarts", "1")
  wait_until(process, (folder / "model.ckpt-20.index").exists)
  os.kill(programs(folder)[1], signal.SIGKILL)
  out = finish(process)
  assert "ended by signal 9" in out and "restart 1 of 1" in out, out
  is_the_same_run(undisturbed, folder)


def test_sigterm_saves_on_all_ranks_and_ends_well(place, undisturbed, tmp_path):
  folder = tmp_path / "run"
  process = popen(place, folder)
  wait_until(process, (folder / "metrics.jsonl").exists)
  wait_until(process, lambda: len(losses(folder)) > 3)
  process.send_signal(signal.SIGTERM)
  out = finish(process)
  step = int(weights(folder)["global_step"])
  assert 0 < step < STEPS, out
  assert "stopped at step %d, checkpoint saved" % step in out, out
  assert not (folder / "launch.done").exists()
  all_gone(folder)
  finish(popen(place, folder))
  is_the_same_run(undisturbed, folder)
  assert processes.alive(process.pid) == []
