"""create_pretraining_data: its files, settings, kills and bad input."""

import json
import logging
import os
import signal
import subprocess
import sys

import pytest
import tensorflow.compat.v1 as tf

import create_pretraining_data as cpd
from record_making import GOLDEN
from record_making import SPECIAL
from record_making import STALL
from record_making import config
from record_making import error_of
from record_making import make
from record_making import names
from record_making import sha
from record_making import start
from record_making import text_of
from record_making import write
from utils import record_checks
from utils import records

# As GOLDEN, with --do_whole_word_mask.
GOLDEN_WHOLE_WORDS = (
    "27e01a1e07eeca5826feb072da5e07477418bec21a025ce8d45863f5cdac8275")


class TestBytes(object):

  def test_golden(self, config):
    make(config)
    assert sha(config.output_file) == GOLDEN

  def test_golden_whole_words(self, config):
    make(config._replace(do_whole_word_mask=True))
    assert sha(config.output_file) == GOLDEN_WHOLE_WORDS

  def test_same_seed_same_bytes(self, config, tmp_path):
    make(config)
    other = config._replace(output_file=str(tmp_path / "other.tfrecord"))
    make(other)
    assert sha(config.output_file) == sha(other.output_file)
    make(other._replace(random_seed=54321))
    assert sha(config.output_file) != sha(other.output_file)

  def test_command_line(self, root, config):
    """The process writes the same bytes, with its defaults for the rest."""
    process = start(root, config)
    _, errors = process.communicate()
    assert process.returncode == 0, errors.decode()
    assert "instances of 12 documents" in errors.decode()
    assert sha(config.output_file) == GOLDEN

  def test_copies_have_masks_of_their_own(self, config):
    make(config._replace(dupe_factor=2, short_seq_prob=0.0))
    seen = list(records.read_records(config.output_file))
    assert len(seen) == len(set(seen))
    make(config._replace(dupe_factor=4, short_seq_prob=0.0))
    more = records.count_records(config.output_file)
    assert 1.8 * len(seen) < more < 2.2 * len(seen)


class TestFiles(object):

  def test_tensorflow_parses(self, config):
    make(config)
    spec = {name: tf.FixedLenFeature([64], tf.int64)
            for name in ("input_ids", "input_mask", "segment_ids")}
    spec.update({name: tf.FixedLenFeature([10], tf.int64)
                 for name in ("masked_lm_positions", "masked_lm_ids")})
    spec["masked_lm_weights"] = tf.FixedLenFeature([10], tf.float32)
    spec["next_sentence_labels"] = tf.FixedLenFeature([1], tf.int64)
    count = records.count_records(config.output_file)
    with tf.Graph().as_default() as graph:
      dataset = tf.data.TFRecordDataset(config.output_file).batch(count + 1)
      batch = tf.data.make_one_shot_iterator(dataset).get_next()
      parsed = tf.io.parse_example(batch, spec)
      with tf.Session(graph=graph) as session:
        parsed = session.run(parsed)
    ids, mask = parsed["input_ids"], parsed["input_mask"]
    weights = parsed["masked_lm_weights"]
    assert ids.shape == (count, 64) and count > 100
    assert (ids[:, 0] == 2).all() and ((ids != 0) <= (mask == 1)).all()
    # The last [SEP] is where the mask ends; two in each.
    assert ((ids == 3).sum(1) >= 2).all()
    assert (ids[range(count), mask.sum(1) - 1] == 3).all()
    assert (parsed["segment_ids"] <= mask).all()
    assert set(weights.ravel()) == {0.0, 1.0}
    assert ((parsed["masked_lm_ids"] != 0) == (weights == 1)).all()
    assert ((parsed["masked_lm_positions"] != 0) == (weights == 1)).all()

  def test_several_outputs_in_turn(self, config, tmp_path):
    make(config)
    whole = list(records.read_records(config.output_file))
    paths = [str(tmp_path / ("part%d" % i)) for i in range(3)]
    make(config._replace(output_file=",".join(paths)))
    for i, path in enumerate(paths):
      assert list(records.read_records(path)) == whole[i::3]
      assert records.read_settings(path)["num_records"] == len(whole[i::3])

  def test_settings(self, config):
    make(config)
    settings = records.read_settings(config.output_file)
    assert settings["inputs"] == ["text.txt"]
    assert settings["vocab_size"] == 306
    assert settings["num_bytes"] == os.path.getsize(config.output_file)
    assert settings["masked_lm_prob"] == 0.15
    for name in ("max_seq_length", "max_predictions_per_seq", "random_seed",
                 "dupe_factor", "do_lower_case", "do_whole_word_mask"):
      assert settings[name] == getattr(config, name)
    record_checks.check_settings(
        [config.output_file], max_seq_length=64, max_predictions_per_seq=10,
        vocab_size=306)

  def test_case_is_inferred(self, config):
    make(config._replace(do_lower_case=None))
    assert records.read_settings(config.output_file)["do_lower_case"] is True


