"""What is in a file of pre-training records, and which of them are damaged.

A file is read in pieces, so memory does not grow with it. All sums are whole
numbers: files can be added up in any order.
"""

import collections
import math
import os
import struct

import numpy as np

from utils import record_batches
from utils import record_checks
from utils import records
from utils.errors import UserError

# Complaints of one file that are kept; the others are counted.
MOST_PROBLEMS = 100
# More payload bytes than a record of the longest sequences could have.
LARGEST_RECORD = 1 << 20
# Without settings: ids from here on are no ids. It bounds the table of ids.
LARGEST_VOCABULARY = 1 << 21
SEGMENTS = 2

# Records, and bytes, that are decoded at once.
_BATCH, _BATCH_BYTES = 768, 4 << 20
_READ_AHEAD = 1 << 20
_HEADER = struct.Struct("<QI")
_CRC = struct.Struct("<I")
_LENGTH_BYTES = 8


class Vocabulary(collections.namedtuple(
    "Vocabulary", ["size", "mask_id", "sha256"])):
  """What must be known of a vocabulary file: number of ids, id of [MASK]."""
  __slots__ = ()


def _added(first, second):
  """Returns the sum of two tables of counts; they may differ in length."""
  if len(first) < len(second):
    first, second = second, first
  total = first.copy()
  total[:len(second)] += second
  return total


class Tally(object):
  """Sums over records.

  Attributes:
    sums: Counter. records, damaged, bytes of all records; of those that are
      not damaged: sound, positions, tokens (real ones), predictions,
      random_next, full (without padding), short (less than half full); of
      the predictions of files whose [MASK] is known: outcomes, masked, same,
      other.
    lengths: int array, the number of records of each number of real tokens.
    predictions: int array, likewise of predictions.
  """

  def __init__(self):
    self.sums = collections.Counter()
    self.lengths = np.zeros(0, np.int64)
    self.predictions = np.zeros(0, np.int64)

  def add(self, other):
    """Adds another Tally."""
    self.sums.update(other.sums)
    self.lengths = _added(self.lengths, other.lengths)
    self.predictions = _added(self.predictions, other.predictions)

  def add_records(self, values):
    """Adds sound records: a dict from feature to array [n, values]."""
    size = values["input_mask"].shape[1]
    lengths = np.count_nonzero(values["input_mask"], axis=1)
    predictions = np.count_nonzero(values["masked_lm_weights"], axis=1)
    self.lengths = _added(self.lengths, np.bincount(lengths))
    self.predictions = _added(self.predictions, np.bincount(predictions))
    self.sums.update({
        "sound": len(lengths),
        "positions": len(lengths) * size,
        "tokens": int(lengths.sum()),
        "predictions": int(predictions.sum()),
        "random_next": int(np.count_nonzero(values["next_sentence_labels"])),
        "full": int(np.count_nonzero(lengths == size)),
        "short": int(np.count_nonzero(2 * lengths < size))})


class FileReport(object):
  """What was found in one file.

  Attributes:
    path: the file.
    num_bytes: its size.
    tally: Tally.
    counts: dict from feature to its number of values; None if not known.
    identity: dict, which settings should be equal in all files.
    problems: list of (byte offset or None, text), MOST_PROBLEMS at most.
    num_problems: int, all of them.
    remarks: list of str: what is odd, but no damage.
    mask_id: id of [MASK]; None if not known.
    is_mask_guessed: whether it is the commonest replacement, no more.
  """

  def __init__(self, path):
    self.path = path
    self.num_bytes = 0
    self.tally = Tally()
    self.counts = None
    self.identity = {}
    self.problems = []
    self.num_problems = 0
    self.remarks = []
    self.mask_id = None
    self.is_mask_guessed = False

  def complain(self, offset, what):
    self.num_problems += 1
    if len(self.problems) < MOST_PROBLEMS:
      self.problems.append((offset, what))


def read_frames(stream, size):
  """Yields (offset, payload, None) or (offset, None, what is wrong).

  Stops where the next record cannot be found. A record that is whole but for
  its content gives an empty payload with what is wrong.

  Args:
    stream: binary stream of a record file.
    size: the file's size.
  """
  headers, offset = {}, 0
  while offset < size:
    header = stream.read(_HEADER.size)
    if len(header) < _HEADER.size:
      yield offset, None, "the file ends (truncated)"
      return
    length = headers.get(header)
    if length is None:
      length, crc = _HEADER.unpack(header)
      if crc != records.masked_crc(header[:_LENGTH_BYTES]):
        yield offset, None, _wrong_length(offset, size)
        return
      if length <= LARGEST_RECORD:
        headers[header] = length
    end = offset + _HEADER.size + length + _CRC.size
    if end > size:
      yield offset, None, "the file ends (truncated)"
      return
    if length > LARGEST_RECORD:
      stream.seek(end)
      yield offset, b"", "%d bytes are no pre-training record" % length
    else:
      whole = stream.read(length + _CRC.size)
      payload = whole[:length]
      if whole[length:] == _CRC.pack(records.masked_crc(payload)):
        yield offset, payload, None
      else:
        yield offset, b"", "damaged content (wrong CRC)"
    offset = end


