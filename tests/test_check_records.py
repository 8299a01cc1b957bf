"""data/check_records: numbers worked by hand, and each kind of damage."""

import json
import os
import random
import struct
import subprocess
import sys

import numpy as np
import peak_memory
import pytest
import tensorflow.compat.v1 as tf

from data import check_records
from utils import files
from utils import record_batches
from utils import record_checks
from utils import record_statistics
from utils import records

SEQ, PREDICTIONS, VOCAB, MASK = 16, 3, 30522, 103
SETTINGS = {"max_seq_length": SEQ, "max_predictions_per_seq": PREDICTIONS,
            "vocab_size": VOCAB}


def features(length, positions, labels=None, shown=MASK, label=0):
  """Returns a record's features: ids 1000, 1001, ...; `shown` where masked."""
  ids = list(range(1000, 1000 + length)) + [0] * (SEQ - length)
  labels = labels or [ids[position] for position in positions]
  for position in positions:
    ids[position] = shown
  count = len(positions)
  spare = [0] * (PREDICTIONS - count)
  return {"input_ids": ids,
          "input_mask": [1] * length + [0] * (SEQ - length),
          "segment_ids": [0] * 3 + [1] * (length - 3) + [0] * (SEQ - length),
          "masked_lm_positions": list(positions) + spare,
          "masked_lm_ids": labels + spare,
          "masked_lm_weights": [1.0] * count + [0.0] * len(spare),
          "next_sentence_labels": [label]}


def write(path, examples, settings=SETTINGS):
  """Writes records (dicts or bytes) and settings; returns their offsets."""
  payloads = [e if isinstance(e, bytes) else records.encode_features(e)
              for e in examples]
  records.write_records(str(path), payloads)
  offsets = np.cumsum([0] + [16 + len(p) for p in payloads]).tolist()
  if settings:
    files.write_json(records.settings_path(str(path)), dict(
        settings, format=1, num_records=len(payloads), num_bytes=offsets[-1]))
  return offsets


def change(path, place, value=None):
  """Flips the bits of one byte; cuts the file there if value is "cut"."""
  data = bytearray(path.read_bytes())
  if value == "cut":
    data = data[:place]
  else:
    data[place] ^= 0xff
  path.write_bytes(bytes(data))


def check(tmp_path, *arguments):
  """Runs the command line; returns (report, whether it failed)."""
  out = tmp_path / "out"
  failed = False
  try:
    check_records.main([str(a) for a in arguments] + [
        "--output_dir", str(out), "--num_workers", "1"])
  except SystemExit as error:
    assert error.code == 1
    failed = True
  return json.loads((out / check_records.REPORT).read_text()), failed


def problems(path):
  """Returns [(offset, what)] of one file."""
  return record_statistics.check_file(str(path)).problems


# ----------------------------------------------------------------- numbers


def test_numbers_worked_by_hand(tmp_path, capsys):
  """Three records of 16, 10 and 6 tokens with 3, 2 and 1 predictions."""
  write(tmp_path / "x.tfrecord", [
      features(16, [1, 5, 9], label=1),
      features(10, [2, 3], shown=2000),
      features(6, [4], labels=[2000], shown=2000)])
  report, failed = check(tmp_path, tmp_path / "x.tfrecord")
  assert not failed
  total = report["total"]
  assert (total["num_files"], total["num_records"], total["damaged"]) == (
      1, 3, 0)
  assert total["num_bytes"] == os.path.getsize(str(tmp_path / "x.tfrecord"))
  assert total["token_fill"] == 32 / 48
  assert total["masked"] == 6 / 32
  assert total["predictions_per_record"] == 2
  assert total["random_next"] == 1 / 3
  assert total["mean_length"] == 32 / 3
  assert total["full"] == 1 / 3
  assert total["short"] == 1 / 3  # 6 of 16 is less than half
  assert total["length_percentiles"] == {
      "1": 6, "10": 6, "25": 6, "50": 10, "75": 16, "90": 16, "99": 16}
  assert total["records_of_each_length"] == [
      int(i in (6, 10, 16)) for i in range(17)]
  assert total["records_of_each_number_of_predictions"] == [0, 1, 1, 1]
  # 103 and 2000 stand for another id 3 and 2 times: 103 is the commonest.
  assert (total["replaced_by_mask"], total["kept"],
          total["replaced_by_other"]) == (3 / 6, 1 / 6, 2 / 6)
  assert report["files"][0]["mask_id"] == 103
  assert report["files"][0]["mask_id_is_guessed"]
  out = capsys.readouterr().out
  assert "66.7 % of the positions are real tokens" in out
  assert "x.tfrecord        3        0    66.7" in out


