"""utils/records: the bytes TensorFlow writes and reads, and bad files."""

import itertools
import json
import random
import shutil

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

from utils import record_checks
from utils import record_encoder
from utils import records
from utils.errors import UserError
from utils.instances import Batch

FEATURES = {
    "input_ids": [101, 7, 30521, 127, 128, 16384, 0, 0],
    "negative": [-1, -(1 << 63), (1 << 63) - 1],
    "masked_lm_weights": [1.0, 0.0, -2.5],
    "none": [],
}


def error_of(function, *args, **kwargs):
  """Returns the one line of the UserError that the call must raise."""
  with pytest.raises(UserError) as caught:
    function(*args, **kwargs)
  message = str(caught.value)
  assert "\n" not in message
  return message


# Ids, tokens in segment 0, random next, positions and labels of the masks.
INSTANCE = ([101, 2000, 102, 30521, 102], 3, True, [1], [7])


def framed(instances, size, predictions, vocab):
  """Returns what BatchEncoder makes of instances, each like INSTANCE."""
  def padded(rows, width):
    return np.array([row + [0] * (width - len(row)) for row in rows])

  ids, firsts, random_next, positions, labels = zip(*instances)
  batch = Batch(
      padded(ids, size), np.array(list(map(len, ids))), np.array(firsts),
      np.array(random_next), padded(positions, predictions),
      padded(labels, predictions), np.array(list(map(len, positions))))
  return record_encoder.BatchEncoder(size, predictions, vocab).encode(batch)


def payload_of(instance):
  """Returns the serialized instance, of 8 tokens and 2 predictions."""
  return framed([instance], 8, 2, 30522)[0][12:-4]


def tf_example(features):
  """Returns TensorFlow's own message of `features`."""
  example = tf.train.Example()
  for name, values in features.items():
    feature = example.features.feature[name]
    if values and isinstance(values[0], float):
      feature.float_list.value.extend(values)
    else:
      feature.int64_list.value.extend(values)
  return example


def run(tensor):
  with tf.Session(graph=tensor.graph) as session:
    return session.run(tensor)


@pytest.fixture
def path(tmp_path):
  return str(tmp_path / "x.tfrecord")


class TestFraming:

  PAYLOADS = [b"", b"a", b"b" * 1000, bytes(range(256)), b"a"]

  def test_tensorflow_reads_ours(self, path):
    assert records.write_records(path, self.PAYLOADS) == 5
    with tf.Graph().as_default():
      dataset = tf.data.TFRecordDataset(path).batch(10)
      batch = tf.data.make_one_shot_iterator(dataset).get_next()
      assert list(run(batch)) == self.PAYLOADS

  def test_ours_reads_tensorflows(self, path):
    with tf.python_io.TFRecordWriter(path) as writer:
      for payload in self.PAYLOADS:
        writer.write(payload)
    assert list(records.read_records(path)) == self.PAYLOADS
    assert records.count_records(path) == 5

  def test_skip(self, path):
    records.write_records(path, self.PAYLOADS)
    for skip in range(7):
      assert list(records.read_records(path, skip)) == self.PAYLOADS[skip:]

  def test_empty_file(self, path):
    assert records.write_records(path, []) == 0
    assert list(records.read_records(path)) == []
    assert records.count_records(path) == 0

  def test_failed_writing_leaves_the_old_file(self, path, tmp_path):
    records.write_records(path, [b"old"])

    def payloads():
      yield b"new"
      raise RuntimeError("on purpose")
    with pytest.raises(RuntimeError):
      records.write_records(path, payloads())
    assert list(records.read_records(path)) == [b"old"]
    assert [p.name for p in tmp_path.iterdir()] == ["x.tfrecord"]


