"""Paragraphs of plain text with hard line breaks.

A blank line ends a paragraph. The lines of one are joined by a blank, except
after a dash and after a hyphen: "some-/thing" becomes "something" only if that
word stands elsewhere in the same megabyte and "some-thing" does not; otherwise
the hyphen stays, since more words are lost by taking one too many.
"""

import re

# Lines longer than this on average were never broken: each is a paragraph.
_LONG_LINES = 200
# What str.split() takes for white space, except a blank and the ends of lines
# that are gone; ASCII first.
_BLANKS = ("\t\x0b\x0c\x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006"
           "\u2007\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000")
_HYPHEN = re.compile(r"-\n(?!\n)")
_LETTERS = re.compile(r"[^\W\d_]+")
_LAST_WORD = re.compile(r"(?:^|[^\w-])([^\W\d_]+)\Z")


class _Hyphens(object):
  """Joins words cut at the end of a line; collects words when it has to."""

  def __init__(self, text):
    self._text = text
    self._words = None

  def __call__(self, found):
    text = self._text
    if text.startswith("--", found.start() - 1):
      return "-"  # a dash
    left = _LAST_WORD.search(text, max(0, found.start() - 40), found.start())
    right = _LETTERS.match(text, found.end())
    if right is None:
      return "-\n"
    right = right.group()
    if left is None or not right.islower():
      return "-"
    if self._words is None:
      self._words = set(_LETTERS.findall(text.lower()))
    left = left.group(1).lower()
    if left + right in self._words and "%s-%s" % (left, right) not in text:
      return ""
    return "-"


def stripped(text):
  """Returns `text` without blanks at the ends of its lines.

  All other white space but "\\n" becomes blanks.
  """
  for blank in _BLANKS[:3] if text.isascii() else _BLANKS:
    if blank in text:
      text = text.replace(blank, " ")
  return "\n".join([line.strip() for line in text.split("\n")])


def flat(paragraph):
  """Returns a paragraph of a stripped text as one line, blanks single."""
  paragraph = paragraph.strip().replace("\n", " ")
  # Splitting is ten times slower than looking whether there is a reason.
  if "  " in paragraph:
    paragraph = " ".join(paragraph.split())
  return paragraph


def has_long_lines(text):
  """Says whether the lines of a text are whole paragraphs."""
  lines = sum(1 for line in text.split("\n") if line)
  return len(text) > _LONG_LINES * max(lines, 1)


def raw_paragraphs(text, one_a_line=False):
  """Returns the paragraphs of a stripped text, their lines not joined.

  Args:
    text: str.
    one_a_line: whether each line is a paragraph.
  """
  if one_a_line:
    return [line for line in text.split("\n") if line]
  if "-\n" in text:
    text = _HYPHEN.sub(_Hyphens(text), text)
  found = [paragraph.strip("\n") for paragraph in text.split("\n\n")]
  return [paragraph for paragraph in found if paragraph]