def test_known_mask(tmp_path):
  """The vocabulary tells [MASK], and whether it is the records' own."""
  vocab = tmp_path / "vocab.txt"
  vocab.write_text("\n".join(
      ["[MASK]" if i == 2000 else "w%d" % i for i in range(2100)]))
  path = tmp_path / "x.tfrecord"
  examples = [features(16, [1, 5, 9]), features(10, [2, 3], shown=2000)]
  sha = files.sha256_of_file(str(vocab))
  write(path, examples, dict(SETTINGS, vocab_sha256=sha))
  report, failed = check(tmp_path, path, "--vocab_file", vocab)
  assert not failed and report["files"][0]["mask_id"] == 2000
  assert report["total"]["replaced_by_mask"] == 2 / 5
  assert report["total"]["replaced_by_other"] == 3 / 5
  write(path, examples, dict(SETTINGS, vocab_sha256="0"))
  report, failed = check(tmp_path, path, "--vocab_file", vocab)
  assert failed and report["files"][0]["problems"] == [
      {"offset": None, "what": "made with another vocabulary than "
                               "--vocab_file"}]


def test_records_of_the_sample(root, tmp_path):
  """The shares that create_pretraining_data is asked for come out."""
  vocab = root / "data" / "sample" / "vocab.txt"
  subprocess.run(
      [sys.executable, str(root / "create_pretraining_data.py"),
       "--input_file", str(root / "data" / "sample" / "corpus.txt"),
       "--output_file", str(tmp_path / "s.tfrecord"), "--vocab_file",
       str(vocab), "--dupe_factor", "1", "--max_seq_length", "64",
       "--max_predictions_per_seq", "10"], check=True, stderr=subprocess.PIPE)
  report, failed = check(tmp_path, tmp_path, "--vocab_file", vocab)
  assert not failed
  total = report["total"]
  path = str(tmp_path / "s.tfrecord")
  found = [records.decode_example(p) for p in records.read_records(path)]
  assert total["num_records"] == len(found) > 1000
  tokens = sum(sum(f["input_mask"]) for f in found)
  predictions = sum(sum(f["masked_lm_weights"]) for f in found)
  assert total["token_fill"] == tokens / len(found) / 64
  assert total["masked"] == predictions / tokens
  assert total["random_next"] == sum(
      f["next_sentence_labels"][0] for f in found) / len(found)
  assert abs(total["masked"] - 0.15) < 0.01
  assert abs(total["replaced_by_mask"] - 0.8) < 0.02
  assert report["total"]["remarks"] == []


# ------------------------------------------------------- decoding in bulk


def tf_payload(example, names):
  """Returns TensorFlow's own bytes, the features in the order of `names`."""
  parts = []
  for name in names:
    message = tf.train.Example()
    feature = message.features.feature[name]
    if isinstance(example[name][0], float):
      feature.float_list.value.extend(example[name])
    else:
      feature.int64_list.value.extend(example[name])
    parts.append(message.features.SerializeToString())
  return records._field(1, b"".join(parts))


