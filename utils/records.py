"""TFRecord files of tf.train.Example without TensorFlow, and their settings.

A TFRecord file is a sequence of records: length (uint64), masked CRC-32C of
the length, payload, masked CRC-32C of the payload, all little-endian. The
payload is a serialized `tf.train.Example`; what is written here is, byte for
byte, what TensorFlow's deterministic serialization gives (names sorted).

Beside `x.tfrecord` lies `x.tfrecord.settings.json`: how the records were
made. It is written once the record file is whole, so it vouches for it.
"""

import contextlib
import os
import struct

import google_crc32c

from utils import files
from utils.errors import UserError

SETTINGS_SUFFIX = ".settings.json"
SETTINGS_FORMAT = 1

_HEADER = struct.Struct("<QI")
_LENGTH = struct.Struct("<Q")
_CRC = struct.Struct("<I")
_BUFFER = 1 << 20


def masked_crc(data):
  """Returns the masked CRC-32C (uint32) of bytes, as TFRecord stores it."""
  crc = google_crc32c.value(data)
  return (((crc >> 15) | (crc << 17)) + 0xa282ead8) & 0xffffffff


class RecordWriter(object):
  """Frames payloads into a binary stream.

  Attributes:
    num_records: payloads written so far.
    num_bytes: bytes written so far.
  """

  def __init__(self, stream):
    self._stream = stream
    self._headers = {}
    self.num_records = 0
    self.num_bytes = 0

  def write(self, payload):
    """Writes one record of bytes `payload`."""
    size = len(payload)
    header = self._headers.get(size)
    if header is None:
      length = _LENGTH.pack(size)
      header = length + _CRC.pack(masked_crc(length))
      self._headers[size] = header
    self._stream.write(header + payload + _CRC.pack(masked_crc(payload)))
    self.num_records += 1
    self.num_bytes += _HEADER.size + size + _CRC.size

  def write_framed(self, data, num_records):
    """Writes records that are framed already."""
    self._stream.write(data)
    self.num_records += num_records
    self.num_bytes += len(data)


def write_records(path, payloads):
  """Writes a record file, whole or not at all.

  Args:
    path: the file.
    payloads: iterable of bytes.

  Returns:
    The number of records.
  """
  with files.atomic_write(path, binary=True) as stream:
    writer = RecordWriter(stream)
    for payload in payloads:
      writer.write(payload)
  return writer.num_records


class _Reader(object):
  """Walks through one record file; every complaint names file and byte."""

  def __init__(self, path, stream):
    self._path = path
    self._stream = stream
    self._size = os.fstat(stream.fileno()).st_size
    self._offset = 0

  def _fail(self, what):
    raise UserError("%s: %s in the record at byte %d: make the file again"
                    % (self._path, what, self._offset))

  def _next_length(self):
    """Returns the next payload's length, or None at the end of the file."""
    header = self._stream.read(_HEADER.size)
    if not header:
      return None
    if len(header) < _HEADER.size:
      self._fail("the file ends (truncated)")
    length, crc = _HEADER.unpack(header)
    if crc != masked_crc(header[:_LENGTH.size]):
      if not self._offset:
        raise UserError("%s is not a TFRecord file, or its first bytes are "
                        "damaged" % self._path)
      self._fail("damaged length (wrong CRC)")
    if self._offset + _HEADER.size + length + _CRC.size > self._size:
      self._fail("the file ends (truncated)")
    return length

  def skip(self):
    """Passes over one record without reading it; False at the end."""
    length = self._next_length()
    if length is None:
      return False
    self._stream.seek(length + _CRC.size, os.SEEK_CUR)
    self._offset += _HEADER.size + length + _CRC.size
    return True

  def read(self):
    """Returns the next payload (bytes), or None at the end of the file."""
    length = self._next_length()
    if length is None:
      return None
    payload = self._stream.read(length)
    crc = self._stream.read(_CRC.size)
    if len(payload) < length or len(crc) < _CRC.size:
      self._fail("the file ends (truncated)")
    if _CRC.unpack(crc)[0] != masked_crc(payload):
      self._fail("damaged content (wrong CRC)")
    self._offset += _HEADER.size + length + _CRC.size
    return payload


