"""Long runs: asked to stop, killed in a window, bad updates, best, disk."""

import collections
import json
import os
import shutil
import signal
import subprocess
import time

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

import runners
from test_run_pretraining import CONFIG
from test_run_pretraining import kill_when
from test_run_pretraining import place  # pylint: disable=unused-import
from test_run_pretraining import rows
from test_run_pretraining import same_weights
from test_run_pretraining import settings
from test_run_pretraining import weights
from utils import checkpoints
from utils import hooks
from utils import stopping
from utils.errors import UserError


def without_times(found):
  return [{name: value for name, value in row.items()
           if name not in ("time", "sentences_per_sec")} for row in found]


# LAMB, a window of several micro-batches, a loss scale, dropout.
LONG = dict(optimizer_type="lamb", num_accumulation_steps=3, use_fp16=True,
            train_batch_size=4, num_train_steps=400, save_checkpoints_steps=50)


@pytest.fixture(scope="module", autouse=True)
def one_layer(place):
  """Most of the time of these runs is that of building their graphs."""
  (place / "config.json").write_text(json.dumps(
      dict(CONFIG, num_hidden_layers=1)))


@pytest.fixture(scope="module")
def undisturbed(place):
  output = place / "long"
  result = runners.call("run_pretraining", settings(place, output, **LONG))
  assert result.status == 0, result.err
  return output


def wait_for_rows(process, folder, count):
  path = folder / "metrics.jsonl"
  deadline = time.time() + 120
  while not path.exists() or len(path.read_text().splitlines()) < count:
    assert process.poll() is None and time.time() < deadline
    time.sleep(0.01)


@pytest.mark.parametrize("how", ["SIGTERM"] + [
    pytest.param(how, marks=pytest.mark.once) for how in ("SIGUSR1", "file")])
def test_asked_to_stop_it_saves_and_the_same_command_goes_on(
    place, undisturbed, tmp_path, how):
  folder = tmp_path / "run"
  values = settings(place, folder, do_eval=True, **LONG)
  process = subprocess.Popen(runners.command("run_pretraining", values),
                             stderr=subprocess.PIPE, universal_newlines=True)
  wait_for_rows(process, folder, 5)
  if how == "file":
    (folder / stopping.STOP_FILE).write_text("")
  else:
    process.send_signal(getattr(signal, how))
  error = process.communicate(timeout=120)[1]
  assert process.returncode == 0, error
  step = int(weights(folder)["global_step"])
  assert 0 < step < LONG["num_train_steps"], "it was not stopped"
  assert ("stopped as asked at step %d of 400, checkpoint saved; the same "
          "command goes on" % step) in error
  assert "Traceback" not in error and "evaluating" not in error
  assert (folder / stopping.STOPPED_FILE).read_text() == "step %d\n" % step
  assert not (folder / stopping.STOP_FILE).exists()
  os.remove(str(folder / stopping.STOPPED_FILE))
  result = runners.call("run_pretraining", settings(place, folder, **LONG))
  assert result.status == 0, result.err
  assert "(step %d, %d records consumed)" % (step, 12 * step) in result.err
  assert same_weights(undisturbed, folder)
  assert without_times(rows(folder)) == without_times(rows(undisturbed))


def test_killed_in_a_window_it_ends_with_the_same_bits(
    place, undisturbed, tmp_path):
  folder = tmp_path / "run"
  values = settings(place, folder, **LONG)
  for name in ("model.ckpt-50.index", "model.ckpt-200.index"):
    kill_when(runners.command("run_pretraining", values),
              (folder / name).exists)
  result = runners.call("run_pretraining", values)
  assert result.status == 0, result.err
  assert "records consumed" in result.err
  assert same_weights(undisturbed, folder)
  assert without_times(rows(folder)) == without_times(rows(undisturbed))


def test_a_signal_before_the_first_step_ends_it(place, tmp_path):
  """Where nothing is trained yet, nothing is worth saving."""
  with stopping.StopRequest(str(tmp_path)):
    assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
  assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_changed_precision_and_optimizer_restore_what_fits(place, tmp_path):
  """AdamW in float32, then LAMB with a loss scale: the scale is new."""
  folder = tmp_path / "run"
  first = settings(place, folder, num_train_steps=10)
  assert runners.call("run_pretraining", first).status == 0
  result = runners.call("run_pretraining", dict(
      first, num_train_steps=20, optimizer_type="lamb", use_fp16=True))
  assert result.status == 0, result.err
  assert ("lacks 2 variables, created anew: current_loss_scale, good_steps"
          in result.err)
  assert "optimizer_type was adam when this folder was last used" in result.err
  after = weights(folder)
  assert after["global_step"] == 20 and after["good_steps"] == 10
  # Back again: what the graph has not is left in the checkpoint.
  result = runners.call("run_pretraining", dict(first, num_train_steps=25))
  assert result.status == 0, result.err
  assert "current_loss_scale" not in weights(folder)


def test_a_damaged_newest_checkpoint_is_passed_over(place, tmp_path):
  folder = tmp_path / "run"
  values = settings(place, folder)
  assert runners.call("run_pretraining", values).status == 0
  whole = weights(folder)
  newest = next(folder.glob("model.ckpt-30.data*"))
  newest.write_bytes(newest.read_bytes()[:-100])
  result = runners.call("run_pretraining", values)
  assert result.status == 0, result.err
  assert "model.ckpt-30" in result.err and "damaged" in result.err
  assert "going on from %s" % (folder / "model.ckpt-20") in result.err
  again = weights(folder)
  assert all(np.array_equal(whole[n], again[n]) for n in whole)


# Bad updates ----------------------------------------------------------------


Values = collections.namedtuple("Values", "results")


