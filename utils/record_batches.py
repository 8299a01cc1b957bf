"""Pre-training records decoded many at once, with numpy.

The usual serialized `tf.train.Example` nests four lengths around the values
of each feature. `decode` walks through all messages of a batch in step, then
decodes each feature of all of them in one go. What it does not know, such as
an additional feature, it leaves to `records.decode_example`.
"""

import numpy as np

NAMES = ("input_ids", "input_mask", "segment_ids", "masked_lm_positions",
         "masked_lm_ids", "masked_lm_weights", "next_sentence_labels")
FLOATS = "masked_lm_weights"

# Varints of so many bytes are known here: values below 2^21.
_MOST_BYTES = 3
# The features' names have different lengths, which tell them apart.
_LONGEST = max(map(len, NAMES))
_INDEX = np.full(_LONGEST + 2, -1)
_INDEX[[len(name) for name in NAMES]] = np.arange(len(NAMES))
_LETTERS = np.array([list(name.encode().ljust(_LONGEST)) for name in NAMES],
                    np.uint8)
_BEYOND = np.array([[i >= len(name) for i in range(_LONGEST)]
                    for name in NAMES])
# Tags of protocol buffer fields that hold bytes: number << 3 | 2.
_FIRST, _SECOND = 0x0a, 0x12
_FLOAT_LIST, _INT_LIST = 0x12, 0x1a
_LISTS = np.array([_FLOAT_LIST if name == FLOATS else _INT_LIST
                   for name in NAMES], np.uint8)


def _windows(data, starts, width):
  """Returns a copy of `width` bytes from each of `starts`, [n, width]."""
  # As one item of `width` bytes a row: each is copied in one go.
  items = np.ndarray(
      len(data) - width + 1, "V%d" % width, buffer=data, strides=1)
  return items[starts].view(np.uint8).reshape(len(starts), width)


class _Walk(object):
  """A reading place in each of many messages, all moved on together.

  Attributes:
    data: uint8 array, all messages, then zeros to read beyond.
    at: int array, the reading places.
    good: bool array, false where something unknown was met.
  """

  def __init__(self, data, starts, size):
    self.data = data
    self.at = starts.copy()
    self.good = np.ones(len(starts), bool)
    self._size = size

  def expect(self, tags):
    """Passes over one byte, which has to be of `tags`."""
    self.good &= self.data[self.at] == tags
    self.at += 1

  def varint(self):
    """Passes over varints and returns their values."""
    value = self.data[self.at].astype(np.int64)
    self.at += 1
    more = value > 127
    for shift in range(7, 7 * _MOST_BYTES, 7):
      if not more.any():
        return value
      byte = self.data[self.at].astype(np.int64)
      value = np.where(more, value & ((1 << shift) - 1) | byte << shift, value)
      self.at += more
      more &= byte > 127
    self.good &= ~more
    return value

  def length(self, ends):
    """Passes over a length, which has to reach up to `ends`; returns it."""
    value = self.varint()
    self.good &= self.at + value == ends
    return value

  def skip(self, sizes):
    # A wrong length must not lead out of the buffer.
    self.at = np.minimum(self.at + sizes, self._size)


def _next_feature(walk):
  """Passes over one feature of each message.

  Returns:
    (index in NAMES, start of the packed values, their number of bytes).
  """
  walk.expect(_FIRST)
  size = walk.varint()
  ends = walk.at + size
  walk.expect(_FIRST)
  letters = walk.varint()
  index = _INDEX[np.minimum(letters, _LONGEST + 1)]
  if (index == index[0]).all():
    index = index[:1]  # The same order in all messages, as most often.
  same = _windows(walk.data, walk.at, _LONGEST) == _LETTERS[index]
  walk.good &= (index >= 0) & (same | _BEYOND[index]).all(axis=1)
  walk.skip(letters)
  walk.expect(_SECOND)
  walk.length(ends)
  walk.expect(_LISTS[index])
  walk.length(ends)
  walk.expect(_FIRST)
  size = walk.length(ends)
  start = walk.at
  walk.skip(size)
  return index, start, size


