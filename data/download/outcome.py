"""How an item ends, and the errors that say so."""

from typing import NamedTuple

GOT, HAD, SKIPPED, FAILED = "got", "had", "skipped", "failed"


class Result(NamedTuple):
  """What became of an item: `bytes` in place, `note` why not."""
  what: str
  name: str
  status: str
  bytes: int = 0
  verified: bool = False
  note: str = ""


class Skipped(Exception):
  """The source does not give the file: a dead link."""


class Failed(Exception):
  """What came is not what was to come, or could not come whole."""


class NoSpace(Failed):
  """There is too little room on the disk; what came is kept."""


def size_text(count):
  """Returns `count` bytes in words; None is unknown."""
  if count is None:
    return "unknown"
  for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
    if count >= scale:
      return "%.1f %s" % (count / scale, unit)
  return "%d B" % count
