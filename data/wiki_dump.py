"""Pages of a MediaWiki dump, of which parts can be read by themselves.

A dump is XML, plain or packed with bzip2. A packed one that consists of many
bzip2 streams (Wikipedia's "multistream" dumps, or pbzip2's output) can be read
from the start of any stream, and plain XML from any byte. A range of bytes
owns the pages whose `<page>` begins in it, and in packed files those whose
`<page>` begins in a stream that begins in it; to finish its last page, reading
goes on behind the range.
"""

import bz2
import os
import re
from typing import NamedTuple
from xml.etree import ElementTree

from utils.errors import UserError

# A stream of bzip2 that holds anything, at its first block.
_STREAM = re.compile(b"BZh[1-9]1AY&SY")
_STREAM_BYTES = 10
_END_OF_STREAM = 0x177245385090
_OPEN, _CLOSE, _END = b"<page>", b"</page>", b"</mediawiki>"
_BLOCK = 1 << 20
# Where a second stream is looked for: Wikipedia's streams hold 100 pages, well
# below 8 MB, and those of pbzip2 0.9 MB.
_SECOND_STREAM_WITHIN = 64 << 20
# MediaWiki itself holds no text above 2 MB; this is room for old revisions.
_LARGEST_PAGE = 64 << 20
_HEAD_BYTES = 64 << 10
_NAMESPACE = re.compile(r'<namespace key="(-?\d+)"[^>]*>([^<]+)</namespace>')


class Page(NamedTuple):
  """What extraction needs of a page; `text` is its wikitext."""
  title: str
  namespace: int
  is_redirect: bool
  text: str


def _is_packed(path):
  with open(path, "rb") as stream:
    return stream.read(3) == b"BZh"


def _bad(path, what):
  return UserError("%s %s: download it again" % (path, what))


def _ends_well(path, packed):
  """Says whether the end of the file is the end of a dump.

  The end of a bzip2 stream is a marker and a checksum, at any bit; where
  streams are many, that of the last says nothing of the XML's end, which is
  looked for when the last range is read.
  """
  with open(path, "rb") as stream:
    stream.seek(max(0, os.path.getsize(path) - 4096))
    tail = stream.read()
  if not packed:
    return _END in tail
  number = int.from_bytes(tail[-11:], "big")
  return any((number >> 32 + pad) & ((1 << 48) - 1) == _END_OF_STREAM
             for pad in range(8))


def _head(path, packed):
  """Returns the first bytes of the XML."""
  with open(path, "rb") as stream:
    raw = stream.read(_BLOCK)
  if not packed:
    return raw[:_HEAD_BYTES]
  head = b""
  while raw.startswith(b"BZh") and len(head) < _HEAD_BYTES:
    decompressor = bz2.BZ2Decompressor()
    try:
      head += decompressor.decompress(raw, _HEAD_BYTES)
    except (OSError, ValueError):
      if not head:
        raise _bad(path, "is damaged: bzip2 cannot read its beginning")
      break  # whoever reads on comes here, and knows the place
    raw = decompressor.unused_data
  return head


def check(path):
  """Looks at both ends of a dump, which takes milliseconds.

  Raises:
    UserError: if it is empty, no dump, or cut off.
  """
  if not os.path.getsize(path):
    raise _bad(path, "is empty")
  packed = _is_packed(path)
  if packed and not _ends_well(path, packed):
    # Before looking inside: so little may be left that there is no block.
    raise _bad(path, "is cut off: the end of its bzip2 data is missing")
  if b"<mediawiki" not in _head(path, packed):
    raise UserError(
        "%s is not a MediaWiki dump (XML, plain or .bz2): give a file like "
        "enwiki-DATE-pages-articles-multistream.xml.bz2, and unpack other "
        "archives first" % path)
  if not _ends_well(path, packed):
    raise _bad(path, "is cut off: its last line, </mediawiki>, is missing")


def namespace_names(path):
  """Returns {number: name in the dump's language} of its namespaces."""
  head = _head(path, _is_packed(path)).decode("utf-8", "replace")
  return {int(number): name for number, name in _NAMESPACE.findall(head)}


