"""A full disk: one clear line, and what was finished stays whole."""

import json
import os
import subprocess

import pytest

import runners
import test_run_squad
from test_run_pretraining import place  # pylint: disable=unused-import
from test_run_pretraining import same_weights
from test_run_pretraining import settings
from utils import checkpoints


@pytest.fixture
def small_disk(tmp_path):
  """A tmpfs of 400 KB: two checkpoints of the tiny model fit, not three."""
  folder = tmp_path / "disk"
  folder.mkdir()
  done = subprocess.run(
      ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(folder)],
      stderr=subprocess.PIPE)
  if done.returncode:
    pytest.skip("cannot mount a tmpfs here: %s" % done.stderr.decode())
  yield folder
  subprocess.run(["umount", "-l", str(folder)], check=True)


def test_training_on_a_full_disk(place, small_disk):
  values = settings(place, small_disk / "run", train_batch_size=8,
                    num_train_steps=100, keep_checkpoint_max=50)
  result = runners.call("run_pretraining", values)
  assert "free some space" in result.error
  assert str(small_disk) in result.error
  last = checkpoints.all_in(str(small_disk / "run"))
  assert last, "no checkpoint was left"
  for prefix in last:
    checkpoints.verify(prefix)
  subprocess.run(["mount", "-o", "remount,size=20m", str(small_disk)],
                 check=True)
  result = runners.call("run_pretraining", values)
  assert result.status == 0, result.err
  assert "going on from" in result.err
  whole = place / "hundred"
  assert runners.call("run_pretraining", dict(
      values, output_dir=whole)).status == 0
  assert same_weights(small_disk / "run", whole)


def test_prediction_on_a_full_disk(small_disk):
  """The answers are larger than the disk; those of before stay."""
  folder = small_disk.parent
  (folder / "config.json").write_text(json.dumps(
      dict(test_run_squad.CONFIG, vocab_size=len(test_run_squad.VOCAB))))
  (folder / "vocab.txt").write_text("\n".join(test_run_squad.VOCAB) + "\n")
  for name, count in (("train", 8), ("dev", 3000)):
    (folder / (name + ".json")).write_text(json.dumps(
        test_run_squad.dataset(count)))
  values = test_run_squad.settings(folder, small_disk, predict_batch_size=500,
                                   log_file=small_disk / "log")
  trained = runners.call("run_squad", dict(
      values, output_dir=folder / "trained", do_predict=None,
      num_train_epochs=1, log_file=None))
  assert trained.status == 0, trained.err
  for name in ("predictions.json", "nbest_predictions.json"):
    (small_disk / name).write_text("old")
  # What is left is too little for the new ones.
  (small_disk / "ballast").write_bytes(bytes(350 << 10))
  values.update(do_train=None, init_checkpoint=folder / "trained")
  result = runners.call("run_squad", values)
  assert "disk is full" in result.error
  assert (small_disk / "predictions.json").read_text() == "old"
  assert not (small_disk / "nbest_predictions.json").exists()
  assert not [n for n in os.listdir(str(small_disk)) if n.endswith(".tmp")]
  subprocess.run(["mount", "-o", "remount,size=20m", str(small_disk)],
                 check=True)
  result = runners.call("run_squad", values)
  assert result.status == 0, result.err
  for name in ("predictions.json", "nbest_predictions.json"):
    assert len(json.loads((small_disk / name).read_text())) == 3000
  assert json.loads((small_disk / "scores.json").read_text())


def test_records_on_a_full_disk(small_disk):
  text = small_disk.parent / "text.txt"
  vocab = small_disk.parent / "vocab.txt"
  words = ["w%d" % i for i in range(50)]
  vocab.write_text("\n".join(
      ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"] + words) + "\n")
  text.write_text("\n\n".join("\n".join(
      " ".join(words[(i + j) % 50:][:20]) for j in range(9))
                              for i in range(400)))
  done = subprocess.run(
      runners.command("create_pretraining_data", dict(
          input_file=text, output_file=small_disk / "out.tfrecord",
          vocab_file=vocab, dupe_factor=5)),
      stdout=subprocess.PIPE, stderr=subprocess.PIPE)
  error = done.stderr.decode()
  assert done.returncode == 1, error
  assert "disk is full" in error and "Traceback" not in error
  assert os.listdir(str(small_disk)) == []
