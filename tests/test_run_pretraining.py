"""Pre-training end to end on a tiny model: results, resume, bad input."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

import run_pretraining
import runners
from utils import checkpoints
from utils import convert_checkpoint
from utils import input_pipeline
from utils import metrics
from utils import record_checks
from utils import records
from utils.errors import UserError

SEQ, PREDICTIONS, VOCAB = 16, 3, 60
CONFIG = {
    "vocab_size": VOCAB, "hidden_size": 16, "num_hidden_layers": 2,
    "num_attention_heads": 2, "intermediate_size": 32, "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1,
    "max_position_embeddings": 32, "type_vocab_size": 2,
    "initializer_range": 0.02}


def write_records(path, count, seed=0, seq=SEQ, predictions=PREDICTIONS):
  """Writes records of a language of eight words, one a sequence.

  Of every other record the last quarter is padding.
  """
  rng = np.random.RandomState(seed)
  payloads = []
  half = seq // 2
  for number in range(count):
    length = seq - seq // 4 * (number % 2)
    padding = [0] * (seq - length)
    ids = np.full([length], rng.randint(5, 13))
    places = sorted(rng.choice(np.arange(1, length), predictions, False))
    labels = ids[places]
    ids[places] = 4
    payloads.append(records.encode_features({
        "input_ids": ids.tolist() + padding,
        "input_mask": [1] * length + padding,
        "segment_ids": [0] * half + [1] * (length - half) + padding,
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


def weights_alone(output, folder):
  """Returns a checkpoint of a run's newest weights, without step and slots."""
  prefix = str(folder / "model.ckpt")
  convert_checkpoint.write_checkpoint(
      prefix, convert_checkpoint.read_checkpoint(
          checkpoints.latest(str(output))))
  return prefix


def test_weights_alone_are_enough_to_evaluate(place, trained, tmp_path):
  result = runners.call("run_pretraining", settings(
      place, tmp_path / "out", do_train=None, do_eval=True, max_eval_steps=50,
      init_checkpoint=weights_alone(trained[0], tmp_path)))
  assert result.status == 0, result.err
  found, expected = [
      (folder / "eval_results.txt").read_text().splitlines()
      for folder in (tmp_path / "out", trained[0])]
  assert "global_step = 0" in found
  assert set(found) - set(expected) == {"global_step = 0"}


def test_held_out_records_are_what_is_evaluated(place, trained, tmp_path):
  def results(name, **changes):
    result = runners.call("run_pretraining", settings(
        place, tmp_path / name, do_train=None, do_eval=True,
        max_eval_steps=50, init_checkpoint=trained[0], **changes))
    assert result.status == 0, result.err
    lines = (tmp_path / name / "eval_results.txt").read_text().splitlines()
    return dict(line.split(" = ") for line in lines)
  held_out = write_records(tmp_path / "held_out.tfrecord", 24, seed=50)
  found = results("held_out", eval_input_file=held_out)
  usual = results("usual")
  assert usual == results("named", eval_input_file=place / "part-*.tfrecord",
                          input_file=held_out)
  for name in set(found) - {"global_step"}:
    assert found[name] != usual[name], name
  # The records of training, as in the reference.
  assert (tmp_path / "usual" / "eval_results.txt").read_bytes() == (
      trained[0] / "eval_results.txt").read_bytes()


@pytest.mark.parametrize("batch_sources", ["mixed", "single"])
def test_several_sources(place, tmp_path, batch_sources):
  """A run over both, thrown back to step 4, ends with the same losses."""
  second = write_records(tmp_path / "second.tfrecord", 40, seed=51)
  output = tmp_path / "out"

  def losses():
    result = runners.call("run_pretraining", settings(
        place, output, input_file="%s,%s" % (place / "part-*.tfrecord", second),
        do_eval=False, num_train_steps=8, save_checkpoints_steps=4,
        batch_sources=batch_sources))
    assert result.status == 0, result.err
    assert "of 2 sources, batches %s" % batch_sources in result.err
    return [r["loss"] for r in rows(output)]

  whole = losses()
  assert len(whole) == 8
  for path in output.glob("model.ckpt-8.*"):
    path.unlink()
  (output / "checkpoint").write_text(
      'model_checkpoint_path: "model.ckpt-4"\n'
      'all_model_checkpoint_paths: "model.ckpt-4"\n')
  assert losses() == whole
  assert (output / "model.ckpt-8.index").exists()


def test_a_file_in_two_sources(place, tmp_path):
  one = sorted(place.glob("part-*.tfrecord"))[0]
  result = runners.call("run_pretraining", settings(
      place, tmp_path / "out", do_eval=False,
      input_file="%s,%s" % (place / "part-*.tfrecord", one)))
  assert "%s is in two of its sources" % one in result.error


