"""UTF-8 text read in blocks; what is no text is told by file and line."""

import codecs

from utils.errors import UserError

_BLOCK = 1 << 20


def line_at(path, offset):
  """Returns the number, from 1, of the line that a byte of a file is in."""
  lines = 1
  with open(path, "rb") as stream:
    while offset > 0:
      block = stream.read(min(_BLOCK, offset))
      if not block:
        break
      lines += block.count(b"\n")
      offset -= len(block)
  return lines


class Decoder(object):
  """Turns the blocks of a file into text, one after the other.

  Args:
    path: the file, for messages.
  """

  def __init__(self, path):
    self._path = path
    self._decode = codecs.getincrementaldecoder("utf-8")().decode

  def text(self, block, offset, last):
    """Returns the text of a block, but for a character cut by its end.

    Args:
      block: bytes.
      offset: where in the file it begins.
      last: bool, whether a character that is cut is an error.

    Raises:
      UserError: if it is not UTF-8, or has a byte that no text has.
    """
    if b"\0" in block:
      raise UserError(
          "%s, line %d: holds a zero byte, so it is not a text file: remove "
          "it from the input"
          % (self._path, line_at(self._path, offset + block.index(b"\0"))))
    try:
      return self._decode(block, last)
    except UnicodeDecodeError as error:
      # What was left of the block before stands in front of this one.
      place = offset + error.start - (len(error.object) - len(block))
      raise UserError("%s, line %d: is not UTF-8 (%s): convert the file, or "
                      "remove it from the input"
                      % (self._path, line_at(self._path, place),
                         error.reason))
