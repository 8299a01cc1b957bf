"""Deals the documents of segmented files out to shards of equal size.

    python data/shard.py --input 'final_text_file_single/*.txt' \
        --output_dir sharded --name wikipedia --num_training_shards 256

Writes `{name}_training_0000.txt` and so on, and with --test_fraction also
`{name}_test_0000.txt`: text files with a sentence a line and a blank line after
each document. No document is split. Which are held out for the test follows
from a hash of their text, so that no document stands on both sides, even if
the input has it twice.

`{name}.shards.json` lists the shards with their sizes. It is written last: as
long as it fits, a second run does nothing. Where a launcher starts several
parts, part 0 does the work, and the others wait for it.
"""

import argparse
import array
import codecs
import contextlib
import hashlib
import heapq
import os
import re
import shutil
import sys
import time
from typing import Any, List, NamedTuple

import numpy as np

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

# pylint: disable=wrong-import-position
from data import documents
from data import plain_text
from utils import errors
from utils import files
from utils import logs
from utils import shares
from utils import stages
from utils.errors import UserError
from utils.logs import LOGGER

_BLOCK = 1 << 18
# Bytes that wait for being written, of all shards together. A shard's file is
# opened anew each time, since there may be more of them than a process may
# have open.
_WAITING = 64 << 20
# A document of so many bytes is more than a line of a log is for: the records'
# maker holds all documents of a shard in memory.
_COMFORT = 64 << 20
_SETTINGS = ("num_training_shards", "num_test_shards", "test_fraction", "seed")
_END = b"\n\n"
# A blank line, whatever kind of white space it has; and all around it.
_BETWEEN = re.compile(rb"\n[ \t\r\x0b\x0c]*\n\s*")
_WHITE = b" \t\r\n\x0b\x0c"
_CHANGED = "%s was changed while it was read: run the same command again"


class Index(NamedTuple):
  """All documents in the order of the input.

  `sizes` counts bytes with the blank line; `hashes` depend on text and seed.
  """
  sizes: Any
  hashes: Any


class Deal(NamedTuple):
  """Where each document goes: `owner` holds a number of `names`.

  The first `num_training` names are those of training shards.
  """
  owner: Any
  names: List[str]
  num_training: int


