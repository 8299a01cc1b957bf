"""Runs with and without padding and kernels are one run, by their artefacts.

On records and features of many lengths; whole runs, each a process.
"""

import json
import shutil

import numpy as np
import pytest

import runners
import test_run_squad as squad
from test_run_pretraining import CONFIG
from test_run_pretraining import rows
from test_run_pretraining import settings
from test_run_pretraining import weights
from utils import records

SEQ, PREDICTIONS = 32, 3
# Reference layout and operations, and what is on by default.
REFERENCE = dict(remove_padding=False, fused_ops="off")
DEFAULT = dict(remove_padding=True, fused_ops="on")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
  """Folder with configs with and without dropout, and records with padding."""
  folder = tmp_path_factory.mktemp("layouts")
  (folder / "dropout.json").write_text(json.dumps(CONFIG))
  (folder / "config.json").write_text(json.dumps(dict(
      CONFIG, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)))
  random = np.random.RandomState(0)
  payloads = []
  for _ in range(80):
    length = random.randint(4, SEQ + 1)
    padding = [0] * (SEQ - length)
    real = random.randint(0, PREDICTIONS + 1)
    positions = sorted(random.choice(np.arange(1, length), real, False))
    unused = [0] * (PREDICTIONS - real)
    payloads.append(records.encode_features({
        "input_ids": random.randint(5, 60, length).tolist() + padding,
        "input_mask": [1] * length + padding,
        "segment_ids": random.randint(0, 2, length).tolist() + padding,
        "masked_lm_positions": [int(p) for p in positions] + unused,
        "masked_lm_ids": random.randint(5, 60, real).tolist() + unused,
        "masked_lm_weights": [1.0] * real + [0.0] * len(unused),
        "next_sentence_labels": [int(random.randint(2))]}))
  records.write_records(str(folder / "part-0.tfrecord"), payloads)
  return folder


def train(place, output, **changes):
  """Trains twelve steps and returns what metrics.jsonl has of each."""
  result = runners.call("run_pretraining", settings(
      place, output, **dict(dict(
          max_seq_length=SEQ, max_predictions_per_seq=PREDICTIONS,
          num_train_steps=12, save_checkpoints_steps=6, learning_rate=1e-3),
                            **changes)))
  assert result.status == 0, result.err
  return rows(output), result.err


def assert_same(found, expected, relative=1e-5):
  """Asserts that steps have the same number, losses and norms."""
  assert [row["step"] for row in found] == [row["step"] for row in expected]
  for tag in ("loss", "mlm_loss", "nsp_loss", "grad_norm"):
    np.testing.assert_allclose(
        [row[tag] for row in found], [row[tag] for row in expected],
        rtol=relative if tag != "grad_norm" else 10 * relative)


@pytest.fixture(scope="module")
def reference(place):
  """(folder, steps) of a run of the reference's layout without dropout."""
  output = place / "reference"
  return output, train(place, output, **REFERENCE)[0]


@pytest.fixture(scope="module")
def default(place):
  """(folder, steps) of the same as it is by default."""
  output = place / "default"
  return output, train(place, output, **DEFAULT)[0]


def test_the_layouts_learn_the_same(reference, default):
  assert_same(default[1], reference[1])
  assert reference[1][-1]["loss"] < reference[1][0]["loss"]


def half_of(run, output):
  """Makes a folder of a run that was ended after its sixth step."""
  output.mkdir()
  for path in run.glob("model.ckpt-6.*"):
    shutil.copy(str(path), str(output))
  (output / "checkpoint").write_text(
      'model_checkpoint_path: "model.ckpt-6"\n')
  shutil.copy(str(run / "metrics.jsonl"), str(output))


@pytest.mark.parametrize("before, after", [
    ("reference", DEFAULT), ("default", REFERENCE),
    ("reference", dict(REFERENCE, fused_ops="on"))])
def test_a_run_goes_on_in_another_layout(place, tmp_path, reference, default,
                                         before, after):
  folder, steps = dict(reference=reference, default=default)[before]
  half_of(folder, tmp_path / "run")
  found, log = train(place, tmp_path / "run", **after)
  assert "going on from" in log and "model.ckpt-6" in log
  assert_same(found, steps)
  one, other = weights(tmp_path / "run"), weights(folder)
  assert set(one) == set(other)
  assert one["records_consumed"] == other["records_consumed"] == 12 * 8