def _open(path):
  try:
    return open(path, "rb", _BUFFER)
  except OSError as error:
    raise UserError("cannot read the record file %s (%s)"
                    % (path, error.strerror))


def read_records(path, skip=0):
  """Yields the payloads (bytes) of a record file, checked by their CRC.

  Args:
    path: the file.
    skip: number of records to pass over at the start; their content is not
      checked.

  Raises:
    UserError: naming file and byte, where the file is missing, truncated,
      damaged or no TFRecord file.
  """
  with _open(path) as stream:
    reader = _Reader(path, stream)
    for _ in range(skip):
      if not reader.skip():
        return
    while True:
      payload = reader.read()
      if payload is None:
        return
      yield payload


def count_records(path):
  """Returns the number of records in a file.

  The settings beside the file tell it if they are of the file's size;
  without them the lengths in the file are followed to its end.

  Raises:
    UserError: as `read_records`.
  """
  settings = read_settings(path)
  with _open(path) as stream:
    size = os.fstat(stream.fileno()).st_size
    if settings and settings.get("num_bytes") == size:
      return settings["num_records"]
    reader = _Reader(path, stream)
    count = 0
    while reader.skip():
      count += 1
    return count


def _varint(value):
  """Returns the protocol buffer encoding of an int64."""
  value &= 0xffffffffffffffff
  encoded = bytearray()
  while value > 0x7f:
    encoded.append(value & 0x7f | 0x80)
    value >>= 7
  encoded.append(value)
  return bytes(encoded)


def _field(number, content):
  """Returns a length-delimited protocol buffer field."""
  return _varint(number << 3 | 2) + _varint(len(content)) + content


# Numbers of fields in tf.train.Feature.
_BYTES, _FLOATS, _INTS = 1, 2, 3


def _entry(name, kind, packed):
  """Returns one feature of the map in tf.train.Features.

  Args:
    name: the feature's name.
    kind: _FLOATS or _INTS.
    packed: the packed values (bytes).
  """
  values = _field(1, packed) if packed else b""
  return _field(1, _field(1, name.encode("utf-8"))
                + _field(2, _field(kind, values)))


def encode_features(features):
  """Returns the serialized tf.train.Example (bytes) of `features`.

  Args:
    features: dict from name to a list of int (an int64 feature) or a list
      of float (a float32 feature).
  """
  entries = []
  for name, values in sorted(features.items()):
    if values and isinstance(values[0], float):
      entries.append(_entry(name, _FLOATS,
                            struct.pack("<%df" % len(values), *values)))
    else:
      entries.append(_entry(name, _INTS, b"".join(map(_varint, values))))
  return _field(1, b"".join(entries))


def _read_varint(data, offset):
  value = shift = 0
  while True:
    byte = data[offset]
    offset += 1
    value |= (byte & 0x7f) << shift
    if byte < 0x80:
      return value, offset
    shift += 7


def _fields(data):
  """Yields (field number, wire type, value) of a serialized message."""
  offset = 0
  while offset < len(data):
    key, offset = _read_varint(data, offset)
    number, wire = key >> 3, key & 7
    if wire == 0:
      value, offset = _read_varint(data, offset)
    else:
      if wire == 2:
        size, offset = _read_varint(data, offset)
      elif wire in (1, 5):
        size = 8 if wire == 1 else 4
      else:
        raise ValueError("wire type %d" % wire)
      value = data[offset:offset + size]
      if len(value) < size:
        raise ValueError("ends early")
      offset += size
    yield number, wire, value


def _ints_of(message):
  values = []
  for number, wire, value in _fields(message):
    if number != 1:
      raise ValueError("field %d in a list" % number)
    if wire == 0:
      values.append(value)
      continue
    offset = 0
    while offset < len(value):
      number, offset = _read_varint(value, offset)
      values.append(number)
  return [v - (1 << 64) if v >> 63 else v for v in values]