def test_tensorboard_has_what_metrics_jsonl_has(trained):
  found = {}
  for path in trained[0].glob("events.out.tfevents.*"):
    for event in tf.train.summary_iterator(str(path)):
      for value in event.summary.value:
        found[event.step, value.tag] = value.simple_value
  for row in rows(trained[0]):
    for tag in ("loss", "mlm_loss", "nsp_loss", "learning_rate", "grad_norm",
                "sentences_per_sec"):
      assert found[row["step"], tag] == np.float32(row[tag])
  assert len(found) == 30 * 6


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


def test_two_hundred_steps_twice(place):
  """Dropout is on: CONFIG has 0.1."""
  folders = place / "long", place / "long_again"
  for folder in folders:
    result = runners.call("run_pretraining", settings(
        place, folder, num_train_steps=200, save_checkpoints_steps=100))
    assert result.status == 0, result.err
  assert same_weights(*folders)
  one, other = ([(r["step"], r["loss"], r["mlm_loss"], r["nsp_loss"],
                  r["grad_norm"]) for r in rows(f)] for f in folders)
  assert len(one) == 200 and one == other


def test_other_seed_other_run(place, trained):
  runners.call("run_pretraining", settings(
      place, place / "other", seed=8, num_train_steps=10))
  assert [r["loss"] for r in rows(place / "other")] != [
      r["loss"] for r in rows(trained[0])][:10]


def kill_when(command, reached, deadline=120, may_end=False):
  """Runs a command and kills it -9 as soon as `reached()` is true.

  It fails if the command ends before, unless it `may_end`.
  """
  process = subprocess.Popen(command, stdout=subprocess.DEVNULL,
                             stderr=subprocess.PIPE)
  end = time.time() + deadline
  while not reached() and process.poll() is None and time.time() < end:
    time.sleep(0.005)
  process.send_signal(signal.SIGKILL)
  error = process.communicate()[1].decode()
  assert process.returncode == -signal.SIGKILL or (
      may_end and process.returncode == 0), error


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
      "endless rate": (dict(learning_rate="inf"), ["--learning_rate=inf"]),
      "no number": (dict(learning_rate="nan"), ["--learning_rate=nan"]),
      "log in no folder": (dict(log_file=place / "none" / "log"),
                           ["--log_file", str(place / "none" / "log")]),
  }


@pytest.mark.parametrize("name", [
    "missing file", "glob without match", "no input", "missing config",
    "broken config", "other lengths", "over positions", "truncated",
    "corrupt", "empty file", "batch 0", "batch over records",
    "warm-up too long", "not a checkpoint", "output is a file",
    "nothing to do", "eval without checkpoint", "unknown flag",
    "endless rate", "no number", "log in no folder"])
def test_bad_input_gets_one_line(place, tmp_path, name):
  changes, expected = bad_cases(place)[name]
  result = runners.call(
      "run_pretraining", settings(place, tmp_path / "out", **changes))
  for text in expected:
    assert text in result.error


def record(**changes):
  """Returns a serialized record of a usable one's features and changes."""
  features = {
      "input_ids": [7] * SEQ, "input_mask": [1] * SEQ,
      "segment_ids": [0] * SEQ, "masked_lm_positions": [1, 2, 3],
      "masked_lm_ids": [5, 6, 7], "masked_lm_weights": [1.0, 1.0, 0.0],
      "next_sentence_labels": [1]}
  features.update(changes)
  return records.encode_features(
      {name: v for name, v in features.items() if v is not None})


BAD_RECORDS = {
    "id": record(input_ids=[7] * (SEQ - 1) + [VOCAB]),
    "negative id": record(input_ids=[-1] + [7] * (SEQ - 1)),
    "id over 32 bits": record(input_ids=[1 << 32] + [7] * (SEQ - 1)),
    "longer": record(input_ids=[7] * (SEQ + 1)),
    "shorter": record(input_mask=[1] * (SEQ - 1)),
    "mask": record(input_mask=[2] * SEQ),
    "segment": record(segment_ids=[2] * SEQ),
    "position": record(masked_lm_positions=[1, 2, SEQ]),
    "label": record(masked_lm_ids=[5, 6, VOCAB]),
    "weight": record(masked_lm_weights=[1.0, 1.0, float("nan")]),
    "endless weight": record(masked_lm_weights=[1.0, 1.0, float("inf")]),
    "negative weight": record(masked_lm_weights=[1.0, 1.0, -1.0]),
    "kind": record(masked_lm_weights=[1, 1, 0]),
    "next": record(next_sentence_labels=[2]),
    "no next": record(next_sentence_labels=None),
    "junk": b"no example",
}


def refusals(payloads, features):
  """Yields whether the graph refuses a payload; skips what it never sees."""
  with tf.Graph().as_default(), tf.Session() as session:
    serialized = tf.placeholder(tf.string, [1])
    parsed = run_pretraining.parse(serialized, features)
    for payload in payloads:
      if input_pipeline.is_example(payload):
        try:
          session.run(parsed, {serialized: [payload]})
          yield payload, False
        except tf.errors.InvalidArgumentError:
          yield payload, True