def counts_of(seq=SEQ, predictions=PREDICTIONS):
  return {name: count for name, (count, _) in
          record_checks.features_of(seq, predictions).items()}


def test_every_order_and_size_of_ids():
  chance = random.Random(1)
  examples, payloads = [], []
  for i in range(200):
    example = features(chance.randint(3, SEQ), [1, 2], label=i % 2)
    # At first ids of one byte alone, then of one to three bytes.
    largest = 128 if i < 50 else 30522
    example["input_ids"] = [chance.choice([
        0, 1, largest - 1, chance.randrange(largest), min(largest - 1, 16384)])
                            for _ in range(SEQ)]
    example["masked_lm_ids"] = [chance.randrange(largest) for _ in range(3)]
    names = list(example)
    chance.shuffle(names)
    examples.append(example)
    payloads.append(tf_payload(example, names))
    assert tf.train.Example.FromString(payloads[-1]).features.feature[
        "input_ids"].int64_list.value == example["input_ids"]
  for piece in (slice(0, 50), slice(50, 200), slice(0, 200)):
    good, values = record_batches.decode(payloads[piece], counts_of())
    assert good.all()
    for name in record_batches.NAMES:
      assert values[name].tolist() == [e[name] for e in examples[piece]]


def test_the_slow_way_for_what_is_unusual(tmp_path):
  """Unpacked lists, an additional feature, huge ids: counted, or told."""
  plain = features(16, [1, 5, 9])
  packed = b"".join(map(records._varint, plain["input_ids"]))
  unpacked = b"".join(b"\x08" + records._varint(i)
                      for i in plain["input_ids"])
  whole = records.encode_features(plain)
  (_, _, body), = records._fields(whole)
  example = records._field(1, body.replace(
      records._entry("input_ids", 3, packed),
      records._field(1, records._field(1, b"input_ids")
                     + records._field(2, records._field(3, unpacked)))))
  assert example != whole
  assert records.decode_example(example) == plain
  more = dict(plain, extra=[5])
  huge = dict(plain, input_ids=[1 << 62] + plain["input_ids"][1:])
  good, _ = record_batches.decode(
      [whole, example, records.encode_features(more),
       records.encode_features(huge)], counts_of())
  assert good.tolist() == [True, False, False, False]
  offsets = write(tmp_path / "x.tfrecord", [plain, example, more, huge])
  report = record_statistics.check_file(str(tmp_path / "x.tfrecord"))
  assert report.tally.sums["sound"] == 3
  assert report.tally.sums["tokens"] == 48
  assert report.tally.sums["masked"] == 9
  assert report.problems == [
      (offsets[3], "has %d in input_ids, which takes values from 0 to below "
                   "30522" % (1 << 62))]


def test_rubbish_never_passes_nor_fails():
  """Whatever is flipped, the fast way says what the slow way says."""
  chance = random.Random(2)
  whole = records.encode_features(features(12, [1, 5]))
  payloads = []
  for i in range(3000):
    data = bytearray(whole)
    for _ in range(chance.randint(1, 2)):
      data[chance.randrange(len(data))] = chance.choice(
          [0, 1, 0x0a, 0x7f, 0x80, 0xff, chance.randrange(256)])
    payloads.append(bytes(data[:chance.randrange(len(data))]
                          if i % 7 == 0 else data))
  payloads += [b"", b"\x0a", b"\x0a\x00", whole]
  good, values = record_batches.decode(payloads, counts_of())
  assert good[-1] and not good[-4:-1].any()
  assert 200 < good.sum() < 3000
  for row, i in enumerate(np.flatnonzero(good)):
    slow = records.decode_example(payloads[i])
    for name in record_batches.NAMES:
      expected = np.array([slow[name]], values[name].dtype)
      assert expected.tobytes() == values[name][row:row + 1].tobytes()