def _wrong_length(offset, size):
  if not offset:
    return "not a TFRecord file, or its first bytes are damaged"
  return ("damaged length (wrong CRC): the %d bytes from here on cannot be "
          "read" % (size - offset))


# ------------------------------------------------------------ sound or not


def _decode_one(payload, features):
  """Returns (values, None) of one record, or (None, what is wrong).

  Args:
    payload: bytes.
    features: dict of `record_checks.features_of`.

  Returns:
    values: dict from feature to an array [1, count].
  """
  try:
    found = records.decode_example(payload)
  except ValueError as error:
    return None, str(error)
  values = {}
  for name, (count, _) in features.items():
    kind = float if name == record_batches.FLOATS else int
    if name not in found:
      return None, "lacks the feature %r" % name
    if len(found[name]) != count:
      return None, "has %d values in %s, not %d" % (
          len(found[name]), name, count)
    if not all(isinstance(value, kind) for value in found[name]):
      return None, "has other values than %s in %s" % (kind.__name__, name)
    try:
      values[name] = np.array(
          [found[name]], np.float32 if kind is float else np.int64)
    except OverflowError:
      return None, "has a value of more than 64 bits in %s" % name
  return values, None


def _checks(values, features):
  """Yields (bool array [n], which are wrong; function of a row, in words).

  Args:
    values: dict from feature to array [n, count].
    features: dict of `record_checks.features_of`.
  """
  for name, (_, bound) in features.items():
    found = values[name]
    if found.size and 0 <= found.min() and found.max() < bound:
      continue
    outside = ~((found >= 0) & (found < bound))
    yield outside.any(axis=1), lambda row: (
        "has %s in %s, which takes values from 0 to below %s"
        % (found[row][outside[row]][0], name, bound))
  mask, weights = values["input_mask"], values["masked_lm_weights"]
  positions = values["masked_lm_positions"]
  yield ((mask[:, 0] != 1) | (mask[:, 1:] > mask[:, :-1]).any(axis=1),
         lambda row: "input_mask is not ones, then zeros")
  real = weights == 1
  yield ((weights[:, 1:] > weights[:, :-1]).any(axis=1)
         | ~(real | (weights == 0)).all(axis=1),
         lambda row: "masked_lm_weights is not ones, then zeros")
  lengths = np.count_nonzero(mask, axis=1)
  beyond = real & (positions >= lengths[:, None])
  yield beyond.any(axis=1), lambda row: (
      "masks position %d, but has %d real tokens"
      % (positions[row][beyond[row]][0], lengths[row]))
  yield ((real[:, 1:] & (positions[:, 1:] <= positions[:, :-1])).any(axis=1),
         lambda row: "masked_lm_positions are out of order")


def find_unsound(values, features):
  """Returns {row: what is wrong first} of decoded records.

  Args:
    values: dict from feature to array [n, count].
    features: dict of `record_checks.features_of`.
  """
  unsound = {}
  with np.errstate(invalid="ignore"):  # of NaN
    for wrong, words in _checks(values, features):
      for row in np.flatnonzero(wrong).tolist():
        if row not in unsound:
          unsound[row] = words(row)
  return unsound


# --------------------------------------------------------------- one file


class _Scan(object):
  """The reading of one file."""

  def __init__(self, report, features, vocab_size):
    self._report = report
    self._features = features
    self._vocab_size = vocab_size
    self._offsets, self._payloads, self._waiting = [], [], 0
    self._same = 0
    # How often each id stands where another one is to be predicted.
    self._replaced = np.zeros(0, np.int64)

  def add(self, offset, payload):
    """Takes a record whose frame is whole; looks at many at once."""
    self._offsets.append(offset)
    self._payloads.append(payload)
    self._waiting += len(payload)
    if len(self._payloads) == _BATCH or self._waiting > _BATCH_BYTES:
      self.flush()

  def flush(self):
    """Looks at all records that wait."""
    if self._payloads:
      self._add_batch(self._offsets, self._payloads)
    self._offsets, self._payloads, self._waiting = [], [], 0

  def _add_batch(self, offsets, payloads):
    if self._features is None:
      self._features = _features_of_first(payloads, self._vocab_size)
    if self._features is None:
      for offset in offsets:
        self.damaged(offset, "not a serialized pre-training tf.train.Example")
      return
    counts = {name: count for name, (count, _) in self._features.items()}
    good, values = record_batches.decode(payloads, counts)
    self._add_decoded(np.asarray(offsets)[good].tolist(), values)
    for row in np.flatnonzero(~good).tolist():
      values, what = _decode_one(payloads[row], self._features)
      if what:
        self.damaged(offsets[row], what)
      else:
        self._add_decoded([offsets[row]], values)

  def damaged(self, offset, what):
    """Notes a record that cannot be used."""
    self._report.tally.sums["damaged"] += 1
    self._report.complain(offset, what)

  def _add_decoded(self, offsets, values):
    unsound = find_unsound(values, self._features)
    for row, what in sorted(unsound.items()):
      self.damaged(offsets[row], what)
    if unsound:
      sound = np.ones(len(offsets), bool)
      sound[list(unsound)] = False
      values = {name: array[sound] for name, array in values.items()}
    self._report.tally.add_records(values)
    real = values["masked_lm_weights"] == 1
    ids = np.take_along_axis(
        values["input_ids"], values["masked_lm_positions"].astype(np.intp),
        axis=1)[real]
    replaced = ids[ids != values["masked_lm_ids"][real]]
    self._same += len(ids) - len(replaced)
    self._replaced = _added(self._replaced, np.bincount(replaced))

  def finish(self, mask_id):
    """Tells the outcomes of masking, if [MASK] is known or can be guessed."""
    report = self._report
    if self._features:
      report.counts = {name: count
                       for name, (count, _) in self._features.items()}
    total = int(self._replaced.sum())
    if mask_id is None and total and 2 * self._replaced.max() > total:
      mask_id = int(self._replaced.argmax())
      report.is_mask_guessed = True
    report.mask_id = mask_id
    if mask_id is not None:
      masked = int(self._replaced[mask_id:mask_id + 1].sum())
      report.tally.sums.update({
          "outcomes": self._same + total, "same": self._same,
          "masked": masked, "other": total - masked})


