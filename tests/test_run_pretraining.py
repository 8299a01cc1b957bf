"""Pre-training end to end on a tiny model: results, resume, bad input."""

import json
import os
import signal
import subprocess
import time

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

import runners
from utils import metrics
from utils import records

SEQ, PREDICTIONS, VOCAB = 16, 3, 60
CONFIG = {
    "vocab_size": VOCAB, "hidden_size": 16, "num_hidden_layers": 2,
    "num_attention_heads": 2, "intermediate_size": 32, "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1,
    "max_position_embeddings": 32, "type_vocab_size": 2,
    "initializer_range": 0.02}


def write_records(path, count, seed=0, seq=SEQ, predictions=PREDICTIONS):
  """Writes records of a language of eight words, one a sequence."""
  rng = np.random.RandomState(seed)
  payloads = []
  for _ in range(count):
    ids = np.full([seq], rng.randint(5, 13))
    places = sorted(rng.choice(np.arange(1, seq), predictions, False))
    labels = ids[places]
    ids[places] = 4
    half = seq // 2
    payloads.append(records.encode_features({
        "input_ids": ids.tolist(), "input_mask": [1] * seq,
        "segment_ids": [0] * half + [1] * (seq - half),
        "masked_lm_positions": [int(p) for p in places],
        "masked_lm_ids": labels.tolist(),
        "masked_lm_weights": [1.0] * predictions,
        "next_sentence_labels": [int(rng.randint(2))]}))
  records.write_records(str(path), payloads)
  return str(path)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
  """Folder with a config and three record files of 40 records."""
  folder = tmp_path_factory.mktemp("pretraining")
  (folder / "config.json").write_text(json.dumps(CONFIG))
  for number in range(3):
    write_records(folder / ("part-%d.tfrecord" % number), 40, number)
  return folder


def settings(place, output, **changes):
  values = dict(
      bert_config_file=place / "config.json",
      input_file=place / "part-*.tfrecord", output_dir=output,
      do_train=True, train_batch_size=8, eval_batch_size=8,
      learning_rate=1e-2, num_train_steps=30, num_warmup_steps=5,
      max_seq_length=SEQ, max_predictions_per_seq=PREDICTIONS,
      save_checkpoints_steps=10, log_every_steps=1, seed=7)
  values.update(changes)
  return values


def weights(folder):
  """Returns {name: array} of the newest checkpoint."""
  reader = tf.train.load_checkpoint(tf.train.latest_checkpoint(str(folder)))
  return {n: reader.get_tensor(n) for n in reader.get_variable_to_shape_map()}


def rows(folder, kind="train"):
  found = metrics.read_metrics(str(folder / "metrics.jsonl"))
  return [r for r in found if r["kind"] == kind]


def same_weights(one, other):
  one, other = weights(one), weights(other)
  assert set(one) == set(other)
  return all(np.array_equal(one[n], other[n]) for n in one)


@pytest.fixture(scope="module")
def trained(place):
  """An undisturbed run of 30 steps with its evaluation."""
  output = place / "undisturbed"
  result = runners.call("run_pretraining", settings(
      place, output, do_eval=True, max_eval_steps=50))
  assert result.status == 0, result.err
  return output, result


def test_it_learns_and_reports(trained):
  output, result = trained
  losses = [r["mlm_loss"] for r in rows(output)]
  assert len(losses) == 30
  assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.2
  assert [r["step"] for r in rows(output)] == list(range(1, 31))
  first = rows(output)[0]
  assert first["learning_rate"] == 0.0
  assert {"loss", "mlm_loss", "nsp_loss", "grad_norm",
          "sentences_per_sec"} <= set(first)
  for text in ("Training Performance =", "settings:", "threads", "seed=7"):
    assert text in result.err