def parse_arguments(argv=None):
  """Returns the command line as a namespace, with `name` filled in."""
  parser = argparse.ArgumentParser(
      description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
  parser.add_argument("--input", required=True,
                      help="segmented files: a folder, or globs with commas "
                      "between them")
  parser.add_argument("--output_dir", required=True)
  parser.add_argument("--name", help="start of the shards' names; default: "
                      "the input's name up to its first dot")
  parser.add_argument("--num_training_shards", type=int, default=256)
  parser.add_argument("--num_test_shards", type=int,
                      help="default: in proportion to --test_fraction")
  parser.add_argument("--test_fraction", type=float, default=0.0,
                      help="share of the text to hold out; default: 0")
  parser.add_argument("--seed", type=int, default=12345)
  stages.add_arguments(parser, with_workers=False)
  options = parser.parse_args(argv)
  if not 0 <= options.test_fraction < 1:
    raise UserError("--test_fraction has to be at least 0 and less than 1")
  if options.num_training_shards < 1:
    raise UserError("--num_training_shards has to be at least 1")
  if options.num_test_shards is not None:
    if not options.test_fraction:
      raise UserError("--num_test_shards needs a --test_fraction")
    if options.num_test_shards < 1:
      raise UserError("--num_test_shards has to be at least 1")
  return options


# ------------------------------------------------------- reading documents


def _blocks(path, check):
  """Yields a file's text in blocks, each with the white space before it."""
  decoder = plain_text.Decoder(path)
  offset, held = 0, b""
  with open(path, "rb") as stream:
    while True:
      block = stream.read(_BLOCK)
      if check:
        decoder.text(block, offset, not block)
      if not block:
        return
      if offset == 0 and block.startswith(codecs.BOM_UTF8):
        block = block[len(codecs.BOM_UTF8):]
        offset = len(codecs.BOM_UTF8)
      offset += len(block)
      block = held + block
      text = block.rstrip(_WHITE)
      held = block[len(text):]
      # Of very much white space it matters only whether it has a blank line.
      if len(held) > _BLOCK:
        held = _END[:held.count(b"\n")] or b" "
      if text:
        yield text


def chunks(path, check=False):
  """Yields the documents of a file in chunks of bounded size.

  Args:
    path: file with blank lines between documents.
    check: bool, whether to make sure that it is text.

  Yields:
    (bytes, whether the document ends with them).

  Raises:
    UserError: where the file is not UTF-8 text.
  """
  inside = False
  for block in _blocks(path, check):
    if not inside:
      block = block.lstrip(_WHITE)
    parts = _BETWEEN.split(block)
    for part in parts[:-1]:
      part = part.rstrip(_WHITE)
      if part or inside:
        yield part, True
      inside = False
    if parts[-1]:
      yield parts[-1], False
      inside = True
  if inside:
    yield b"", True


# -------------------------------------------------------------------- dealing


def index_of(paths, seed):
  """Reads all files once and returns their Index.

  Raises:
    UserError: if there is no document, or a file is no text.
  """
  key = hashlib.sha256(b"%d" % seed).digest()
  sizes, hashes = array.array("Q"), array.array("Q")
  for path in paths:
    digest, size = hashlib.blake2b(key=key, digest_size=8), 0
    before = len(sizes)
    for chunk, ended in chunks(path, check=True):
      digest.update(chunk)
      size += len(chunk)
      if ended:
        _warn_of_size(path, len(sizes) - before, size)
        sizes.append(size + len(_END))
        hashes.append(int.from_bytes(digest.digest(), "little"))
        digest, size = hashlib.blake2b(key=key, digest_size=8), 0
  if not sizes:
    raise UserError("--input: no document in %s" % ", ".join(paths[:3]))
  return Index(np.frombuffer(sizes, np.uint64).astype(np.int64),
               np.frombuffer(hashes, np.uint64))


def _warn_of_size(path, number, size):
  if size > _COMFORT:
    LOGGER.warning("%s: document %d has %.0f MB without a blank line; is it "
                   "one? What reads its shard needs many times that memory",
                   path, number + 1, size / 1e6)


def held_out(index, fraction):
  """Returns which documents are for the test, as an array of bool.

  They are those with the smallest hashes, as many as it takes to reach the
  fraction of all bytes; equal documents have equal hashes and stay together.
  """
  if not fraction:
    return np.zeros(len(index.sizes), bool)
  order = np.argsort(index.hashes, kind="mergesort")
  reached = np.cumsum(index.sizes[order])
  last = int(np.searchsorted(reached, fraction * reached[-1]))
  return index.hashes <= index.hashes[order[min(last, len(order) - 1)]]


def deal(sizes, hashes, num_shards):
  """Returns the shard of each document: the largest first, to the emptiest.

  Args:
    sizes: array of int64.
    hashes: array of uint64; between documents of equal size they decide.
    num_shards: int.

  Returns:
    Array of int32.
  """
  owner = np.empty(len(sizes), np.int32)
  shards = [(0, shard) for shard in range(num_shards)]
  for document in np.lexsort((hashes, -sizes)):
    filled, shard = shards[0]
    owner[document] = shard
    heapq.heapreplace(shards, (filled + int(sizes[document]), shard))
  return owner


def plan(index, options):
  """Returns the Deal of all documents.

  Raises:
    UserError: if a shard, or a side, would be empty.
  """
  test = held_out(index, options.test_fraction)
  sides = [("training", ~test, options.num_training_shards)]
  if options.test_fraction:
    sides.append(("test", test, options.num_test_shards or max(1, min(
        int(test.sum()),
        round(options.test_fraction * options.num_training_shards)))))
  owner, names = np.empty(len(test), np.int32), []
  for side, chosen, num_shards in sides:
    count = int(chosen.sum())
    if not count:
      raise UserError(
          "--test_fraction %g leaves no document for %s, out of %d: documents "
          "are not divided" % (options.test_fraction, side, len(test)))
    if num_shards > count:
      raise UserError(
          "--num_%s_shards %d: there are only %d documents for it, which are "
          "not divided: give %d at most" % (side, num_shards, count, count))
    owner[chosen] = len(names) + deal(
        index.sizes[chosen], index.hashes[chosen], num_shards)
    names.extend("%s_%s_%04d.txt" % (options.name, side, i)
                 for i in range(num_shards))
  return Deal(owner, names, options.num_training_shards)


# -------------------------------------------------------------------- writing


class _Shards(object):
  """Files in a folder that are appended to in turn, in bounded memory."""

  def __init__(self, folder, names):
    self._paths = [os.path.join(folder, name) for name in names]
    self._waiting = [[] for _ in names]
    self._sizes = [0] * len(names)
    self._most = _WAITING // len(names)

  def add(self, shard, data):
    self._waiting[shard].append(data)
    self._sizes[shard] += len(data)
    if self._sizes[shard] > self._most:
      self._write(shard, False)

  def finish(self):
    for shard in range(len(self._paths)):
      self._write(shard, True)

  def _write(self, shard, last):
    with open(self._paths[shard], "ab") as stream:
      stream.write(b"".join(self._waiting[shard]))
      if last:
        stream.flush()
        os.fsync(stream.fileno())
    self._waiting[shard] = []
    self._sizes[shard] = 0


def _write_shards(paths, index, dealt, folder):
  """Streams all documents into their shards in a folder.

  Raises:
    UserError: if the input is not what it was when it was indexed.
  """
  shards = _Shards(folder, dealt.names)
  # Elements of these come ten times as fast as those of numpy's.
  owner = array.array("i", dealt.owner.tobytes())
  sizes = array.array("q", index.sizes.tobytes())
  document, size = 0, 0
  for path in paths:
    for chunk, ended in chunks(path):
      if document == len(sizes):
        raise UserError(_CHANGED % path)
      size += len(chunk)
      shards.add(owner[document], chunk + _END if ended else chunk)
      if ended:
        if sizes[document] != size + len(_END):
          raise UserError(_CHANGED % path)
        document, size = document + 1, 0
  if document != len(sizes):
    raise UserError(_CHANGED % paths[-1])
  shards.finish()


def _place(folder, output_dir, name, names):
  """Gives whole shards their names; removes those of an earlier division."""
  pattern = re.compile(re.escape(name) + r"_(training|test)_\d{4,}\.txt")
  for stale in set(os.listdir(output_dir)) - set(names):
    if pattern.fullmatch(stale):
      os.remove(os.path.join(output_dir, stale))
  for shard in names:
    os.replace(os.path.join(folder, shard), os.path.join(output_dir, shard))


def make_shards(options, piece):
  """Makes all shards and their list, the piece's output; returns counts."""
  start = time.time()
  index = index_of(piece.inputs, options.seed)
  dealt = plan(index, options)
  folder = os.path.join(options.output_dir, ".%s.sharding" % options.name)
  os.makedirs(folder, exist_ok=True)
  with files.FolderLock(folder):
    try:
      for leftover in os.listdir(folder):
        if leftover.endswith(".txt"):
          os.remove(os.path.join(folder, leftover))
      _write_shards(piece.inputs, index, dealt, folder)
      _place(folder, options.output_dir, options.name, dealt.names)
    finally:
      shutil.rmtree(folder, ignore_errors=True)
  files.write_json(piece.output, _listed(index, dealt))
  num_bytes = int(index.sizes.sum())
  LOGGER.info("%.1f MB in %.1f s", num_bytes / 1e6, time.time() - start)
  return {"documents": len(index.sizes), "bytes": num_bytes}


def _listed(index, dealt):
  """Returns what `{name}.shards.json` holds."""
  total = len(dealt.names)
  sizes = np.bincount(dealt.owner, index.sizes, total)
  counts = np.bincount(dealt.owner, minlength=total)
  listed = [{"name": name, "num_bytes": int(size), "documents": int(count)}
            for name, size, count in zip(dealt.names, sizes, counts)]
  return {"training": listed[:dealt.num_training],
          "test": listed[dealt.num_training:]}


# ----------------------------------------------------------------------- main


def shards_in(listing):
  """Returns what `{name}.shards.json` lists.

  Returns:
    {"training": shards, "test": shards}, where shards is a list of {"name",
    "num_bytes", "documents"}.
  """
  return files.read_json(listing, "list of shards")


def _all_whole(listing):
  folder = os.path.dirname(listing)
  try:
    return all(os.path.getsize(os.path.join(folder, shard["name"]))
               == shard["num_bytes"]
               for shards in shards_in(listing).values() for shard in shards)
  except OSError:
    return False


def _report(listing, fraction):
  """Logs how many shards of which sizes there are on each side."""
  sides = shards_in(listing)
  total = sum(shard["num_bytes"] for side in sides.values() for shard in side)
  for side, shards in sides.items():
    if not shards:
      continue
    sizes = [shard["num_bytes"] for shard in shards]
    LOGGER.info("%s: %d documents in %d shards of %.3f to %.3f MB, %.2f %% of "
                "the text", side, sum(s["documents"] for s in shards),
                len(shards), min(sizes) / 1e6, max(sizes) / 1e6,
                100.0 * sum(sizes) / total)
    if max(sizes) > 1.1 * min(sizes):
      LOGGER.warning("%s: documents are too few or too large for shards of "
                     "equal size: fewer shards would be more even", side)
    if side == "test" and sum(sizes) > 2 * fraction * total:
      LOGGER.warning("the test has more than --test_fraction says, since "
                     "documents are not divided")


def run(options):
  """Makes the shards that the options name, if this is part 0."""
  share = shares.share_of(options.shard_index, options.num_shards)
  paths = documents.input_files(
      options.input, "input", lambda name: name.endswith(".txt"))
  if not paths:
    raise UserError("--input: no .txt file in %s" % options.input)
  unfinished = [path for path in paths
                if os.path.dirname(path).endswith(".parts")]
  if unfinished:
    raise UserError("--input: %s is of a segmentation that is not finished: "
                    "finish it first" % unfinished[0])
  if options.name is None:
    if len(paths) > 1:
      raise UserError("--name: is needed for more than one input file")
    options.name = os.path.basename(paths[0]).split(".")[0]
  documents.require_name(options.name)
  options.output_dir = os.path.abspath(
      files.require_output_dir(options.output_dir, "output_dir"))
  listing = os.path.join(options.output_dir, options.name + ".shards.json")
  settings = {name: getattr(options, name) for name in _SETTINGS}
  piece = stages.Piece(paths, listing, dict(settings, stage="shard"))
  if _counts_of_whole(piece) is not None:
    LOGGER.info("nothing to do: all shards are there")
  else:
    if not share.index:
      # Its record vouches for the list alone.
      with contextlib.suppress(FileNotFoundError):
        os.remove(stages.record_path(listing))
    stages.run_pieces(lambda p: make_shards(options, p), [piece], 1, share)
    stages.wait_until(_counts_of_whole, [piece], options.wait_minutes,
                      "lists of shards", lambda p: p.output)
  _report(listing, options.test_fraction)


def _counts_of_whole(piece):
  """Returns the counts of a list whose shards are all there, else None."""
  counts = stages.counts_of(piece)
  if counts is None or not _all_whole(piece.output):
    return None
  return counts


def main():
  """Command line."""
  logs.set_up()
  errors.guard(lambda: run(parse_arguments()))


if __name__ == "__main__":
  main()