def test_as_the_plain_reader_at_each_batch_size(tmp_path, monkeypatch):
  chance = random.Random(3)
  examples = [features(chance.randint(6, SEQ), [1, 4], label=i % 2)
              for i in range(50)]
  path = tmp_path / "x.tfrecord"
  write(path, examples)
  for size in (1, 7, 50, 51):
    monkeypatch.setattr(record_statistics, "_BATCH", size)
    report = record_statistics.check_file(str(path))
    assert not report.problems
    assert report.tally.sums["tokens"] == sum(
        sum(e["input_mask"]) for e in examples)
    assert report.tally.sums["random_next"] == 25


# ------------------------------------------------------------------ damage


@pytest.fixture
def path(tmp_path):
  return tmp_path / "x.tfrecord"


EXAMPLES = [features(16, [1, 5, 9]), features(10, [2, 3]),
            features(6, [4]), features(12, [7])]


def test_damaged_content_is_passed_over(path):
  offsets = write(path, EXAMPLES)
  change(path, offsets[1] + 12)
  change(path, offsets[3] - 1)  # the CRC of record 2
  report = record_statistics.check_file(str(path))
  assert report.problems == [(offsets[1], "damaged content (wrong CRC)"),
                             (offsets[2], "damaged content (wrong CRC)")]
  sums = report.tally.sums
  assert (sums["records"], sums["sound"], sums["damaged"]) == (4, 2, 2)
  assert sums["tokens"] == 16 + 12


@pytest.mark.parametrize("byte", [0, 7, 8, 11])
def test_damaged_length_ends_the_file(path, byte):
  offsets = write(path, EXAMPLES)
  change(path, offsets[2] + byte)
  report = record_statistics.check_file(str(path))
  assert report.problems == [(
      offsets[2], "damaged length (wrong CRC): the %d bytes from here on "
      "cannot be read" % (offsets[4] - offsets[2]))]
  assert report.tally.sums["sound"] == report.tally.sums["records"] == 2


def test_truncated(path):
  for cut in (1, 11, 12, 13, 100):
    offsets = write(path, EXAMPLES)
    change(path, offsets[3] + cut, "cut")
    size = "has %d bytes instead of the %d of its settings" % (
        offsets[3] + cut, offsets[4])
    assert problems(path) == [(offsets[3], "the file ends (truncated)"),
                              (None, size)]


def test_cut_between_two_records(path):
  """Only the settings tell; without them it is a whole file."""
  offsets = write(path, EXAMPLES)
  change(path, offsets[3], "cut")
  assert problems(path) == [
      (None, "has %d bytes instead of the %d of its settings"
       % (offsets[3], offsets[4])),
      (None, "has 3 records instead of the 4 of its settings")]
  os.remove(records.settings_path(str(path)))
  report = record_statistics.check_file(str(path))
  assert not report.problems
  assert report.remarks == ["no settings beside it"]


@pytest.mark.parametrize("changes, what", [
    (dict(input_ids=[VOCAB] * SEQ),
     "has 30522 in input_ids, which takes values from 0 to below 30522"),
    (dict(masked_lm_ids=[1, -5, 0]), "has -5 in masked_lm_ids, which"),
    (dict(input_mask=[1, 0, 1] + [0] * 13),
     "input_mask is not ones, then zeros"),
    (dict(input_mask=[0] * SEQ), "input_mask is not ones, then zeros"),
    (dict(input_mask=[2] * SEQ), "has 2 in input_mask, which"),
    (dict(segment_ids=[2] * SEQ), "has 2 in segment_ids, which"),
    (dict(masked_lm_positions=[2, 10, 0]),
     "masks position 10, but has 10 real tokens"),
    (dict(masked_lm_positions=[2, 3, SEQ]),
     "has 16 in masked_lm_positions, which takes values from 0 to below 16"),
    (dict(masked_lm_positions=[3, 2, 0]),
     "masked_lm_positions are out of order"),
    (dict(masked_lm_positions=[3, 3, 0]),
     "masked_lm_positions are out of order"),
    (dict(masked_lm_weights=[0.0, 1.0, 0.0]),
     "masked_lm_weights is not ones, then zeros"),
    (dict(masked_lm_weights=[1.0, 0.5, 0.0]),
     "masked_lm_weights is not ones, then zeros"),
    (dict(masked_lm_weights=[float("nan"), 0.0, 0.0]),
     "has nan in masked_lm_weights, which"),
    (dict(masked_lm_weights=[1, 1, 0]),
     "has other values than float in masked_lm_weights"),
    (dict(next_sentence_labels=[2]), "has 2 in next_sentence_labels, which"),
    (dict(next_sentence_labels=None),
     "lacks the feature 'next_sentence_labels'"),
    (dict(segment_ids=[0] * 15), "has 15 values in segment_ids, not 16"),
    (dict(input_ids=[]), "has 0 values in input_ids, not 16"),
    (b"no example", "not a serialized tf.train.Example"),
    (b"", "lacks the feature 'input_ids'")])