class TestDamage:

  @pytest.fixture
  def data(self, path):
    records.write_records(path, [b"a" * 100, b"b" * 50])
    with open(path, "rb") as stream:
      return stream.read()

  @staticmethod
  def rewrite(path, data):
    with open(path, "wb") as stream:
      stream.write(data)

  def read(self, path):
    return list(records.read_records(path))

  def test_truncated_anywhere(self, path, data):
    """The first record has 116 bytes; a cut there is a whole file."""
    for size in range(1, len(data)):
      self.rewrite(path, data[:size])
      if size == 116:
        assert self.read(path) == [b"a" * 100]
        continue
      start = 0 if size < 116 else 116
      for function in (self.read, records.count_records):
        message = error_of(function, path)
        assert path in message and "truncated" in message
        assert "at byte %d:" % start in message
      assert "truncated" in error_of(
          lambda p: list(records.read_records(p, skip=2)), path)

  def test_any_flipped_bit_is_seen(self, path, data):
    for i in range(len(data)):
      damaged = bytearray(data)
      damaged[i] ^= 0x10
      self.rewrite(path, bytes(damaged))
      assert path in error_of(self.read, path)

  def test_where_the_damage_is(self, path, data):
    damaged = bytearray(data)
    damaged[140] ^= 1
    self.rewrite(path, bytes(damaged))
    assert "damaged content (wrong CRC) in the record at byte 116" in (
        error_of(self.read, path))

  def test_no_record_file(self, path):
    self.rewrite(path, b"Call me Ishmael. Some years ago.")
    assert "is not a TFRecord file" in error_of(self.read, path)
    assert "No such file" in error_of(self.read, path + ".missing")


class TestExamples:

  def test_bytes_are_tensorflows(self):
    assert records.encode_features(FEATURES) == tf_example(
        FEATURES).SerializeToString(deterministic=True)

  def test_decode(self):
    payload = tf_example(FEATURES).SerializeToString()
    assert records.decode_example(payload) == FEATURES
    assert records.decode_example(records.encode_features(FEATURES)) == (
        FEATURES)
    example = tf.train.Example()
    example.features.feature["text"].bytes_list.value.extend([b"a", b""])
    assert records.decode_example(example.SerializeToString()) == {
        "text": [b"a", b""]}

  def test_decode_unpacked_values(self):
    # Field 1 of Int64List, once a value, as old writers have it.
    ints = records._field(3, b"\x08\x05\x08\x07")
    entry = records._field(1, b"x") + records._field(2, ints)
    payload = records._field(1, records._field(1, entry))
    assert tf.train.Example.FromString(
        payload).features.feature["x"].int64_list.value == [5, 7]
    assert records.decode_example(payload) == {"x": [5, 7]}

  def test_decode_rubbish(self):
    chance = random.Random(1)
    for payload in [b"\x0a", b"\xff" * 20, b"hello", b"\x0a\x02\x0a\x09"]:
      with pytest.raises(ValueError):
        records.decode_example(payload)
    for _ in range(500):
      payload = bytes(chance.randrange(256) for _ in range(30))
      try:
        records.decode_example(payload)
      except ValueError:
        pass

  @pytest.mark.parametrize("size,vocab", [
      (128, 30522), (140, 30522), (129, 100), (512, 3000000)])
  def test_instances(self, size, vocab, path):
    """The fast encoder gives what the plain one and TensorFlow give."""
    chance = random.Random(2)
    ids = [i for i in (0, 127, 128, 16383, 16384, 2097151, 2097152)
           if i < vocab] + [vocab - 1]
    instances, expected = [], []
    for _ in range(50):
      length, count = chance.randint(5, size), chance.randint(0, 6)
      tokens = [chance.choice(ids) for _ in range(length)]
      first = chance.randint(2, length - 1)
      positions = sorted(chance.sample(range(size), count))
      labels = [chance.randrange(vocab) for _ in range(count)]
      random_next = chance.random() < 0.5
      instances.append((tokens, first, random_next, positions, labels))
      expected.append({
          "input_ids": tokens + [0] * (size - length),
          "input_mask": [1] * length + [0] * (size - length),
          "segment_ids": [0] * first + [1] * (length - first)
                         + [0] * (size - length),
          "masked_lm_positions": positions + [0] * (6 - count),
          "masked_lm_ids": labels + [0] * (6 - count),
          "masked_lm_weights": [1.0] * count + [0.0] * (6 - count),
          "next_sentence_labels": [int(random_next)]})
    data, ends = framed(instances, size, 6, vocab)
    with open(path, "wb") as stream:
      stream.write(data)
    found = list(records.read_records(path))  # checks each CRC
    assert ends.tolist() == list(itertools.accumulate(
        len(payload) + 16 for payload in found))
    for payload, features in zip(found, expected):
      assert payload == records.encode_features(features)
      assert payload == tf_example(features).SerializeToString(
          deterministic=True)
    assert len(found) == len(expected)

  def test_in_turn(self, tmp_path):
    """Records go to the files one by one, across blocks of any size."""
    blocks = [framed([INSTANCE[:4] + ([label],) for label in labels], 8, 2,
                     30522) for labels in ([1, 2, 3, 4], [5], [6, 7])]
    for count in (1, 2, 3):
      paths = [str(tmp_path / ("%d-%d" % (count, i))) for i in range(count)]
      assert records.write_in_turn(paths, blocks, {}) == 7
      for i, path in enumerate(paths):
        found = [records.decode_example(p)["masked_lm_ids"][0]
                 for p in records.read_records(path)]
        assert found == list(range(1, 8))[i::count]
        assert records.count_records(path) == len(found)

  def test_tensorflow_parses_ours(self):
    payload = payload_of(INSTANCE)
    spec = {"input_ids": tf.FixedLenFeature([8], tf.int64),
            "segment_ids": tf.FixedLenFeature([8], tf.int64),
            "masked_lm_weights": tf.FixedLenFeature([2], tf.float32),
            "next_sentence_labels": tf.FixedLenFeature([1], tf.int64)}
    with tf.Graph().as_default() as graph:
      parsed = tf.parse_single_example(payload, spec)
      with tf.Session(graph=graph) as session:
        parsed = session.run(parsed)
    assert parsed["input_ids"].tolist() == [101, 2000, 102, 30521, 102,
                                            0, 0, 0]
    assert parsed["segment_ids"].tolist() == [0, 0, 0, 1, 1, 0, 0, 0]
    assert parsed["masked_lm_weights"].tolist() == [1.0, 0.0]
    assert parsed["next_sentence_labels"].tolist() == [1]