def _features_of_first(payloads, vocab_size):
  """Returns the features as the first record that can be read has them."""
  for payload in payloads:
    try:
      found = records.decode_example(payload)
    except ValueError:
      continue
    size = len(found.get("input_ids", ()))
    predictions = len(found.get("masked_lm_positions", ()))
    if size and predictions:
      return record_checks.features_of(size, predictions, vocab_size, SEGMENTS)
  return None


# What settings must have, from the least to the most.
_NUMBERS = {"max_seq_length": (1, LARGEST_RECORD),
            "max_predictions_per_seq": (1, LARGEST_RECORD),
            "vocab_size": (1, LARGEST_VOCABULARY),
            "num_records": (0, math.inf), "num_bytes": (0, math.inf)}


def _read_settings(report, vocabulary):
  """Returns (settings or None, features or None), with what is odd noted."""
  try:
    settings = records.read_settings(report.path)
  except UserError as error:
    report.complain(None, str(error))
    return None, None
  if settings is None:
    report.remarks.append("no settings beside it")
    return None, None
  for name, (least, most) in _NUMBERS.items():
    value = settings.get(name)
    if not (isinstance(value, int) and least <= value <= most):
      report.complain(None, "its settings have %s %r" % (name, value))
      return None, None
  report.identity = {name: settings[name] for name in (
      "max_seq_length", "max_predictions_per_seq", "vocab_sha256",
      "do_lower_case") if name in settings}
  if vocabulary and settings.get("vocab_sha256") != vocabulary.sha256:
    report.complain(None, "made with another vocabulary than --vocab_file")
  return settings, record_checks.features_of(
      settings["max_seq_length"], settings["max_predictions_per_seq"],
      settings["vocab_size"], SEGMENTS)


def _check_size(report, settings, is_read_to_the_end):
  tally = report.tally
  if not tally.sums["records"] and not report.problems:
    report.complain(None, "holds no records")
  if settings is None:
    return
  if settings["num_bytes"] != report.num_bytes:
    report.complain(None, "has %d bytes instead of the %d of its settings"
                    % (report.num_bytes, settings["num_bytes"]))
  if is_read_to_the_end and settings["num_records"] != tally.sums["records"]:
    report.complain(None, "has %d records instead of the %d of its settings"
                    % (tally.sums["records"], settings["num_records"]))


def _read(scan, report, stream):
  """Reads a record file; says whether its end was reached."""
  report.num_bytes = os.fstat(stream.fileno()).st_size
  count, reached = 0, True
  for offset, payload, what in read_frames(stream, report.num_bytes):
    if what:
      scan.damaged(offset, what)
      reached = payload is not None
    else:
      scan.add(offset, payload)
    count += reached
  scan.flush()
  report.tally.sums.update(records=count, bytes=report.num_bytes)
  return reached


def check_file(path, vocabulary=None):
  """Reads every record of a file.

  Args:
    path: the record file.
    vocabulary: Vocabulary that it should have been made with, or None.

  Returns:
    FileReport; bad files are told there, not raised.
  """
  report = FileReport(path)
  settings, features = _read_settings(report, vocabulary)
  scan = _Scan(report, features,
               vocabulary.size if vocabulary else LARGEST_VOCABULARY)
  reached = False
  try:
    with open(path, "rb", _READ_AHEAD) as stream:
      reached = _read(scan, report, stream)
  except OSError as error:
    report.complain(None, "cannot be read (%s)" % error.strerror)
  else:
    _check_size(report, settings, reached)
  scan.finish(vocabulary.mask_id if vocabulary else None)
  report.problems.sort(key=lambda p: (p[0] is None, p[0] or 0))
  return report