def test_unsound_records(path, changes, what):
  """With and without settings, alone at its offset among sound records."""
  bad = changes
  if isinstance(changes, dict):
    bad = dict(features(10, [2, 3]), **changes)
    bad = {name: value for name, value in bad.items() if value is not None}
  for settings in (SETTINGS, None):
    offsets = write(path, EXAMPLES[:2] + [bad] + EXAMPLES[2:], settings)
    if settings is None and "30522" in what:
      continue  # Nothing says how many ids there are.
    report = record_statistics.check_file(str(path))
    (offset, found), = report.problems
    assert offset == offsets[2]
    assert found.startswith(what), found
    assert report.tally.sums["sound"] == 4
    assert report.tally.sums["records"] == 5


def test_other_lengths_than_the_settings(path):
  write(path, EXAMPLES, dict(SETTINGS, max_seq_length=32))
  report = record_statistics.check_file(str(path))
  assert report.num_problems == 4 and not report.tally.sums["sound"]
  assert report.problems[0] == (0, "has 16 values in input_ids, not 32")


def test_a_record_of_a_gigabyte_is_not_read(path):
  """Its length is right and so is its CRC; the rest is a hole on the disk."""
  length = struct.pack("<Q", 1 << 30)
  path.write_bytes(length + struct.pack("<I", records.masked_crc(length)))
  with open(str(path), "ab") as stream:
    stream.truncate((1 << 30) + 16)
  assert problems(path) == [
      (0, "1073741824 bytes are no pre-training record")]


def test_only_so_many_complaints_are_kept(path):
  offsets = write(path, [b"x"] * 150 + EXAMPLES)
  report = record_statistics.check_file(str(path))
  assert report.num_problems == report.tally.sums["damaged"] == 150
  assert [p[0] for p in report.problems] == offsets[:100]


@pytest.mark.parametrize("content, what", [
    (b"", "holds no records"),
    (b"\x89PNG" * 100, "not a TFRecord file, or its first bytes are damaged"),
    (b"Call me", "the file ends (truncated)")])
def test_no_records(path, content, what):
  path.write_bytes(content)
  (offset, found), = problems(path)
  assert found == what and offset in (0, None)


@pytest.mark.parametrize("settings, what", [
    ("{", "is not valid JSON"), ("{}", "unknown format"), (b"\xff", "JSON"),
    (json.dumps({"format": 1, "max_seq_length": 0}),
     "its settings have max_seq_length 0"),
    (json.dumps(dict(SETTINGS, format=1, num_records="4")),
     "its settings have num_records '4'")])
def test_damaged_settings(path, settings, what):
  write(path, EXAMPLES)
  with open(records.settings_path(str(path)), "wb") as stream:
    stream.write(settings if isinstance(settings, bytes)
                 else settings.encode())
  (offset, found), = problems(path)
  assert offset is None and what in found
  assert record_statistics.check_file(str(path)).tally.sums["sound"] == 4