def test_eval_results(trained):
  output, _ = trained
  lines = (output / "eval_results.txt").read_text().splitlines()
  found = dict(line.split(" = ") for line in lines)
  assert set(found) == {
      "global_step", "loss", "masked_lm_accuracy", "masked_lm_loss",
      "next_sentence_accuracy", "next_sentence_loss"}
  assert found["global_step"] == "30"
  assert 0 < float(found["masked_lm_accuracy"]) <= 1
  evaluation = rows(output, "eval")[-1]
  assert evaluation["masked_lm_loss"] == float(found["masked_lm_loss"])


def test_checkpoint_holds_the_readers_position(trained):
  saved = weights(trained[0])
  assert saved["records_consumed"] == 30 * 8
  assert saved["global_step"] == 30
  assert "bert/pooler/dense/kernel/adam_m" in saved


def test_same_seed_same_run(place, trained):
  result = runners.call("run_pretraining", settings(place, place / "again"))
  assert result.status == 0, result.err
  assert same_weights(trained[0], place / "again")
  assert [r["loss"] for r in rows(place / "again")] == [
      r["loss"] for r in rows(trained[0])]


def test_other_seed_other_run(place, trained):
  runners.call("run_pretraining", settings(
      place, place / "other", seed=8, num_train_steps=10))
  assert [r["loss"] for r in rows(place / "other")] != [
      r["loss"] for r in rows(trained[0])][:10]


def kill_when(command, reached, deadline=120):
  """Runs a command and kills it -9 as soon as `reached()` is true."""
  process = subprocess.Popen(command, stdout=subprocess.DEVNULL,
                             stderr=subprocess.PIPE)
  end = time.time() + deadline
  while not reached() and process.poll() is None and time.time() < end:
    time.sleep(0.005)
  process.send_signal(signal.SIGKILL)
  error = process.communicate()[1].decode()
  assert process.returncode == -signal.SIGKILL, error


def test_killed_and_resumed_is_the_same_run(place):
  # Batches large enough for the kill to fall well inside the run.
  values = dict(train_batch_size=100, num_train_steps=300)
  whole, killed = place / "whole", place / "killed"
  assert runners.call("run_pretraining", settings(
      place, whole, **values)).status == 0
  log = killed / "metrics.jsonl"
  kill_when(runners.command("run_pretraining", settings(
      place, killed, **values)),
            lambda: log.exists() and len(log.read_text().splitlines()) > 34)
  result = runners.call("run_pretraining", settings(place, killed, **values))
  assert result.status == 0, result.err
  assert "going on from" in result.err
  assert same_weights(whole, killed)
  assert [(r["step"], r["loss"]) for r in rows(killed)] == [
      (r["step"], r["loss"]) for r in rows(whole)]


def test_a_finished_run_stays_finished(place, trained):
  before = weights(trained[0])
  result = runners.call("run_pretraining", settings(place, trained[0]))
  assert result.status == 0
  assert "already trained to step 30" in result.err
  after = weights(trained[0])
  assert all(np.array_equal(before[n], after[n]) for n in before)


def test_starts_from_init_checkpoint(place, trained):
  output = place / "from_checkpoint"
  result = runners.call("run_pretraining", settings(
      place, output, init_checkpoint=trained[0], num_train_steps=6,
      num_warmup_steps=0))
  assert result.status == 0, result.err
  # A trained model starts where the other one ended, not at log(vocab).
  assert rows(output)[0]["mlm_loss"] < rows(trained[0])[0]["mlm_loss"] - 0.2
  assert weights(output)["global_step"] == 6


def test_one_record_one_step(place):
  path = write_records(place / "single.tfrecord", 1)
  output = place / "tiny"
  result = runners.call("run_pretraining", settings(
      place, output, input_file=path, train_batch_size=1, num_train_steps=1,
      num_warmup_steps=0, do_eval=True))
  assert result.status == 0, result.err
  assert len(rows(output)) == 1


def test_non_finite_loss_stops_and_saves_nothing_bad(place, trained):
  output = place / "blown_up"
  result = runners.call("run_pretraining", settings(
      place, output, learning_rate=1e30, num_warmup_steps=0,
      save_checkpoints_steps=1))
  assert "is not finite" in result.error
  assert all(np.isfinite(v).all() for v in weights(output).values())


