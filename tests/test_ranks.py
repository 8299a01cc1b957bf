"""Several ranks: equal to one rank, one word for all, none left behind."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

import ranks
import runners
from test_run_pretraining import rows
from test_run_pretraining import weights
from utils import replica
from utils import stack
from utils.errors import UserError

SAMPLE = runners.ROOT / "data" / "sample"
STEPS = 6


@pytest.fixture(scope="module")
def place(tmp_path_factory):
  """Folder with records of the sample's text, 1 to 10 predictions each."""
  folder = tmp_path_factory.mktemp("ranks")
  subprocess.run(
      [sys.executable, str(runners.ROOT / "create_pretraining_data.py")]
      + runners.arguments(dict(
          input_file=SAMPLE / "corpus.txt", vocab_file=SAMPLE / "vocab.txt",
          output_file=folder / "one.tfrecord", max_seq_length=64,
          max_predictions_per_seq=10, dupe_factor=1)),
      check=True, stderr=subprocess.DEVNULL)
  config = json.loads((SAMPLE / "bert_config.json").read_text())
  config.update(num_hidden_layers=1, hidden_size=32, num_attention_heads=2,
                intermediate_size=64)
  (folder / "config.json").write_text(json.dumps(config))
  config.update(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
  (folder / "no_dropout.json").write_text(json.dumps(config))
  return folder


def settings(place, output, **changes):
  values = dict(
      bert_config_file=place / "no_dropout.json",
      input_file=place / "one.tfrecord", output_dir=place / output,
      do_train=True, train_batch_size=4, learning_rate=1e-4,
      num_train_steps=STEPS, num_warmup_steps=0, max_seq_length=64,
      max_predictions_per_seq=10, save_checkpoints_steps=3,
      keep_checkpoint_max=100, log_every_steps=1, seed=7, horovod=True)
  values.update(changes)
  return values


# By name: (what one rank does, what two ranks do), the same by definition.
EQUAL = {
    optimizer + name: (dict(one, optimizer_type=optimizer),
                       dict(two, optimizer_type=optimizer))
    for optimizer in ("adam", "lamb")
    for name, one, two in (
        ("", dict(train_batch_size=8), dict()),
        ("_accumulated", dict(train_batch_size=16),
         dict(num_accumulation_steps=2)))}


def of_one_rank(place, name, one):
  """Runs what is to be equal, in one process at the rate of two ranks."""
  output = name + "_one"
  done = runners.call("run_pretraining", settings(
      place, output, horovod=None, learning_rate=2e-4,
      save_checkpoints_steps=1, num_train_steps=10, **one))
  assert done.status == 0, done.err
  return place / output


def calls_of(place):
  """Returns {name: Call} of all that one mpirun is to do."""
  train = lambda output, **changes: ranks.Call(
      settings(place, output, **changes))
  calls = {name: train(name, num_train_steps=10, save_checkpoints_steps=1,
                       **two)
           for name, (_, two) in EQUAL.items()}
  calls["again"] = calls["adam"]
  calls["overflow"] = train("overflow", use_fp16=True)._replace(
      patch="1:overflow")
  calls["nan_stop"] = train("nan_stop")._replace(patch="1:not_a_number")
  calls["nan_skip"] = train("nan_skip", nan_policy="skip")._replace(
      patch="1:not_a_number")
  calls["other_seed"] = train("other_seed")._replace(rank_1=dict(seed=8))
  calls["half"] = train("half", allreduce_fp16=True)
  calls["not_together"] = train("not_together", horovod=None)
  calls["evaluated"] = train("adam", do_train=None, do_eval=True,
                             eval_batch_size=8, max_eval_steps=5)
  calls["one_batch"] = calls["evaluated"]._replace(settings=dict(
      calls["evaluated"].settings, max_eval_steps=1))
  return calls


@pytest.fixture(scope="module")
def ended(place):
  """{name: Ended} of all calls by two ranks of one mpirun."""
  calls = calls_of(place)
  return dict(zip(calls, ranks.call(
      place, "run_pretraining", list(calls.values()))))


def at_step(folder, step):
  reader = tf.train.load_checkpoint(str(folder / ("model.ckpt-%d" % step)))
  return {n: reader.get_tensor(n) for n in reader.get_variable_to_shape_map()}


def largest_difference(one, other):
  """Of weights, over the largest weight; counters have to be equal."""
  assert set(one) == set(other)
  names = [n for n in one if one[n].dtype == np.float32
           and not n.endswith(("adam_m", "adam_v"))]
  assert all(one[n] == other[n] for n in one if one[n].dtype == np.int64)
  return (max(np.abs(one[n] - other[n]).max() for n in names)
          / max(np.abs(one[n]).max() for n in names))


@pytest.mark.parametrize("name", sorted(EQUAL))
def test_two_ranks_equal_one_with_the_batch_of_both(place, ended, name):
  """The masked LM's predictions are of unequal number; no dropout."""
  assert ended[name].statuses == [0, 0], ended[name].err
  one = of_one_rank(place, name, EQUAL[name][0])
  for step in (1, 10):
    assert largest_difference(at_step(one, step),
                              at_step(place / name, step)) <= 1e-6
  for mine, theirs in zip(rows(one), rows(place / name)):
    assert mine["step"] == theirs["step"]
    for tag in ("loss", "mlm_loss", "nsp_loss", "grad_norm", "learning_rate"):
      assert mine[tag] == pytest.approx(theirs[tag], rel=1e-5)


def test_micro_batches_of_one_rank_equal_one_batch(place):
  """Without Horovod, k = 4; the two runs have the same records."""
  for output, changes in (("whole", dict(train_batch_size=8)), (
      "parts", dict(train_batch_size=2, num_accumulation_steps=4))):
    done = runners.call("run_pretraining", settings(
        place, output, horovod=None, **changes))
    assert done.status == 0, done.err
  whole, parts = weights(place / "whole"), weights(place / "parts")
  assert largest_difference(whole, parts) <= 1e-6
  assert parts["records_consumed"] == 8 * STEPS
  assert [row["step"] for row in rows(place / "parts")] == list(
      range(1, STEPS + 1))
  assert "4 micro-batches x 2" in done.err


def test_batch_and_rate_of_all_ranks_are_told(ended):
  assert ("an update has 16 sequences: 2 ranks x 2 micro-batches x 4; peak "
          "rate 0.0002 = 2 ranks x 0.0001") in ended["adam_accumulated"].err
  assert "2 ranks, each on CPU" in ended["adam"].err
  assert ended["adam"].err.count("settings:") == 1


def test_a_finished_job_ends_at_once_on_all_ranks(place, ended):
  assert ended["again"].statuses == [0, 0]
  assert "already trained to step 10 of 10" in ended["again"].err
  assert "Traceback" not in ended["again"].err


def dumps(place, name):
  return [dict(np.load(str(place / ("%s.rank%d.npz" % (name, rank)))))
          for rank in (0, 1)]


@pytest.mark.parametrize("name", ["adam", "lamb_accumulated", "overflow",
                                  "nan_skip", "half"])
def test_all_ranks_end_with_the_same_variables(place, ended, name):
  assert ended[name].statuses == [0, 0], ended[name].err
  one, other = dumps(place, name)
  assert set(one) == set(other)
  assert all(np.array_equal(one[n], other[n]) for n in one)
  saved = weights(place / name)
  assert all(np.array_equal(one[n], saved[n]) for n in saved)


def test_an_overflow_on_one_rank_is_skipped_by_all(place, ended):
  """The scale halves, the step stays, the records are consumed."""
  assert ("skipped the update after step 3 on all ranks: a gradient overflowed "
          "at loss scale 32768, which is 16384 now") in ended["overflow"].err
  after = weights(place / "overflow")
  assert after["current_loss_scale"] == 16384
  assert after["global_step"] == STEPS
  assert after["good_steps"] == STEPS - 3
  assert after["records_consumed"] == 8 * (STEPS + 1)
  # Steps 1 to 3 are those of a run without a loss scale.
  assert largest_difference(at_step(place / "nan_skip", 3), {
      n: v for n, v in at_step(place / "overflow", 3).items()
      if n not in ("current_loss_scale", "good_steps")}) <= 1e-6
  assert [row["step"] for row in rows(place / "overflow")] == list(
      range(1, STEPS + 1))
  assert rows(place / "overflow", "summary")[-1]["skipped_updates"] == 1


def test_a_loss_that_is_no_number_stops_all_ranks(place, ended):
  assert ended["nan_stop"].statuses == [1, 1]
  assert len(ended["nan_stop"].errors) == 1
  assert "after step 3 is not finite" in ended["nan_stop"].errors[0]
  assert "--nan_policy=skip" in ended["nan_stop"].errors[0]
  assert weights(place / "nan_stop")["global_step"] == 3


def test_a_loss_that_is_no_number_can_be_skipped(place, ended):
  assert ended["nan_skip"].statuses == [0, 0], ended["nan_skip"].err
  assert "skipped the update after step 3 on all ranks: not finite" in (
      ended["nan_skip"].err)
  after = weights(place / "nan_skip")
  assert after["global_step"] == STEPS
  assert after["records_consumed"] == 8 * (STEPS + 1)
  assert all(np.isfinite(value).all() for value in after.values())


def test_a_rank_with_another_seed_is_found_at_the_start(place, ended):
  assert ended["other_seed"].statuses == [1, 1]
  assert ended["other_seed"].errors == [
      "ERROR: the ranks differ in settings: seed is 7 on rank 0 and 8 on rank "
      "1: start all of them with the same command and the same software"]
  assert not list((place / "other_seed").glob("*"))


def test_other_software_on_a_rank_is_found(monkeypatch):
  mine = {"versions": {"tensorflow": "1.15.5", "horovod": "0.28.1"}}
  other = {"versions": {"tensorflow": "1.15.4", "horovod": "0.28.1"}}
  monkeypatch.setattr(replica, "gather", lambda value: [mine, mine, other])
  with pytest.raises(UserError, match="tensorflow is 1.15.5 on rank 0 and "
                     "1.15.4 on rank 2"):
    replica.check_agreement(mine)


def test_float16_exchange_is_near(place, ended):
  """Scaled by the loss scale, so that small gradients survive."""
  assert ended["half"].statuses == [0, 0], ended["half"].err
  found, exact = weights(place / "half"), at_step(place / "adam", STEPS)
  assert found["current_loss_scale"] == 2 ** 15
  losses = [[row["loss"] for row in rows(place / name)[:STEPS]]
            for name in ("half", "adam")]
  np.testing.assert_allclose(losses[0], losses[1], rtol=1e-2)
  assert not np.array_equal(found["bert/pooler/dense/kernel"],
                            exact["bert/pooler/dense/kernel"])


def test_processes_that_were_not_to_train_together(ended):
  assert ended["not_together"].statuses == [1, 1]
  assert "started as 2 processes" in ended["not_together"].errors[0]
  assert "add --horovod" in ended["not_together"].errors[0]


@pytest.mark.parametrize("name, steps", [("evaluated", 5), ("one_batch", 1)])
def test_evaluation_on_two_ranks_is_that_on_one(place, ended, name, steps):
  assert ended[name].statuses == [0, 0], ended[name].err
  done = runners.call("run_pretraining", settings(
      place, "adam", do_train=None, do_eval=True, eval_batch_size=8,
      max_eval_steps=steps, horovod=None))
  assert done.status == 0, done.err
  found, expected = [
      {n: float(v) for n, v in re.findall(r" I (\w+) = (\S+)", err)}
      for err in (ended[name].err, done.err)]
  assert set(found) == set(expected) and "masked_lm_loss" in found
  for key, value in expected.items():
    assert found[key] == pytest.approx(value, rel=1e-6), key


# Horovod itself -------------------------------------------------------------


def test_one_process_does_not_import_horovod(tmp_path):
  script = ("import sys; from utils import replica; replica.start(False); "
            "import run_pretraining, run_squad; "
            "assert replica.rank() == 0 and replica.size() == 1; "
            "assert 'horovod' not in sys.modules")
  subprocess.run([sys.executable, "-c", script], check=True,
                 cwd=str(runners.ROOT), env=ranks.environment())


def test_horovod_without_tensorflow_is_one_line(monkeypatch):
  monkeypatch.setitem(sys.modules, "horovod.tensorflow", None)
  for name in replica._SIZE:  # pylint: disable=protected-access
    monkeypatch.delenv(name, raising=False)
  with pytest.raises(UserError) as found:
    replica.start(True)
  assert "bash scripts/setup.sh --stack " + stack.NAME in str(found.value)
  assert "\n" not in str(found.value)


def test_more_ranks_than_gpus(monkeypatch):
  monkeypatch.setattr(replica, "local_size", lambda: 3)
  monkeypatch.setattr(tf.config.experimental, "list_physical_devices",
                      lambda kind: ["one", "two"])
  with pytest.raises(UserError, match="3 ranks on .*, which has 2 GPUs"):
    replica.check_devices()