def test_file_that_cannot_be_read(tmp_path):
  assert problems(tmp_path / "gone.tfrecord") == [
      (None, "cannot be read (No such file or directory)")]


# ------------------------------------------------------------ command line


def many(folder, count=30):
  """Writes files of different sizes, two of them damaged."""
  chance = random.Random(4)
  folder.mkdir()
  for i in range(count):
    path = folder / ("%02d.tfrecord" % i)
    offsets = write(path, [
        features(chance.randint(8, SEQ), [1, 4], label=chance.randrange(2))
        for _ in range(chance.randint(20, 60))])
    if i in (5, 11):
      change(path, offsets[3] + 20)
  return offsets


def test_workers_give_the_same_report(tmp_path, capsys):
  many(tmp_path / "in")
  found = []
  for workers in ("1", "3"):
    out = tmp_path / workers
    with pytest.raises(SystemExit):
      check_records.main([str(tmp_path / "in"), "--num_workers", workers,
                          "--output_dir", str(out)])
    text = capsys.readouterr().out.split("read in")[0]
    found.append((text, (out / check_records.REPORT).read_bytes(),
                  (out / check_records.PICTURE).read_bytes()))
  assert found[0] == found[1]
  report = json.loads(found[0][1].decode())
  assert [os.path.basename(e["path"]) for e in report["files"]] == [
      "%02d.tfrecord" % i for i in range(30)]
  total = report["total"]
  for name in ("num_records", "num_bytes", "damaged"):
    assert total[name] == sum(e[name] for e in report["files"])
  assert total["damaged"] == total["damaged_files"] == 2
  # The damaged ones come first, then the oddest; twenty in all.
  rows = found[0][0].split("random %")[1].split("\n\n")[0].splitlines()[1:]
  assert len(rows) == 20
  assert [row.split()[0] for row in rows[:2]] == ["05.tfrecord",
                                                  "11.tfrecord"]


def test_the_odd_file_is_shown(tmp_path, capsys):
  folder = tmp_path / "in"
  many(folder)
  write(folder / "odd.tfrecord", [features(16, [2], label=1)] * 40)
  with pytest.raises(SystemExit):
    check_records.main([str(folder), "--output_dir", str(tmp_path / "out")])
  assert capsys.readouterr().out.split("11.tfrecord")[1].split("\n")[
      1].startswith("odd.tfrecord")
  with pytest.raises(SystemExit):
    check_records.main([str(folder), "--output_dir", str(tmp_path / "out"),
                        "--per_file"])
  table = capsys.readouterr().out.split("Damage")[0]
  assert sum(".tfrecord " in line for line in table.splitlines()) == 31