class TestSettings:

  SETTINGS = {"max_seq_length": 8, "max_predictions_per_seq": 2,
              "vocab_size": 30522}

  @pytest.fixture
  def plain(self, path):
    """A record file without settings."""
    records.write_records(path, [payload_of(
        ([101, 2000, 102, 3000, 102], 3, True, [1], [7]))] * 3)
    return path

  @pytest.fixture
  def made(self, plain):
    """A record file with settings."""
    with open(plain, "rb") as stream:
      size = len(stream.read())
    writer = records.RecordWriter(None)
    writer.num_records, writer.num_bytes = 3, size
    records.write_settings(plain, self.SETTINGS, writer)
    return plain

  @staticmethod
  def check(path, seq=8, predictions=2, vocab=30522):
    record_checks.check_settings([path], max_seq_length=seq, vocab_size=vocab,
                           max_predictions_per_seq=predictions)

  def test_round_trip(self, made):
    settings = records.read_settings(made)
    assert settings["format"] == 1 and settings["num_records"] == 3
    assert {k: settings[k] for k in self.SETTINGS} == self.SETTINGS
    assert records.count_records(made) == 3

  @pytest.mark.parametrize("kind", ["made", "plain"])
  def test_mismatch(self, kind, request):
    path = request.getfixturevalue(kind)
    self.check(path)
    self.check(path, vocab=None)
    message = error_of(self.check, path, seq=16)
    assert path in message and "pass --max_seq_length=8" in message
    assert "--max_predictions_per_seq=2" in error_of(
        self.check, path, predictions=20)
    message = error_of(self.check, path, vocab=2500)
    assert path in message and "2500" in message

  def test_smaller_vocabulary_of_the_model(self, made):
    self.check(made, vocab=30528)
    assert "30522 tokens" in error_of(self.check, made, vocab=32000)

  def test_none(self, plain):
    assert records.read_settings(plain) is None
    assert records.count_records(plain) == 3

  def test_truncated_at_a_record(self, made):
    """A file cut between two records is whole but for its settings."""
    with open(made, "rb") as stream:
      data = stream.read()
    with open(made, "wb") as stream:
      stream.write(data[:len(data) // 3])
    assert records.count_records(made) == 1
    assert "truncated" in error_of(self.check, made)

  def test_no_records(self, path):
    records.write_records(path, [])
    assert "holds no records" in error_of(self.check, path)
    records.write_settings(path, self.SETTINGS, records.RecordWriter(None))
    assert "holds no records" in error_of(self.check, path)

  def test_other_records(self, path):
    records.write_records(path, [records.encode_features({"a": [1]})])
    assert "lacks the feature 'input_ids'" in error_of(self.check, path)
    records.write_records(path, [b"no example"])
    message = error_of(self.check, path)
    assert path in message and "tf.train.Example" in message

  @pytest.mark.parametrize("change,expected", [
      (dict(input_ids=[101, 7, -1] + [0] * 5), "has -1 in input_ids"),
      (dict(input_mask=[2] * 8), "has 2 in input_mask"),
      (dict(segment_ids=[3] * 8), "has 3 in segment_ids"),
      (dict(segment_ids=[0] * 9), "has 9 values in segment_ids, not 8"),
      (dict(masked_lm_positions=[1, 8]), "has 8 in masked_lm_positions"),
      (dict(masked_lm_ids=[7, 30522]), "has 30522 in masked_lm_ids"),
      (dict(masked_lm_ids=[7]), "has 1 values in masked_lm_ids, not 2"),
      (dict(masked_lm_weights=[1.0, float("nan")]),
       "has nan in masked_lm_weights"),
      (dict(masked_lm_weights=[1, 0]), "takes float values"),
      (dict(next_sentence_labels=[2]), "has 2 in next_sentence_labels"),
      (dict(next_sentence_labels=None),
       "lacks the feature 'next_sentence_labels'")])
  def test_first_record_is_looked_at(self, plain, change, expected):
    features = records.decode_example(next(records.read_records(plain)))
    features.update(change)
    records.write_records(plain, [records.encode_features(
        {name: values for name, values in features.items()
         if values is not None})])
    message = error_of(
        record_checks.check_settings, [plain], max_seq_length=8,
        max_predictions_per_seq=2, vocab_size=30522, type_vocab_size=2)
    assert message.startswith(plain + ": the first record ")
    assert expected in message

  def test_files_of_one_vocabulary_and_casing(self, made, tmp_path):
    def with_settings(name, **changes):
      path = str(tmp_path / name)
      shutil.copy(made, path)
      settings = dict(records.read_settings(made), vocab_sha256="1",
                      do_lower_case=True)
      settings.update(changes)
      (tmp_path / (name + records.SETTINGS_SUFFIX)).write_text(
          json.dumps(settings))
      return path

    def check(*paths):
      record_checks.check_settings(list(paths), max_seq_length=8,
                             max_predictions_per_seq=2, vocab_size=30522)
    one, plain = with_settings("a"), str(tmp_path / "b")
    shutil.copy(made, plain)
    check(one, plain, with_settings("c", random_seed=3))
    other = with_settings("d", vocab_sha256="2")
    message = error_of(check, one, plain, other)
    assert "%s and %s" % (one, other) in message and "vocabular" in message
    other = with_settings("e", do_lower_case=False)
    message = error_of(check, one, plain, other)
    assert "%s and %s" % (one, other) in message
    assert "--do_lower_case" in message

  def test_damaged_settings(self, made):
    path = records.settings_path(made)
    with open(path, "w") as stream:
      stream.write("{")
    assert "not valid JSON" in error_of(self.check, made)
    with open(path, "w") as stream:
      json.dump({"format": 99}, stream)
    assert "unknown format" in error_of(self.check, made)

  def test_never_the_old_settings_beside_new_records(self, made,
                                                     monkeypatch):
    """As if killed between the records and their settings."""
    def killed(*unused):
      raise RuntimeError("on purpose")
    monkeypatch.setattr(records, "write_settings", killed)
    with pytest.raises(RuntimeError):
      records.write_in_turn([made], [framed([INSTANCE], 8, 2, 30522)],
                            self.SETTINGS)
    assert list(records.read_records(made)) == [payload_of(INSTANCE)]
    assert records.read_settings(made) is None

  def test_globs_leave_settings_out(self, made, tmp_path):
    assert records.record_files(str(tmp_path / "*"), "input_file") == [made]
    assert "matches no record file" in error_of(
        records.record_files, str(tmp_path / "*.json"), "input_file")
    assert "--input_file: no file matches" in error_of(
        records.record_files, str(tmp_path / "none*"), "input_file")