def _find(data, starts, ends):
  """Finds the packed values of each feature in each message.

  Returns:
    (starts, sizes, good): two int arrays [n, features], in bytes, and a bool
    array [n], false where a message has another layout.
  """
  walk = _Walk(data, starts, ends[-1])
  walk.expect(_FIRST)
  walk.length(ends)
  places = np.zeros((len(starts), len(NAMES)), np.int64)
  sizes = np.zeros_like(places)
  seen = np.zeros(len(starts), np.int64)
  rows = np.arange(len(starts))
  for _ in NAMES:
    index, start, size = _next_feature(walk)
    places[rows, index] = start
    sizes[rows, index] = size
    seen |= 1 << np.maximum(index, 0)
  # As many features as there are names, and each of these: none twice.
  walk.good &= (walk.at == ends) & (seen == (1 << len(NAMES)) - 1)
  return places, sizes, walk.good


def _decode_bytes(data, starts, sizes, count):
  """As `_decode_ints` where every value is one byte."""
  good = sizes == count
  values = _windows(data, starts[good], count)
  if values.size and values.max() > 127:
    good[good] = (values < 128).all(axis=1)
    values = _windows(data, starts[good], count)
  return values, good


def _decode_ints(data, starts, sizes, count):
  """Decodes packed varints.

  Args:
    data: uint8 array.
    starts: int array [n], where they begin.
    sizes: int array [n], how many bytes they have.
    count: how many values a row has to have.

  Returns:
    (values [number of good rows, count], good [n]).
  """
  good = (sizes >= count) & (sizes <= count * _MOST_BYTES)
  if (sizes[good] == count).all():
    return _decode_bytes(data, starts, sizes, count)
  starts, sizes = starts[good], sizes[good]
  # The byte before the values ends a length, so it is below 128 and no value
  # reaches into the row before.
  grid = _windows(data, starts - 1, int(sizes.max()) + 1)
  column = np.arange(grid.shape[1], dtype=np.int32)
  is_end = (grid < 128) & (column <= sizes[:, None].astype(np.int32))
  is_end[:, 0] = False
  rows = np.arange(len(sizes))
  ends = np.flatnonzero(is_end)
  if not (len(ends) == len(rows) * count and (
      ends[count - 1::count] == rows * grid.shape[1] + sizes).all()):
    whole = is_end[rows, sizes] & (np.count_nonzero(is_end, axis=1) == count)
    good[good] = whole
    grid, ends = grid[whole], np.flatnonzero(is_end[whole])
  values, short = _join_bytes(grid.ravel(), ends)
  values, short = values.reshape(-1, count), short.reshape(-1, count)
  if not short.all():
    short = short.all(axis=1)
    good[good] = short
    values = values[short]
  return values, good


def _join_bytes(flat, ends):
  """Returns the values of varints.

  Args:
    flat: uint8 array.
    ends: int array [n], the places of their last bytes.

  Returns:
    (values int32 [n], bool array [n], false where a varint has more bytes
    than are known here).
  """
  values = flat.take(ends).astype(np.int32)
  before = flat.take(ends - 1)
  longer = np.flatnonzero(before > 127)
  before = before.take(longer)
  for i in range(2, _MOST_BYTES + 1):
    values[longer] = values.take(longer) << 7 | before & 127
    before = flat.take(ends.take(longer) - i)
    goes_on = np.flatnonzero(before > 127)
    longer, before = longer.take(goes_on), before.take(goes_on)
  short = np.ones(len(ends), bool)
  short[longer] = False
  return values, short


def _decode_floats(data, starts, sizes, count):
  """As `_decode_ints`, for packed float32."""
  good = sizes == 4 * count
  return _windows(data, starts[good], 4 * count).view("<f4"), good


def decode(payloads, counts):
  """Decodes all those messages at once that have the usual layout.

  Args:
    payloads: list of bytes, serialized.
    counts: dict from each name of NAMES to its number of values.

  Returns:
    (good, values): a bool array, which payloads were understood; a dict from
    name to an array [how many those are, count] of an integer type or
    float32.
  """
  lengths = np.fromiter(map(len, payloads), np.int64, len(payloads))
  ends = np.cumsum(lengths)
  # Room for the windows, and for a walk that met something unknown.
  spare = bytes(4 * max(counts.values()) + 128)
  data = np.frombuffer(b"".join(payloads) + spare, np.uint8)
  places, sizes, good = _find(data, ends - lengths, ends)
  decoded = {}
  for index, name in enumerate(NAMES):
    rows = np.flatnonzero(good)
    function = _decode_floats if name == FLOATS else _decode_ints
    values, known = function(data, places[rows, index], sizes[rows, index],
                             counts[name])
    if not known.all():
      good[rows[~known]] = False
      decoded = {n: v[known] for n, v in decoded.items()}
    decoded[name] = values
  return good, decoded