def test_command_line(root, tmp_path):
  """One clear line and status 1; the report and the picture are there."""
  folder = tmp_path / "in"
  (folder / "deep").mkdir(parents=True)
  write(folder / "a.tfrecord", EXAMPLES)
  offsets = write(folder / "deep" / "b.tfrecord-00001-of-2", EXAMPLES, None)
  change(folder / "deep" / "b.tfrecord-00001-of-2", offsets[1] + 50)
  (folder / "lost.tfrecord.settings.json").write_text("{}")
  (folder / ".a.tfrecord.1.tmp").write_text("left by a killed writer")
  (folder / "notes.txt").write_text("no records")
  done = subprocess.run(
      [sys.executable, str(root / "data" / "check_records.py"), str(folder)],
      cwd=str(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
  err = done.stderr.decode()
  assert done.returncode == 1
  assert err == ("ERROR: 1 of 2 files are damaged, the first: "
                 "%s/deep/b.tfrecord-00001-of-2: byte %d: damaged content "
                 "(wrong CRC); make them again\n" % (folder, offsets[1]))
  out = done.stdout.decode()
  assert "no settings beside it: 1 of 2 files" in out
  assert "lost.tfrecord.settings.json has no record file beside it" in out
  assert json.loads((tmp_path / "check_records.json").read_text())["total"][
      "num_records"] == 8
  content = (tmp_path / "check_records.png").read_bytes()
  assert content.startswith(b"\x89PNG\r\n\x1a\n")
  assert struct.unpack(">II", content[16:24]) == (1144, 792)


def test_nothing_but_junk(tmp_path, capsys):
  """There is nothing to draw, which is no reason to fail otherwise."""
  (tmp_path / "junk.tfrecord").write_bytes(b"\x89PNG" * 100)
  report, failed = check(tmp_path, tmp_path / "junk.tfrecord")
  assert failed and report["total"]["damaged_files"] == 1
  assert report["total"]["token_fill"] is None
  assert (tmp_path / "out" / check_records.PICTURE).exists()
  assert capsys.readouterr().err == (
      "ERROR: 1 of 1 files are damaged, the first: %s: byte 0: not a TFRecord "
      "file, or its first bytes are damaged; make them again\n"
      % (tmp_path / "junk.tfrecord"))


def test_files_of_different_making(tmp_path):
  write(tmp_path / "a.tfrecord", EXAMPLES)
  write(tmp_path / "b.tfrecord", EXAMPLES, dict(SETTINGS, do_lower_case=True))
  write(tmp_path / "c.tfrecord", EXAMPLES, dict(SETTINGS, do_lower_case=False))
  report, failed = check(tmp_path, tmp_path / "*.tfrecord")
  assert not failed
  assert [r for r in report["total"]["remarks"] if "differ" in r] == [
      "the files differ in do_lower_case: False (%s), True (%s)"
      % (tmp_path / "c.tfrecord", tmp_path / "b.tfrecord")]


@pytest.mark.parametrize("arguments, message", [
    (["{}/none*"], "no record file matches {}/none*"),
    (["{}/empty"], "{}/empty: no *.tfrecord file in this folder"),
    (["{}/x.tfrecord", "--num_workers", "0"], "--num_workers=0"),
    (["{}/x.tfrecord", "--vocab_file", "{}/none"], "--vocab_file: no such"),
    (["{}/x.tfrecord", "--vocab_file", "{}/vocab.txt"], "no token [MASK]"),
    (["{}/x.tfrecord", "--output_dir", "{}/vocab.txt"], "--output_dir")])
def test_bad_arguments(tmp_path, monkeypatch, capsys, arguments, message):
  monkeypatch.chdir(str(tmp_path))
  write(tmp_path / "x.tfrecord", EXAMPLES)
  (tmp_path / "empty").mkdir()
  (tmp_path / "vocab.txt").write_text("a\nb\n")
  with pytest.raises(SystemExit) as caught:
    check_records.main([a.format(tmp_path) for a in arguments])
  assert caught.value.code == 1
  err = capsys.readouterr().err
  assert err.startswith("ERROR: ") and err.count("\n") == 1
  assert message.format(tmp_path) in err


def test_memory_does_not_grow_with_the_file(tmp_path):
  """Eight times the records: less than 8 MB more at the peak."""
  peaks = []
  for times in (1, 8):
    path = str(tmp_path / ("%d.tfrecord" % times))
    payload = records.encode_features(features(16, [1, 5, 9]))
    records.write_records(path, [payload] * (5000 * times))
    done = subprocess.run(
        [sys.executable, "-c",
         "import sys; sys.path.insert(0, %r)\n"
         "from utils import record_statistics\n"
         "record_statistics.check_file(%r)\n"
         "assert 'tensorflow' not in sys.modules\n"
         % (str(check_records.__file__).rsplit("/", 2)[0], path)
         + peak_memory.PRINT],
        stdout=subprocess.PIPE, check=True)
    peaks.append(peak_memory.of_printed(done.stdout))
  assert peaks[1] - peaks[0] < 8 << 10
