"""kill -9 at the worst moments: the same command ends with the same files.

Kills in the middle of training and of writing records have their tests beside
those of the programs.
"""

import json
import random
import shutil
import signal
import subprocess
import time

import pytest
import tensorflow.compat.v1 as tf

import runners
from test_run_pretraining import CONFIG
from test_run_pretraining import kill_when
from test_run_pretraining import place  # pylint: disable=unused-import
from test_run_pretraining import rows
from test_run_pretraining import same_weights
from test_run_pretraining import settings
from test_run_pretraining import trained  # pylint: disable=unused-import
from test_run_pretraining import write_records
from utils import checkpoints


def losses(folder):
  return [(row["step"], row["loss"]) for row in rows(folder)]


def leftovers(folder):
  return [path.name for path in folder.iterdir()
          if ".temp" in path.name or ".tmp" in path.name]


def test_killed_while_saving(place, tmp_path):
  # A table so large that saving it takes a while.
  (tmp_path / "large.json").write_text(json.dumps(
      dict(CONFIG, vocab_size=300000)))
  values = dict(bert_config_file=tmp_path / "large.json", num_train_steps=6,
                save_checkpoints_steps=2)
  whole, killed = tmp_path / "whole", tmp_path / "killed"
  assert runners.call("run_pretraining", settings(
      place, whole, **values)).status == 0
  command = runners.command("run_pretraining", settings(
      place, killed, **values))
  for _ in range(20):  # Saving may be over before it is seen.
    shutil.rmtree(str(killed), ignore_errors=True)
    kill_when(command, lambda: any(killed.glob("model.ckpt-4.*.tempstate*")),
              may_end=True)
    if leftovers(killed):
      break
  assert tf.train.latest_checkpoint(str(killed)) == str(
      killed / "model.ckpt-2")
  result = runners.call("run_pretraining", settings(place, killed, **values))
  assert result.status == 0, result.err
  assert "model.ckpt-2 (step 2" in result.err
  assert not leftovers(killed)
  assert same_weights(whole, killed)
  assert losses(whole) == losses(killed)


def test_killed_while_evaluating(place, trained, tmp_path):
  folder, log = tmp_path / "run", tmp_path / "log"
  shutil.copytree(str(trained[0]), str(folder))
  values = settings(
      place, folder, do_train=None, do_eval=True, eval_batch_size=1,
      max_eval_steps=4000, eval_input_file=write_records(
          tmp_path / "held_out.tfrecord", 4000, seed=9))
  assert runners.call("run_pretraining", values).status == 0
  before = (folder / "eval_results.txt").read_bytes()
  started = []

  def inside():
    if log.exists() and "evaluating" in log.read_text():
      started.append(time.time())
    return started and time.time() > started[0] + 1
  kill_when(runners.command(
      "run_pretraining", dict(values, log_file=log)), inside)
  assert "masked_lm_loss" not in log.read_text()
  assert (folder / "eval_results.txt").read_bytes() == before
  result = runners.call("run_pretraining", values)
  assert result.status == 0, result.err
  assert (folder / "eval_results.txt").read_bytes() == before
  assert not leftovers(folder)
  first, second = rows(folder, "eval")[-2:]
  assert dict(first, time=0) == dict(second, time=0)


@pytest.mark.slow
def test_many_random_kills(place, tmp_path):
  """At any moment: start-up, training, saving, the end."""
  values = dict(train_batch_size=100, num_train_steps=300,
                save_checkpoints_steps=7, keep_checkpoint_max=3)
  whole, killed = tmp_path / "whole", tmp_path / "killed"
  command = runners.command("run_pretraining", settings(
      place, killed, **values))
  start = time.time()
  subprocess.run(
      runners.command("run_pretraining", settings(place, whole, **values)),
      stderr=subprocess.DEVNULL, check=True)
  duration = time.time() - start
  chance, kills = random.Random(5), 0
  while kills < 20:
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    try:
      error = process.communicate(timeout=chance.uniform(0, duration))[1]
      assert process.returncode == 0, error.decode()
      shutil.rmtree(str(killed))  # It got through: once more from the start.
    except subprocess.TimeoutExpired:
      process.send_signal(signal.SIGKILL)
      error = process.communicate()[1].decode()
      assert "Traceback" not in error and "ERROR" not in error, error
      kills += 1
  result = runners.call("run_pretraining", settings(place, killed, **values))
  assert result.status == 0, result.err
  assert same_weights(whole, killed)
  assert losses(whole) == losses(killed)
  assert len(checkpoints.all_in(str(killed))) == 3
  assert not leftovers(killed)