class TestFolder(object):

  @pytest.fixture
  def folder(self, config, tmp_path):
    """A DataConfig from two files to a folder that is yet to be made."""
    write(tmp_path / "more.txt", text_of(2))
    return config._replace(
        input_file="%s/text.txt,%s/more.txt" % (tmp_path, tmp_path),
        output_file=str(tmp_path / "made") + "/")

  def test_each_alone(self, folder, tmp_path):
    make(folder)
    made = tmp_path / "made"
    assert names(made) == [
        "more.tfrecord", "more.tfrecord.settings.json",
        "text.tfrecord", "text.tfrecord.settings.json"]
    both = sha(str(made / "text.tfrecord"))
    # Its bytes do not depend on what lies beside it.
    make(folder._replace(input_file=str(tmp_path / "text.txt"),
                         output_file=str(tmp_path / "alone") + "/"))
    assert sha(str(tmp_path / "alone" / "text.tfrecord")) == both

  def test_finished_are_kept(self, folder, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(cpd.LOGGER, "propagate", True)
    make(folder)
    text, more = (str(tmp_path / "made" / (name + ".tfrecord"))
                  for name in ("text", "more"))
    before = {path: (sha(path), os.stat(path).st_mtime_ns)
              for path in (text, more)}
    os.truncate(more, 100)
    with caplog.at_level(logging.INFO, logger="bert"):
      make(folder)
    assert "kept %s" % text in caplog.text
    assert "kept %s" % more not in caplog.text
    assert os.stat(text).st_mtime_ns == before[text][1]
    assert sha(more) == before[more][0]

  @pytest.mark.parametrize("change", [
      {"random_seed": 1}, {"dupe_factor": 2}, {"masked_lm_prob": 0.2}])
  def test_other_settings_are_made_again(self, folder, tmp_path, change):
    make(folder)
    path = str(tmp_path / "made" / "text.tfrecord")
    before = sha(path)
    make(folder._replace(**change))
    assert sha(path) != before

  def test_other_text_is_made_again(self, folder, tmp_path):
    make(folder)
    path = str(tmp_path / "made" / "text.tfrecord")
    before = sha(path)
    write(tmp_path / "text.txt", text_of(3))
    make(folder)
    assert sha(path) != before

  def test_same_name_twice(self, folder, tmp_path):
    (tmp_path / "b").mkdir()
    write(tmp_path / "b" / "text.txt", text_of(2))
    message = error_of(folder._replace(
        input_file="%s/text.txt,%s/b/text.txt" % (tmp_path, tmp_path)))
    assert "text.tfrecord would be written twice" in message


class TestInterruption(object):

  def kill_while_writing(self, root, config, name):
    process = start(root, config, STALL % name)
    try:
      assert process.stdout.readline().startswith(b"stalled")
    finally:
      os.kill(process.pid, signal.SIGKILL)
      process.communicate()

  def test_kill_9(self, root, config, tmp_path):
    self.kill_while_writing(root, config, "out")
    left = names(tmp_path)
    assert "out.tfrecord" not in left
    assert any(name.startswith(".out.tfrecord.") for name in left)
    make(config)
    assert sha(config.output_file) == GOLDEN
    assert names(tmp_path) == ["out.tfrecord", "out.tfrecord.settings.json",
                               "text.txt", "vocab.txt"]

  def test_kill_9_keeps_the_old_file(self, root, config):
    make(config)
    self.kill_while_writing(root, config._replace(random_seed=7), "out")
    assert sha(config.output_file) == GOLDEN
    assert records.read_settings(config.output_file)["random_seed"] == 12345

  def test_kill_9_in_a_folder(self, root, config, tmp_path):
    write(tmp_path / "more.txt", text_of(2, 20))  # the larger one comes first
    folder = config._replace(
        input_file="%s/more.txt,%s/text.txt" % (tmp_path, tmp_path),
        output_file=str(tmp_path / "made") + "/")
    self.kill_while_writing(root, folder, "text")
    made = tmp_path / "made"
    first = str(made / "more.tfrecord")
    before = os.stat(first).st_mtime_ns
    assert not (made / "text.tfrecord").exists()
    make(folder)
    assert os.stat(first).st_mtime_ns == before
    make(folder._replace(output_file=str(tmp_path / "undisturbed") + "/"))
    assert names(made) == names(tmp_path / "undisturbed")
    for name in names(made):
      assert sha(str(made / name)) == sha(str(tmp_path / "undisturbed" / name))

  def test_disk_full(self, root, config, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.call(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs",
                        str(disk)], stderr=subprocess.DEVNULL):
      pytest.skip("a small disk can only be mounted as root")
    try:
      full = config._replace(output_file=str(disk / "out.tfrecord"))
      process = start(root, full)
      _, errors = process.communicate()
      lines = errors.decode().strip().split("\n")
      assert process.returncode == 1
      assert "disk is full" in lines[-1] and "Traceback" not in str(lines)
      assert names(disk) == []
      subprocess.check_call(["mount", "-o", "remount,size=4m", str(disk)])
      make(full)
      assert sha(full.output_file) == GOLDEN
    finally:
      subprocess.check_call(["umount", str(disk)])


class TestBadInput(object):

  def test_required(self, config):
    for name in ("input_file", "output_file", "vocab_file"):
      assert "--%s is required" % name in error_of(
          config._replace(**{name: None}))

  def test_inputs(self, config, tmp_path):
    nothing = str(tmp_path / "none*.txt")
    assert "--input_file: no file matches " + nothing in error_of(
        config._replace(input_file=nothing))
    for text in (b"", b"\n \n\n", "\u200b\n".encode("utf-8")):
      (tmp_path / "text.txt").write_bytes(text)
      message = error_of(config)
      assert "--input_file" in message and "text.txt holds no text" in message
    (tmp_path / "text.txt").write_bytes(b"w1\nw2 \xff\n")
    assert "text.txt is not UTF-8 text (line 2)" in error_of(config)
    assert not os.path.exists(config.output_file)

  def test_vocabulary(self, config, tmp_path):
    assert "--vocab_file: no such file" in error_of(
        config._replace(vocab_file=str(tmp_path / "none.txt")))
    for token in SPECIAL[1:]:
      some = [t for t in SPECIAL + ["w"] if t != token]
      path = write(tmp_path / "some.txt", "\n".join(some))
      message = error_of(config._replace(vocab_file=path))
      assert "some.txt has no token %s" % token in message
    assert "--do_lower_case=false does not suit" in error_of(
        config._replace(do_lower_case=False))

  @pytest.mark.parametrize("name,value,hint", [
      ("max_seq_length", 4, "give 5 to 8192"),
      # It would take more memory than there is.
      ("max_seq_length", 5000000, "give 5 to 8192"),
      ("max_predictions_per_seq", 0, "give 1 to 61"),
      ("max_predictions_per_seq", 62, "give 1 to 61"),
      ("dupe_factor", 0, "give 1 or more"),
      ("masked_lm_prob", 0.0, "between 0 and 1"),
      ("masked_lm_prob", 1.0, "between 0 and 1"),
      ("short_seq_prob", -0.1, "from 0 to 1"),
      ("short_seq_prob", 1.5, "from 0 to 1")])
  def test_numbers(self, config, name, value, hint):
    message = error_of(config._replace(**{name: value}))
    assert "--%s=%s" % (name, value) in message and hint in message

  def test_shortest(self, config):
    make(config._replace(max_seq_length=5, max_predictions_per_seq=2))
    for payload in records.read_records(config.output_file):
      ids = records.decode_example(payload)["input_ids"]
      assert len(ids) == 5 and ids[0] == 2 and ids[4] == 3

  def test_outputs(self, config, tmp_path):
    assert "would be written twice" in error_of(
        config._replace(output_file=config.output_file + "," +
                        config.output_file))
    assert "is an input, too" in error_of(
        config._replace(output_file=config.input_file))
    assert "names no file" in error_of(config._replace(output_file=","))
    settings = config.output_file + ".settings.json"
    for outputs in (settings, config.output_file + "," + settings):
      message = error_of(config._replace(output_file=outputs))
      assert settings in message and "end in .settings.json" in message
    folder = str(tmp_path)
    assert "is a folder" in error_of(
        config._replace(output_file=config.output_file + "," + folder))
    blocked = config.input_file + "/out.tfrecord"
    assert "--output_file: cannot write to " + config.input_file in (
        error_of(config._replace(output_file=blocked)))

  def test_warnings(self, config, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(cpd.LOGGER, "propagate", True)
    write(tmp_path / "text.txt", "w1 w2\nw3 w4\n")
    make(config._replace(max_predictions_per_seq=3))
    assert "text.txt is a single document" in caplog.text
    assert "--max_predictions_per_seq=3 caps the masks" in caplog.text

  def test_text_of_another_language(self, config, tmp_path, caplog,
                                    monkeypatch):
    monkeypatch.setattr(cpd.LOGGER, "propagate", True)
    make(config)
    assert "[UNK]" not in caplog.text
    write(tmp_path / "text.txt", "w2 \u0416 \u0416\n\n\u0416\n")
    make(config)
    assert "75 % of the tokens of" in caplog.text
    assert "text.txt are [UNK]: is" in caplog.text
    assert config.vocab_file in caplog.text

  def test_unknown_flag(self, root):
    process = subprocess.Popen(
        [sys.executable, "create_pretraining_data.py", "--no_such_flag=1"],
        cwd=str(root), stderr=subprocess.PIPE)
    _, errors = process.communicate()
    assert process.returncode == 1
    lines = errors.decode().strip().split("\n")
    assert len(lines) == 1 and "no_such_flag" in lines[0]


def test_imports_no_tensorflow(root):
  code = ("import sys, create_pretraining_data; "
          "print([m for m in ('tensorflow', 'matplotlib') "
          "if m in sys.modules])")
  out = subprocess.check_output([sys.executable, "-c", code], cwd=str(root))
  assert out.decode().strip() == "[]"


def test_settings_are_json(config):
  make(config)
  with open(records.settings_path(config.output_file)) as stream:
    assert json.load(stream)["format"] == 1