def cut(path, out, drop):
  data = path.read_bytes()
  out.write_bytes(data[:-drop])
  return out


def flip(path, out, offset):
  data = bytearray(path.read_bytes())
  data[offset] ^= 0xff
  out.write_bytes(bytes(data))
  return out


def bad_cases(place):
  """Yields (name, changed settings, what the one line must hold)."""
  part = place / "part-0.tfrecord"
  (place / "broken.json").write_text("{")
  (place / "no_checkpoint.ckpt.index").write_text("junk")
  (place / "empty.tfrecord").write_bytes(b"")
  long_file = write_records(place / "long.tfrecord", 5, seq=24)
  return {
      "missing file": (dict(input_file=place / "none.tfrecord"),
                       ["--input_file", "none.tfrecord"]),
      "glob without match": (dict(input_file=place / "x-*.tfrecord"),
                             ["--input_file", "x-*"]),
      "no input": (dict(input_file=None), ["--input_file"]),
      "missing config": (dict(bert_config_file=place / "none.json"),
                         ["--bert_config_file", "none.json"]),
      "broken config": (dict(bert_config_file=place / "broken.json"),
                        ["broken.json"]),
      "other lengths": (dict(input_file=long_file), ["long.tfrecord", "24"]),
      "over positions": (dict(max_seq_length=33), ["--max_seq_length", "32"]),
      "truncated": (dict(input_file=cut(part, place / "cut.tfrecord", 7)),
                    ["cut.tfrecord"]),
      "corrupt": (dict(input_file=flip(part, place / "flip.tfrecord", 800)),
                  ["flip.tfrecord"]),
      "empty file": (dict(input_file=place / "empty.tfrecord"),
                     ["empty.tfrecord"]),
      "batch 0": (dict(train_batch_size=0), ["--train_batch_size"]),
      "batch over records": (dict(train_batch_size=500),
                             ["--train_batch_size", "120"]),
      "warm-up too long": (dict(num_warmup_steps=30),
                           ["--num_warmup_steps"]),
      "not a checkpoint": (
          dict(init_checkpoint=place / "no_checkpoint.ckpt"),
          ["no_checkpoint.ckpt"]),
      "output is a file": (dict(output_dir=part), ["--output_dir"]),
      "nothing to do": (dict(do_train=None), ["--do_train"]),
      "eval without checkpoint": (
          dict(do_train=None, do_eval=True), ["checkpoint"]),
      "unknown flag": (dict(batch_sise=3), ["batch_sise"]),
  }


@pytest.mark.parametrize("name", [
    "missing file", "glob without match", "no input", "missing config",
    "broken config", "other lengths", "over positions", "truncated",
    "corrupt", "empty file", "batch 0", "batch over records",
    "warm-up too long", "not a checkpoint", "output is a file",
    "nothing to do", "eval without checkpoint", "unknown flag"])
def test_bad_input_gets_one_line(place, tmp_path, name):
  changes, expected = bad_cases(place)[name]
  result = runners.call(
      "run_pretraining", settings(place, tmp_path / "out", **changes))
  for text in expected:
    assert text in result.error


def test_wrong_shape_is_one_line(place, trained, tmp_path):
  config = dict(CONFIG, intermediate_size=48)
  (tmp_path / "wide.json").write_text(json.dumps(config))
  result = runners.call("run_pretraining", settings(
      place, tmp_path / "out", bert_config_file=tmp_path / "wide.json",
      init_checkpoint=trained[0]))
  assert "intermediate/dense" in result.error
  assert "[16, 32]" in result.error and "[16, 48]" in result.error


def test_a_folder_in_use_is_refused(place, tmp_path):
  from utils.files import FolderLock
  with FolderLock(str(tmp_path)):
    result = runners.call("run_pretraining", settings(place, tmp_path))
  assert "another run" in result.error
  assert str(os.getpid()) in result.error
