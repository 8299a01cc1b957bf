"""README.md as its tests read it: blocks, commands, tables."""

import pathlib
import re
from typing import NamedTuple

README = (pathlib.Path(__file__).resolve().parent.parent / "README.md").read_text(
    encoding="utf-8")


class Block(NamedTuple):
  """A fenced block: `mark` is what its comment says, "" without one."""
  line: int
  language: str
  mark: str
  text: str


def blocks(language):
  """Returns the page's blocks of a language, in order."""
  pattern = re.compile(
      r"(?:^<!-- test: ([^\n]*) -->\n)?^```(\w*)\n(.*?)^```$", re.M | re.S)
  return [Block(README.count("\n", 0, found.start(2)) + 1, found.group(2),
                found.group(1) or "", found.group(3))
          for found in pattern.finditer(README) if found.group(2) == language]


def commands(text):
  """Returns the commands of a block, a line each, without comments."""
  lines = text.replace("\\\n", " ").split("\n")
  lines = [re.sub(r"\s+#.*", "", line) for line in lines]
  return [" ".join(line.split()) for line in lines if line.strip()]


def section(title):
  """Returns the text under a heading, up to the next heading."""
  found = re.search(r"^#+ %s\n(.*?)(?=^#+ |\Z)" % re.escape(title), README,
                    re.M | re.S)
  assert found, "README.md has no heading %r" % title
  return found.group(1)


def rows(title, first):
  """Returns the rows of the table whose first column's title is `first`."""
  text = section(title)
  found = re.search(r"^\| %s \|.*\n\|[-|]+\|\n((?:\|.*\n)*)"
                    % re.escape(first), text, re.M)
  assert found, "no table of %r under %r" % (first, title)
  return [[cell.strip() for cell in line.strip("|").split("|")]
          for line in found.group(1).splitlines()]


def names(cell):
  """Returns what stands in backticks in a cell."""
  return re.findall(r"`([^`]+)`", cell)