def ranges(path, piece_bytes):
  """Returns the ranges to read a dump by: list of (first byte, end).

  A packed file of one stream has one range.
  """
  size = os.path.getsize(path)
  if _is_packed(path):
    with open(path, "rb") as stream:
      if _next_stream(stream, 1, min(size, _SECOND_STREAM_WITHIN)) is None:
        return [(0, size)]
  return [(start, min(size, start + piece_bytes))
          for start in range(0, size, piece_bytes)]


def _next_stream(stream, start, end):
  """Returns where the first bzip2 stream in [start, end) begins, or None."""
  while start < end:
    stream.seek(start)
    block = stream.read(min(_BLOCK, end - start) + _STREAM_BYTES - 1)
    found = _STREAM.search(block)
    if found:
      return start + found.start()
    start += _BLOCK
  return None


def _packed_blocks(path, start, end):
  """Yields (bytes, whether their stream begins before `end`) to the end."""
  with open(path, "rb") as stream:
    begin = _next_stream(stream, start, end)
    if begin is None:
      return
    stream.seek(begin)
    raw = stream.read(_BLOCK)
    while raw:
      begin = stream.tell() - len(raw)
      decompressor = bz2.BZ2Decompressor()
      while not decompressor.eof:
        if decompressor.needs_input and not raw:
          raw = stream.read(_BLOCK)
          if not raw:
            raise _bad(path, "is cut off: the end of its bzip2 data is missing")
        try:
          block, raw = decompressor.decompress(raw, _BLOCK), b""
        except (OSError, ValueError):
          raise _bad(path, "is damaged near byte %d: bzip2 cannot read on"
                     % stream.tell())
        if block:
          yield block, begin < end
      raw = decompressor.unused_data or stream.read(_BLOCK)


def _plain_blocks(path, start, end):
  """Yields (bytes, whether they lie before `end`) to the end of the file."""
  with open(path, "rb") as stream:
    stream.seek(start)
    while True:
      left = end - stream.tell()
      block = stream.read(min(_BLOCK, left) if left > 0 else _BLOCK)
      if not block:
        return
      yield block, left > 0


def _raw_pages(blocks, path):
  """Yields the XML of the pages that begin in own blocks.

  Raises:
    UserError: if the dump ends before its end, or has a page without end.
  """
  buffered, base, own_end, tail = b"", 0, 0, b""
  for block, own in blocks:
    buffered += block
    tail = (tail + block)[-64:]
    if own:
      own_end = base + len(buffered)
    at = 0
    while True:
      start = buffered.find(_OPEN, at)
      if start < 0:
        at = max(at, len(buffered) - len(_OPEN) + 1)
        break
      if base + start >= own_end:
        return
      stop = buffered.find(_CLOSE, start)
      if stop < 0:
        at = start
        break
      at = stop + len(_CLOSE)
      yield buffered[start:at]
    buffered, base = buffered[at:], base + at
    if not own and base >= own_end:
      return
    if len(buffered) > _LARGEST_PAGE:
      raise _bad(path, "has a page of more than %d MB without an end"
                 % (_LARGEST_PAGE >> 20))
  tail = tail.rstrip()
  # The very end may be cut, too, by a range or a stream that begins in it.
  if buffered.startswith(_OPEN) or not (
      tail.endswith(_END) or len(tail) < len(_END) and _END.endswith(tail)):
    raise _bad(path, "is cut off: its last line, </mediawiki>, is missing")


def _parsed(raw, path):
  try:
    page = ElementTree.fromstring(raw)
    revisions = page.findall("revision")
    text = (revisions[-1].findtext("text") or "") if revisions else ""
    title = page.findtext("title") or ""
    namespace = int(page.findtext("ns") or 0)
  except (ElementTree.ParseError, ValueError) as error:
    raise _bad(path, "is damaged: a page is no valid XML (%s), it begins with "
               "%r" % (error, raw[:80].decode("utf-8", "replace")))
  is_redirect = (page.find("redirect") is not None
                 or text.lstrip()[:9].upper() == "#REDIRECT")
  return Page(title, namespace, is_redirect, text)


def pages(path, start, end):
  """Yields the Pages that the range [start, end) of a dump owns.

  Raises:
    UserError: if the dump turns out to be damaged or cut off.
  """
  blocks = _packed_blocks if _is_packed(path) else _plain_blocks
  for raw in _raw_pages(blocks(path, start, end), path):
    yield _parsed(raw, path)
