"""Stages of a preparation: pieces of work that are done once and found again.

A piece turns input files into one output file. Beside a finished output lies
`<output>.made.json`: the settings, the inputs' names and sizes, the output's
size and what was counted on the way. It is written last, so it vouches for
the output; a piece whose record fits is left as it is.
"""

import contextlib
import json
import os
import time
from typing import Any, Dict, List, NamedTuple

from utils import files
from utils import shares
from utils import workers
from utils.errors import UserError
from utils.logs import LOGGER

RECORD_SUFFIX = ".made.json"
_FORMAT = 1
# Seconds between two looks at what other parts have done, and between two
# lines about it.
POLL_SECONDS = 1.0
_TELL_SECONDS = 60.0


class Piece(NamedTuple):
  """One output and what it is made of.

  `settings` is JSON-able and decides, with the inputs, every byte of the
  output. `work` is what the function that makes it needs besides.
  """
  inputs: List[str]
  output: str
  settings: Dict[str, Any]
  work: Any = None


def add_arguments(parser, with_workers=True):
  """Adds what every stage takes to an argparse parser.

  Args:
    parser: the parser.
    with_workers: whether the stage has work for several processes.
  """
  if with_workers:
    parser.add_argument("--num_workers", type=int,
                        default=workers.default_num_workers(),
                        help="processes at most; default: cores, %(default)s")
  parser.add_argument("--wait_minutes", type=float, default=60,
                      help="longest wait for other parts without any progress; "
                      "default: %(default)s")
  shares.add_arguments(parser)


def record_path(output):
  """Returns the path of the record beside an output."""
  return output + RECORD_SUFFIX


def _described(piece):
  return {"format": _FORMAT, "settings": piece.settings,
          "inputs": [[os.path.basename(path), os.path.getsize(path)]
                     for path in piece.inputs]}


def counts_of(piece):
  """Returns what was counted when a piece was made; None: make it.

  It has to be made where the output is missing, of another size than its
  record says, made with other settings or from other inputs, or older than an
  input.
  """
  try:
    with open(record_path(piece.output), encoding="utf-8") as stream:
      record = json.load(stream)
    counts = record.pop("counts")
    if record.pop("num_bytes") != os.path.getsize(piece.output):
      return None
    made = os.stat(piece.output).st_mtime_ns
    # As JSON gives it back: a tuple is a list there.
    if record != json.loads(json.dumps(_described(piece))):
      return None
    if any(os.stat(path).st_mtime_ns > made for path in piece.inputs):
      return None
  except (OSError, ValueError, KeyError, AttributeError):
    return None
  return counts


def mark_done(piece, counts):
  """Writes the record of a piece whose output is whole.

  Args:
    piece: Piece.
    counts: JSON-able dict, returned by `counts_of` from now on.
  """
  record = dict(_described(piece), counts=counts,
                num_bytes=os.path.getsize(piece.output))
  files.write_json(record_path(piece.output), record)


def make(function, piece):
  """Makes one piece: `function(piece)` writes the output, returns the counts.

  Returns:
    The counts.
  """
  for path in (piece.output, record_path(piece.output)):
    files.remove_leftovers(path)
  with contextlib.suppress(FileNotFoundError):
    os.remove(record_path(piece.output))
  before = _states(piece)
  counts = function(piece)
  after = _states(piece)
  for path, state in before.items():
    if after[path] != state:
      raise UserError("%s changed while it was read: when it is whole, run the "
                      "same command again" % path)
  # An input may be dated in the future: by another machine's clock.
  newest = max([time_ns for _, time_ns in after.values()] or [0])
  if newest > os.stat(piece.output).st_mtime_ns:
    os.utime(piece.output, ns=(newest, newest))
  mark_done(piece, counts)
  return counts


def _states(piece):
  """Returns {input: (size, time of its last change)} of a piece."""
  states = {path: os.stat(path) for path in piece.inputs}
  return {path: (state.st_size, state.st_mtime_ns)
          for path, state in states.items()}


def run_pieces(function, pieces, num_workers, share=shares.WHOLE):
  """Makes those of this part's pieces that are not there yet.

  Args:
    function: of a Piece; writes its output, whole or not at all, and returns
      a JSON-able dict of counts.
    pieces: list of Piece, of all parts.
    num_workers: processes at most.
    share: Share of this process.

  Returns:
    List of (Piece, its counts), for this part's pieces, in their order.
  """
  mine = share.mine(pieces)
  counts = [counts_of(piece) for piece in mine]
  todo = [piece for piece, found in zip(mine, counts) if found is None]
  if len(todo) < len(mine):
    LOGGER.info("kept %d of %d: made from the same input with the same "
                "settings", len(mine) - len(todo), len(mine))
  made = iter(list(workers.run_all(
      lambda piece: make(function, piece), todo, num_workers)))
  return [(piece, next(made) if found is None else found)
          for piece, found in zip(mine, counts)]


def wait_for(pieces, wait_minutes, what, unless=lambda: False):
  """Waits until other parts have made their pieces, too.

  Args:
    pieces: list of Piece, of all parts.
    wait_minutes: longest time without any progress.
    what: what they make, for messages.
    unless: function that says whether they are needed no more.

  Returns:
    List of the pieces' counts; None where `unless` ended the wait.

  Raises:
    UserError: if nothing has come for so long.
  """
  return wait_until(counts_of, pieces, wait_minutes, what,
                    lambda piece: piece.output, unless)


def wait_until(look, items, wait_minutes, what, name_of,
               unless=lambda: False):
  """Waits until `look(item)` is not None for any of the items.

  Args:
    look: function of an item.
    items: list.
    wait_minutes: as for `wait_for`, as are `what` and `unless`.
    what: what the items are.
    name_of: function of an item that returns what messages call it.
    unless: function.

  Returns:
    List of what `look` returned; None where `unless` ended the wait.

  Raises:
    UserError: if nothing has come for so long.
  """
  found = [None] * len(items)
  missing = len(items) + 1
  since = told = time.time()
  while True:
    found = [look(item) if old is None else old
             for item, old in zip(items, found)]
    left = found.count(None)
    if not left:
      return found
    if unless():
      return None
    if left < missing:
      missing, since = left, time.time()
    if time.time() - since > 60 * wait_minutes:
      raise UserError(
          "%d of %d %s are still missing, the first is %s: other parts have "
          "not made them; when they have, run the same command again"
          % (left, len(items), what, name_of(items[found.index(None)])))
    if time.time() - told > _TELL_SECONDS:
      LOGGER.info("waiting for other parts: %d of %d %s are missing", left,
                  len(items), what)
      told = time.time()
    time.sleep(POLL_SECONDS)