def test_what_the_graph_refuses_is_explained():
  rng = np.random.RandomState(3)
  damaged = []
  for _ in range(400):  # A wrong byte anywhere.
    payload = bytearray(record())
    payload[rng.randint(len(payload))] = rng.randint(256)
    damaged.append(bytes(payload))
  features = record_checks.features_of(SEQ, PREDICTIONS, VOCAB, 2)
  bad = [p for name, p in BAD_RECORDS.items() if name != "junk"]
  assert dict(refusals([record()] + bad, features)) == dict(
      [(record(), False)] + [(payload, True) for payload in bad])
  refused = [p for p, is_refused in refusals(damaged, features) if is_refused]
  assert len(refused) > 100
  for payload in bad + refused:
    with pytest.raises(UserError, match="x.tfrecord: a record "):
      record_checks.check_record(payload, features, "x.tfrecord")
  record_checks.check_record(record(), features, "x.tfrecord")


def test_is_example():
  whole = record()
  assert input_pipeline.is_example(whole)
  assert input_pipeline.is_example(records.encode_features({}))
  assert input_pipeline.is_example(records.encode_features(
      {"input_ids": [1] * 70000, "x" * 300: []}))
  for size in range(len(whole)):
    assert not input_pipeline.is_example(whole[:size])
  for other in (whole + b"\n", whole + whole, b"no example", b"\x0a",
                b"\x0a\x02\x0a\x00", b"\x0a\xff\xff\xff", b"\xff" * 40):
    assert not input_pipeline.is_example(other)


@pytest.mark.parametrize("part,name,expected", [
    ("train", "id", "has 60 in input_ids"),
    ("train", "longer", "has 17 values in input_ids"),
    ("train", "junk", "tf.train.Example"),
    ("eval", "position", "has 16 in masked_lm_positions")])
def test_a_bad_record_among_good_ones_is_one_line(
    place, tmp_path, trained, part, name, expected):
  payloads = list(records.read_records(str(place / "part-0.tfrecord")))
  payloads[30] = BAD_RECORDS[name]
  path = tmp_path / "bad.tfrecord"
  records.write_records(str(path), payloads)
  flag = "input_file" if part == "train" else "eval_input_file"
  values = {"train": dict(log_every_steps=5),
            "eval": dict(do_train=None, do_eval=True,
                         init_checkpoint=trained[0])}[part]
  result = runners.call("run_pretraining", settings(
      place, tmp_path / "out", **dict(values, **{
          flag: "%s,%s" % (path, place / "part-1.tfrecord")})))
  assert "%s: a record " % path in result.error
  assert expected in result.error
  assert "part-1" not in result.error


def test_a_fault_of_the_graph_is_no_bad_record(place):
  """Only where an inspection finds a fault is the graph's error replaced."""
  features = record_checks.features_of(SEQ, 3, VOCAB, 2)
  source = input_pipeline.Source(lambda: iter([([record()], ["x.tfrecord"])]),
                                 run_pretraining.inspector(features))
  with pytest.raises(tf.errors.InvalidArgumentError, match="ours"):
    with input_pipeline.surfaced(source):
      list(source())
      raise tf.errors.InvalidArgumentError(None, None, "ours")


def test_other_lines_in_metrics_jsonl(tmp_path):
  path = tmp_path / "metrics.jsonl"
  path.write_text('null\n{"kind": "train", "step": 1}\n[1]\n{"step": "x"}\n'
                  '{"kind": "train", "step": 3}\n{"kind": "tr')
  metrics.MetricsWriter(str(tmp_path), 2).close()
  assert path.read_text() == '{"kind": "train", "step": 1}\n'


def test_no_chatter_of_tensorflow(place, tmp_path):
  command = runners.command("run_pretraining", settings(
      place, tmp_path, num_train_steps=1, num_warmup_steps=0, do_eval=True))
  env = {k: v for k, v in os.environ.items() if k != "TF_CPP_MIN_LOG_LEVEL"}
  done = subprocess.run(command, stderr=subprocess.PIPE, env=env)
  lines = done.stderr.decode().splitlines()
  assert done.returncode == 0, lines
  assert lines and all(re.match(r"\d{4}-\d\d-\d\d [\d:]{8} [IW] ", line)
                       for line in lines), lines


def test_users_may_have_the_chatter():
  code = "import os, run_squad; print(os.environ['TF_CPP_MIN_LOG_LEVEL'])"
  out = subprocess.check_output(
      [sys.executable, "-c", code], cwd=str(runners.ROOT),
      env=dict(os.environ, TF_CPP_MIN_LOG_LEVEL="1"))
  assert out == b"1\n"


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