def guard_of(policy):
  guard = hooks.FiniteGuardHook(policy)
  guard.watch(dict.fromkeys(("step", "is_finite", "loss", "grad_norm")))

  def step(is_finite, loss=1.0, **more):
    guard.after_run(None, Values(dict(
        step=7, is_finite=is_finite, loss=loss, grad_norm=float("inf"),
        **more)))
  return guard, step


def test_overflows_are_skipped_but_not_for_ever(caplog):
  guard, step = guard_of("stop")
  for _ in range(hooks.MOST_SKIPPED - 1):
    step(False, loss_scale=2.0 ** 15)
  step(True)
  assert guard.skipped == hooks.MOST_SKIPPED - 1
  for _ in range(hooks.MOST_SKIPPED - 1):
    step(False, loss_scale=2.0 ** 15)
  with pytest.raises(UserError, match="100 updates in a row"):
    step(False, loss_scale=2.0 ** 15)


@pytest.mark.parametrize("values", [
    dict(loss=float("nan"), loss_scale=2.0 ** 15), dict(loss=float("inf")),
    dict(loss=1.0), dict(loss=1.0, loss_scale=1.0)])
def test_what_no_smaller_scale_mends_follows_the_policy(values):
  guard, step = guard_of("skip")
  step(False, **values)
  assert guard.skipped == 1
  with pytest.raises(UserError, match="after step 7 is not finite"):
    guard_of("stop")[1](False, **values)


# The best checkpoint --------------------------------------------------------


def test_the_best_checkpoint_is_kept(place, tmp_path):
  """By the held-out losses; training is that of an undisturbed run."""
  folder, plain = tmp_path / "run", tmp_path / "plain"
  values = dict(num_train_steps=40, learning_rate=5e-2, max_eval_steps=3)
  result = runners.call("run_pretraining", settings(
      place, folder, eval_every_steps=10, **values))
  assert result.status == 0, result.err
  assert runners.call("run_pretraining", settings(
      place, plain, **values)).status == 0
  assert same_weights(plain, folder)
  assert without_times(rows(folder)) == without_times(rows(plain))
  scores = {row["step"]: -row["masked_lm_loss"] - row["next_sentence_loss"]
            for row in rows(folder, "eval")}
  assert sorted(scores) == [10, 20, 30, 40]
  best = json.loads((folder / "best" / "best.json").read_text())
  assert best["value"] == pytest.approx(max(scores.values()))
  assert best["step"] == max(scores, key=scores.get)
  assert checkpoints.all_in(str(folder / "best")) == [
      str(folder / "best" / ("model.ckpt-%d" % best["step"]))]
  kept = tf.train.load_checkpoint(str(folder / "best" / (
      "model.ckpt-%d" % best["step"])))
  assert kept.get_tensor("global_step") == best["step"]
  # The closing lines are of the whole training, once.
  assert result.err.count("Total Training Time") == 1
  assert "Sentences processed = 320" in result.err


def test_a_worse_checkpoint_does_not_replace_the_best(place, tmp_path):
  folder = tmp_path / "run"
  values = settings(place, folder, num_train_steps=10, eval_every_steps=10,
                    max_eval_steps=3)
  assert runners.call("run_pretraining", values).status == 0
  path = folder / "best" / "best.json"
  best = json.loads(path.read_text())
  path.write_text(json.dumps(dict(best, value=0.0)))
  result = runners.call("run_pretraining", dict(values, num_train_steps=20))
  assert result.status == 0, result.err
  assert "the best is still 0.0000 of step 10" in result.err
  assert [os.path.basename(p) for p in checkpoints.all_in(
      str(folder / "best"))] == ["model.ckpt-10"]


# Room -----------------------------------------------------------------------


def room(monkeypatch, folder, free, there=0, keep=5):
  """Checks a model of 1000 bytes with that many free."""
  monkeypatch.setattr(shutil, "disk_usage",
                      lambda path: collections.namedtuple("U", "free")(free))
  for step in range(there):
    (folder / ("model.ckpt-%d.index" % step)).write_bytes(b"")
  with tf.Graph().as_default():
    hooks.check_space(str(folder), keep, [tf.get_variable("w", [250])])


def test_a_disk_without_room_for_two_checkpoints(monkeypatch, tmp_path):
  with pytest.raises(UserError, match="free some space"):
    room(monkeypatch, tmp_path, 1999)


@pytest.mark.parametrize("free, there, warned", [
    (5999, 0, True), (6000, 0, False), (2000, 4, False), (2000, 3, True),
    (2000, 9, False)])
def test_a_disk_without_room_for_all(monkeypatch, tmp_path, caplog, free,
                                     there, warned):
  monkeypatch.setattr(hooks.LOGGER, "propagate", True)
  room(monkeypatch, tmp_path, free, there)
  assert ("--keep_checkpoint_max=5" in caplog.text) == warned


# Bad input ------------------------------------------------------------------


@pytest.mark.parametrize("changes, words", [
    (dict(num_accumulation_steps=0), "--num_accumulation_steps=0"),
    (dict(num_accumulation_steps=-2), "--num_accumulation_steps=-2"),
    (dict(eval_every_steps=-1), "--eval_every_steps=-1"),
    (dict(num_warmup_steps=30), "--num_warmup_steps=30"),
    (dict(optimizer_type="sgd"), "optimizer_type"),
    (dict(nan_policy="hope"), "nan_policy"),
    (dict(num_accumulation_steps=16), "--train_batch_size=128, but there are "
     "only 120")])
def test_bad_input_is_one_line(place, tmp_path, changes, words):
  result = runners.call("run_pretraining", settings(
      place, tmp_path / "run", **changes))
  assert words in result.error