def _floats_of(message):
  packed = b"".join(value for number, _, value in _fields(message)
                    if number == 1)
  return list(struct.unpack("<%df" % (len(packed) // 4), packed))


def _values_of(feature):
  for number, _, message in _fields(feature):
    if number == _INTS:
      return _ints_of(message)
    if number == _FLOATS:
      return _floats_of(message)
    if number == _BYTES:
      return [value for _, _, value in _fields(message)]
  return []


def decode_example(payload):
  """Returns {name: list of int, float or bytes} of a tf.train.Example.

  Args:
    payload: the serialized message, also one that TensorFlow wrote.

  Raises:
    ValueError: if `payload` is no such message.
  """
  features = {}
  try:
    for _, _, message in _fields(payload):
      for _, _, entry in _fields(message):
        parts = {number: value for number, _, value in _fields(entry)}
        features[parts[1].decode("utf-8")] = _values_of(parts.get(2, b""))
  except (IndexError, KeyError, TypeError, AttributeError, ValueError,
          struct.error) as error:
    raise ValueError("not a serialized tf.train.Example (%s)" % error)
  return features


def settings_path(record_file):
  """Returns the path of the settings beside a record file."""
  return record_file + SETTINGS_SUFFIX


def read_settings(record_file):
  """Returns the settings beside a record file (dict), or None without any.

  Raises:
    UserError: if they are there but cannot be read.
  """
  path = settings_path(record_file)
  if not os.path.exists(path):
    return None
  settings = files.read_json(path, "settings of records")
  if (not isinstance(settings, dict)
      or settings.get("format") != SETTINGS_FORMAT):
    raise UserError("%s: unknown format: make the records again" % path)
  return settings


def write_settings(record_file, settings, writer):
  """Writes the settings beside a record file that is whole.

  Args:
    record_file: path of the record file.
    settings: dict, how the records were made.
    writer: the `RecordWriter` that wrote the file.
  """
  whole = {"format": SETTINGS_FORMAT}
  whole.update(settings)
  whole.update(num_records=writer.num_records, num_bytes=writer.num_bytes)
  files.write_json(settings_path(record_file), whole)


def write_in_turn(paths, blocks, settings):
  """Writes records in turn to several files, then the settings of each.

  Args:
    paths: record files; each becomes whole or stays as it was.
    blocks: iterable of (framed records, int array of where each ends), as
      `record_encoder.BatchEncoder.encode` returns.
    settings: dict, how the records were made.

  Returns:
    The number of records in all of them.
  """
  written = 0
  with contextlib.ExitStack() as stack:
    writers = [
        RecordWriter(stack.enter_context(files.atomic_write(p, binary=True)))
        for p in paths]
    for data, ends in blocks:
      _deal(data, ends.tolist(), writers, written)
      written += len(ends)
    # Until the new settings are there a file has none, rather than old ones.
    for path in paths:
      with contextlib.suppress(FileNotFoundError):
        os.remove(settings_path(path))
  for path, writer in zip(paths, writers):
    write_settings(path, settings, writer)
  return written


def _deal(data, ends, writers, written):
  """Gives the records of a block to the writers in turn.

  Args:
    data: framed records.
    ends: list of the places where each ends.
    writers: list of RecordWriter.
    written: number of records that have been given out before.
  """
  if len(writers) == 1:
    writers[0].write_framed(data, len(ends))
    return
  starts = [0] + ends[:-1]
  for index, writer in enumerate(writers):
    first = (index - written) % len(writers)
    mine = slice(first, None, len(writers))
    writer.write_framed(b"".join(
        data[start:end] for start, end in zip(starts[mine], ends[mine])),
                        len(ends[mine]))


def made_with(path, settings):
  """Says whether `path` is a whole record file made with `settings`."""
  try:
    found = read_settings(path)
  except UserError:
    return False
  return (found is not None and os.path.isfile(path)
          and os.path.getsize(path) == found.get("num_bytes")
          and all(found.get(key) == settings[key] for key in settings))


def record_files(patterns, flag):
  """Returns the sorted record files that globs match, settings left out.

  Args:
    patterns: comma separated globs.
    flag: name of the flag, for the message.

  Raises:
    UserError: if a pattern matches nothing, or nothing but settings.
  """
  found = [path for path in files.expand_globs(patterns, flag)
           if not path.endswith(SETTINGS_SUFFIX)]
  if not found:
    raise UserError("--%s: %s matches no record file" % (flag, patterns))
  return found