def test_a_run_with_dropout_goes_on(place, tmp_path):
  """With kernels bit for bit, in another layout as well as another run."""
  values = dict(bert_config_file=place / "dropout.json", train_batch_size=4,
                optimizer_type="lamb", num_accumulation_steps=2)
  whole, _ = train(place, tmp_path / "whole", **dict(values, **DEFAULT))
  half_of(tmp_path / "whole", tmp_path / "same")
  steps, _ = train(place, tmp_path / "same", **dict(values, **DEFAULT))
  for tag in ("loss", "grad_norm"):
    assert [row[tag] for row in steps] == [row[tag] for row in whole]
  one, other = weights(tmp_path / "same"), weights(tmp_path / "whole")
  for name in one:
    np.testing.assert_array_equal(one[name], other[name], err_msg=name)
  half_of(tmp_path / "whole", tmp_path / "other")
  steps, _ = train(place, tmp_path / "other", **dict(values, **REFERENCE))
  assert [row["step"] for row in steps] == list(range(1, 13))
  assert steps[:6] == whole[:6]
  # Other masks: another loss, of the same size.
  assert steps[6]["loss"] != whole[6]["loss"]
  assert steps[6]["loss"] == pytest.approx(whole[6]["loss"], rel=0.2)


# SQuAD ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
  """Folder of questions over paragraphs of many lengths, and a model."""
  folder = tmp_path_factory.mktemp("questions")
  (folder / "config.json").write_text(json.dumps(dict(
      CONFIG, vocab_size=len(squad.VOCAB))))
  (folder / "vocab.txt").write_text("\n".join(squad.VOCAB) + "\n")
  data = squad.dataset(40)
  for number, paragraph in enumerate(data["data"][0]["paragraphs"]):
    paragraph["context"] += " the old house is in oslo ." * (number % 5)
  for name in ("train.json", "dev.json"):
    (folder / name).write_text(json.dumps(data))
  return folder


def predicted(questions, output, checkpoint, **changes):
  """Returns {name: JSON} of what a prediction writes."""
  result = runners.call("run_squad", squad.settings(
      questions, output, do_train=None, train_file=None,
      init_checkpoint=checkpoint, **changes))
  assert result.status == 0, result.err
  return {name: json.loads((output / name).read_text())
          for name in ("predictions.json", "nbest_predictions.json")}


def test_predictions_are_the_same_in_all_layouts(questions, tmp_path):
  trained = questions / "trained"
  result = runners.call("run_squad", squad.settings(
      questions, trained, do_predict=None))
  assert result.status == 0, result.err
  expected = predicted(questions, tmp_path / "reference", trained, **REFERENCE)
  assert len(set(expected["predictions.json"].values())) > 3
  for number, changes in enumerate((dict(), dict(predict_batch_size=3))):
    found = predicted(questions, tmp_path / str(number), trained,
                      **dict(DEFAULT, **changes))
    assert found["predictions.json"] == expected["predictions.json"]
    for key, answers in expected["nbest_predictions.json"].items():
      others = found["nbest_predictions.json"][key]
      assert answers[0]["text"] == others[0]["text"]
      np.testing.assert_allclose(
          [answer["probability"] for answer in answers],
          [answer["probability"] for answer in others], atol=1e-5)


def test_training_by_length_has_all_questions(questions, tmp_path):
  steps = []
  for grouping in (True, False):
    output = tmp_path / str(grouping)
    result = runners.call("run_squad", squad.settings(
        questions, output, length_grouping=grouping, num_train_epochs=2,
        do_predict=None))
    assert result.status == 0, result.err
    assert weights(output)["records_consumed"] == 80
    steps.append(rows(output))
  grouped, plain = steps
  assert [row["step"] for row in grouped] == [row["step"] for row in plain]
  # Of the same questions other batches are made.
  assert [row["loss"] for row in grouped] != [row["loss"] for row in plain]
