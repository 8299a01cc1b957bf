"""Framed records of pre-training instances, many at a time, with numpy.

What `records.RecordWriter` frames and `records.encode_features` serializes one
by one comes out here, byte for byte, a batch at a time. So it shares that
module's pieces of the two formats.
"""

import google_crc32c
import numpy as np

from utils import records

# pylint: disable=protected-access


class BatchEncoder(object):
  """Turns pre-training instances into framed records, many at a time.

  The records of a batch are laid out side by side in a matrix of bytes, each
  part in columns of its own that suffice for the longest; a second matrix
  says which bytes there are. What depends on a size alone is looked up.

  Args:
    max_seq_length: number of token places in a record.
    max_predictions_per_seq: number of prediction places in a record.
    vocab_size: number of ids.
  """

  def __init__(self, max_seq_length, max_predictions_per_seq, vocab_size):
    self._seq = max_seq_length
    self._predictions = max_predictions_per_seq
    # The bytes of each value's varint as one uint32, and ones where there are
    # some: looking up numbers is many times as fast as looking up rows.
    values = np.arange(max(vocab_size, max_seq_length), dtype=np.uint32)
    self._bytes, self._has = np.zeros_like(values), np.zeros_like(values)
    for place in range(len(records._varint(len(values) - 1))):
      part, rest = values >> 7 * place, values >> 7 * (place + 1)
      there = (part > 0) | (place == 0)
      byte = part & 0x7f | np.where(rest > 0, 0x80, 0).astype(np.uint32)
      self._bytes |= np.where(there, byte, 0).astype(np.uint32) << 8 * place
      self._has |= there.astype(np.uint32) << 8 * place
    self._tables = {}
    self._labels_next = np.array(
        [list(records._entry("next_sentence_labels", records._INTS,
                             bytes([label]))) for label in (0, 1)], np.uint8)

  def _looked_up(self, kind, sizes):
    """Returns (bytes [n, width], which of them there are) for int sizes [n].

    Args:
      kind: "frame" for the length of a record and its CRC, "body" for what
        stands before all features, else the name of an int feature for what
        stands before its packed values.
      sizes: int array [n], bytes that follow.
    """
    table = self._tables.setdefault(kind, {})
    distinct, rows = np.unique(sizes, return_inverse=True)
    found = []
    for size in distinct.tolist():
      if size not in table:
        table[size] = self._before(kind, size)
      found.append(table[size])
    width = max(map(len, found))
    padded = np.frombuffer(b"".join(f.ljust(width, b"\0") for f in found),
                           np.uint8).reshape(-1, width)
    there = np.arange(width) < np.array([len(f) for f in found])[:, None]
    return padded[rows], there[rows]

  @staticmethod
  def _before(kind, size):
    if kind == "frame":
      length = records._LENGTH.pack(size)
      return length + records._CRC.pack(records.masked_crc(length))
    if kind == "body":
      return b"\x0a" + records._varint(size)
    return records._entry(kind, records._INTS, bytes(size))[:-size]

  def _ints(self, name, values):
    """Returns the parts, (bytes [n, m], which there are), of an int feature.

    Args:
      name: of the feature.
      values: int array [n, values], each below the greater of vocab_size and
        max_seq_length.
    """
    there = self._has.take(values)
    sizes = there.view(np.uint8).sum(axis=1)
    return [self._looked_up(name, sizes), (self._bytes.take(values), there)]

  def _small_ints(self, name, values):
    """The same for values below 128: a byte each, and all are there."""
    header = self._before(name, values.shape[1])
    return [(np.frombuffer(header, np.uint8), True),
            (values.astype(np.uint8), True)]

  def _weights(self, counts):
    size = 4 * self._predictions
    header = records._entry(
        "masked_lm_weights", records._FLOATS, bytes(size))[:-size]
    weights = np.arange(self._predictions) < counts[:, None]
    return [(np.frombuffer(header, np.uint8), True),
            (weights.astype("<f4").view(np.uint8), True)]

  def encode(self, batch):
    """Returns the framed records of a batch, in its order.

    Args:
      batch: `instances.Batch`: input_ids [n, max_seq_length], lengths,
        first_lengths, is_random_next and counts [n], positions and labels
        [n, max_predictions_per_seq].

    Returns:
      (bytes of all records, int array [n] of the places where each ends).
    """
    column = np.arange(self._seq)
    real = column < batch.lengths[:, None]
    positions = self._small_ints if self._seq <= 128 else self._ints
    parts = (
        self._ints("input_ids", batch.input_ids)
        + self._small_ints("input_mask", real)
        + self._ints("masked_lm_ids", batch.labels)
        + positions("masked_lm_positions", batch.positions)
        + self._weights(batch.counts)
        + [(self._labels_next[batch.is_random_next.astype(np.intp)], True)]
        + self._small_ints("segment_ids",
                      real & (column >= batch.first_lengths[:, None])))
    sizes = sum(_num_bytes(part, len(real)) for part in parts)
    body = self._looked_up("body", sizes)
    sizes += body[1].sum(axis=1)
    frame = self._looked_up("frame", sizes)
    crc = (np.zeros(records._CRC.size, np.uint8), True)
    data = _joined([frame, body] + list(parts) + [crc], len(real))
    ends = np.cumsum(sizes + records._HEADER.size + records._CRC.size)
    _fill_crcs(data, ends, sizes)
    return data.tobytes(), ends


def _num_bytes(part, rows):
  """Returns the number of bytes that there are, an int array [rows]."""
  content, there = part
  if there is True:
    return np.full(rows, content.shape[-1] * content.itemsize)
  return there.view(np.uint8).sum(axis=1).astype(np.int64)


def _joined(parts, rows):
  """Returns the bytes that there are, row by row, as a uint8 array.

  Args:
    parts: list of (array [rows, width] or [width] of uint8, or of uint32
      for four bytes each; array of the same shape with a 1 in each byte
      that there is, or True).
    rows: int.
  """
  places, end = [], 0
  for content, _ in parts:
    # Numbers of four bytes are copied as such, so they have to be aligned.
    start = -(-end // content.itemsize) * content.itemsize
    end = start + content.shape[-1] * content.itemsize
    places.append((start // content.itemsize, end // content.itemsize))
  width = -(-end // 4) * 4
  matrix = np.empty((rows, width), np.uint8)
  mask = np.zeros((rows, width), np.uint8)
  for (content, there), (start, end) in zip(parts, places):
    kind = np.uint32 if content.itemsize == 4 else np.uint8
    matrix.view(kind)[:, start:end] = content
    mask.view(kind)[:, start:end] = there
  return matrix[mask.view(bool)]


def _fill_crcs(data, ends, sizes):
  """Puts the masked CRC of each payload behind it.

  Args:
    data: uint8 array of framed records, changed here.
    ends: int array [n], where each record ends.
    sizes: int array [n], of each payload.
  """
  view = data.data
  places = ends - records._CRC.size
  value = google_crc32c.value
  crcs = np.array([value(view[end - size:end].tobytes()) for end, size in zip(
      places.tolist(), sizes.tolist())], np.uint64)
  crcs = ((crcs >> 15 | crcs << 17) + 0xa282ead8 & 0xffffffff).astype("<u4")
  data[places[:, None] + np.arange(records._CRC.size)] = (
      crcs[:, None].view(np.uint8))
