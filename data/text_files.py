"""Text files of unknown encoding, in bounded memory.

Recognised are UTF-8, UTF-8 and UTF-16 with a byte order mark, Windows-1252 and
Latin-1; a file that is none of them is refused rather than misread.
"""

import codecs
import os
import re

# What can stand in no text: control characters but tab, the ends of lines and
# pages, and escape.
CONTROLS = bytes(b for b in list(range(32)) + [127]
                 if b not in (9, 10, 11, 12, 13))
_ASCII = bytes(range(128))
_C1 = bytes(range(0x80, 0xA0))
_UNDEFINED_IN_CP1252 = b"\x81\x8d\x8f\x90\x9d"
_BLOCK = 1 << 20
# More control characters than this, or in a file that is not UTF-8 more
# characters beyond ASCII than that, and it is no text in a known encoding.
_MOST_CONTROLS = 0.005
_MOST_BEYOND_ASCII = 0.3
_BEYOND_ASCII = re.compile("[^\x00-\x7f]")


class Refused(Exception):
  """A file or document that is left out; the message says why."""


def _check_controls(raw, num_controls):
  if b"\0" in raw or num_controls > 8 + _MOST_CONTROLS * len(raw):
    raise Refused("is no text but binary data")


def _valid_utf8(raw):
  decoder = codecs.getincrementaldecoder("utf-8")("strict")
  try:
    for at in range(0, len(raw), _BLOCK):
      decoder.decode(raw[at:at + _BLOCK])
    decoder.decode(b"", True)
  except UnicodeDecodeError:
    return False
  return True


def _mostly_utf8(raw):
  """Says whether invalid UTF-8 has more good than bad in it."""
  decoder = codecs.getincrementaldecoder("utf-8")("replace")
  good = bad = 0
  for at in range(0, len(raw), _BLOCK):
    text = decoder.decode(raw[at:at + _BLOCK])
    bad += text.count("\ufffd")
    good += len(_BEYOND_ASCII.findall(text)) - text.count("\ufffd")
  return good > bad


def encoding_of(raw):
  """Returns how to decode bytes without byte order mark.

  Args:
    raw: bytes.

  Returns:
    "utf-8", "utf-8-damaged" (decode as UTF-8, leave out what is not),
    "cp1252" or "latin-1".

  Raises:
    Refused: if it seems to be in none of them.
  """
  if _valid_utf8(raw):
    return "utf-8"
  if _mostly_utf8(raw):
    return "utf-8-damaged"
  beyond = raw.translate(None, _ASCII)
  if len(beyond) > _MOST_BEYOND_ASCII * len(raw):
    raise Refused("is neither UTF-8 nor Latin-1: convert it to UTF-8")
  if len(beyond.translate(None, _C1)) == len(beyond) or any(
      bad in beyond for bad in _UNDEFINED_IN_CP1252):
    return "latin-1"
  return "cp1252"


def decoded(raw, encoding):
  """Returns bytes as str, by what `encoding_of` returned."""
  if encoding == "utf-8-damaged":
    return raw.decode("utf-8", "ignore")
  return raw.decode(encoding)


def normalised(raw):
  """Returns (bytes with "\\n" for all ends of lines, their encoding, label).

  Args:
    raw: bytes of a file or document.

  Returns:
    Bytes without byte order mark and control characters; what to decode them
    with; and how the file is encoded, for counting.

  Raises:
    Refused: if they are no text.
  """
  label = None
  if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
    label = "utf-16"
    try:
      raw = raw.decode("utf-16").encode("utf-8")
    except UnicodeError:
      raise Refused("is damaged UTF-16: convert it to UTF-8")
  elif raw.startswith(codecs.BOM_UTF8):
    label, raw = "utf-8-bom", raw[len(codecs.BOM_UTF8):]
  clean = raw.translate(None, CONTROLS)
  _check_controls(raw, len(raw) - len(clean))
  if b"\r" in clean:
    clean = clean.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
  encoding = encoding_of(clean)
  if label is None or encoding != "utf-8":
    label = encoding
  return clean, encoding, label


def blocks(raw, encoding):
  """Yields normalised bytes as str, a megabyte at a time.

  They are cut between paragraphs, or if one is longer, at the end of a line
  or word in it.
  """
  at = 0
  while at < len(raw):
    end = at + _BLOCK
    if end < len(raw):
      for mark in (b"\n\n", b"\n", b" "):
        cut = raw.rfind(mark, at + 1, end)
        if cut > 0:
          end = cut + 1
          break
      else:
        while end > at + 1 and raw[end] & 0xC0 == 0x80:  # inside a character
          end -= 1
    yield decoded(raw[at:end], encoding)
    at = end


def read_whole(path, max_bytes):
  """Returns the bytes of a file.

  Raises:
    Refused: if it is larger; it is not read then.
  """
  size = os.path.getsize(path)
  if size > max_bytes:
    raise Refused("has %.0f MB, more than --max_document_mb %d: split it, or "
                  "take --documents line or blank_line if it holds many"
                  % (size / 1e6, max_bytes >> 20))
  with open(path, "rb") as stream:
    return stream.read()


def _start(stream):
  """Skips a byte order mark; raises Refused at the start of binary data."""
  head = stream.read(_BLOCK)
  if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
    raise Refused("is UTF-16, of which only whole files are read: convert it "
                  "to UTF-8, or take --documents file")
  _check_controls(head, len(head) - len(head.translate(None, CONTROLS)))
  stream.seek(len(codecs.BOM_UTF8) if head.startswith(codecs.BOM_UTF8) else 0)


def documents_of(path, by_line, max_bytes):
  """Yields the raw documents of a file that holds many; None: too long.

  Args:
    path: file.
    by_line: whether each line is one; else blank lines stand between them.
    max_bytes: size of the largest one.

  Raises:
    Refused: if the file is binary.
  """
  with open(path, "rb") as stream:
    _start(stream)
    parts, size, starts_line = [], 0, True
    # A line may come in several parts, so that a huge one is never held.
    for part in iter(lambda: stream.readline(_BLOCK), b""):
      ends_line = part.endswith(b"\n")
      size += len(part)
      if size <= max_bytes:
        parts.append(part)
      if ends_line and (by_line or starts_line and not part.strip()):
        yield b"".join(parts) if size <= max_bytes else None
        parts, size = [], 0
      starts_line = ends_line
    if size:
      yield b"".join(parts) if size <= max_bytes else None
