"""The order of training records: a pure function of (seed, epoch).

A run that was killed and started again must see the records that it would
have seen. So nothing here keeps state: given how many records a run has
consumed, the rest of its stream follows.

Features in memory (SQuAD) are permuted as a whole. Record files
(pre-training) may be far larger than memory, so an epoch is built in three
steps: the files are permuted, groups of `GROUP` files are read in turn one
record each, and the resulting stream is cut into windows of `WINDOW` records
that are permuted one by one. Reading stays sequential and memory bounded.

Of several ranks each reads a part of its own (`rank_records`).
"""

import itertools
import typing

import numpy as np

from utils import records

GROUP = 8
WINDOW = 8192
# Batches among which rows of similar length find each other.
GROUPING = 50


def permutation(seed, epoch, size, place=0):
  """Returns an int64 permutation of range(size) for (seed, epoch, place).

  `numpy.random.RandomState` is frozen by NumPy's compatibility policy: all
  versions give the same numbers.
  """
  key = [seed & 0xffffffff, epoch, place]
  return np.random.RandomState(key).permutation(size)


def index_batches(size, seed, batch_size, consumed, lengths=None):
  """Yields int64 arrays [batch_size] of row numbers, without end.

  Args:
    size: number of rows of one epoch.
    seed: seed of the run.
    batch_size: rows in a batch; a batch may reach into the next epoch.
    consumed: rows that the run has had already.
    lengths: int [size], to put rows of similar length into one batch
      (`_grouped`); None for batches at random.
  """
  def rows_of(epoch):
    rows = permutation(seed, epoch, size)
    if lengths is None:
      return rows
    first = -epoch * size % batch_size  # what a batch of the last epoch lacks
    return np.concatenate([rows[:first], _grouped(
        rows[first:], lengths, batch_size, seed, epoch)])

  epoch, offset = divmod(consumed, size)
  pending = rows_of(epoch)[offset:]
  while True:
    while len(pending) < batch_size:
      epoch += 1
      pending = np.concatenate([pending, rows_of(epoch)])
    yield pending[:batch_size]
    pending = pending[batch_size:]


def _grouped(rows, lengths, batch_size, seed, epoch):
  """Returns the rows so that those of a batch are of similar length.

  Each `GROUPING` batches, which are a random part of the epoch, are sorted by
  length and cut anew; the new batches follow each other in random order. All
  rows still come once an epoch, but which share a batch is no longer chance
  alone.
  """
  done = []
  window = GROUPING * batch_size
  for number, begin in enumerate(range(0, len(rows), window), 1):
    part = rows[begin:begin + window]
    part = part[np.argsort(lengths[part], kind="stable")]
    whole = len(part) // batch_size
    batches = part[:whole * batch_size].reshape(whole, batch_size)
    done += list(batches[permutation(seed, epoch, whole, number)])
    done.append(part[whole * batch_size:])
  return np.concatenate(done + [rows[:0]])


def _round_robin_skips(counts, consumed):
  """Returns how many records of each file `consumed` turns have read.

  Reading goes round the files, one record each, passing over those that
  have ended: after r rounds file i has given min(counts[i], r).

  Args:
    counts: list of int, records of each file.
    consumed: int in [0, sum(counts)].

  Returns:
    (skips, turn): records to skip a file, and the file whose turn it is.
  """
  low, high = 0, max(counts)
  while low < high:
    rounds = (low + high + 1) // 2
    if sum(min(c, rounds) for c in counts) <= consumed:
      low = rounds
    else:
      high = rounds - 1
  skips = [min(c, low) for c in counts]
  left = consumed - sum(skips)
  turn = 0
  for i, count in enumerate(counts):
    if not left:
      break
    if count > low:
      skips[i] += 1
      left -= 1
      turn = i + 1
  return skips, turn % len(counts)


class Part(typing.NamedTuple):
  """Which part of the records a rank reads.

  Attributes:
    rank: int, 0 to size - 1.
    size: int, the number of ranks.
    window: int, the records of one rank in one update.
  """
  rank: int = 0
  size: int = 1
  window: int = 1


def _bounds(total, part):
  """Returns the half-open range of a rank's part of `total` records."""
  return total * part.rank // part.size, total * (part.rank + 1) // part.size


def _cut(files, counts, part):
  """Returns [(file, its first record, number of records)] of a rank's part.

  The files' records, laid end to end, are divided into ranges that differ by
  one record at most: two ranks may meet inside of a file.
  """
  begin, end = _bounds(sum(counts), part)
  pieces, at = [], 0
  for path, count in zip(files, counts):
    first, last = max(begin - at, 0), min(end - at, count)
    if first < last:
      pieces.append((path, first, last - first))
    at += count
  return pieces


def _read_group(pieces, consumed, read):
  """Yields the records of `pieces` in turn, after the first `consumed`."""
  skips, turn = _round_robin_skips([count for _, _, count in pieces], consumed)
  readers = [itertools.islice(read(path, first + skip), count - skip)
             for (path, first, count), skip in zip(pieces, skips)]
  order = readers[turn:] + readers[:turn]
  while order:
    alive = []
    for reader in order:
      payload = next(reader, None)
      if payload is not None:
        alive.append(reader)
        yield payload
    order = alive


def _read_epoch(pieces, consumed, read):
  """Yields one epoch's records, group after group, after `consumed`."""
  for start in range(0, len(pieces), GROUP):
    group = pieces[start:start + GROUP]
    size = sum(count for _, _, count in group)
    if consumed >= size:
      consumed -= size
      continue
    for payload in _read_group(group, consumed, read):
      yield payload
    consumed = 0


def _windows(stream):
  window = []
  for payload in stream:
    window.append(payload)
    if len(window) == WINDOW:
      yield window
      window = []
  if window:
    yield window


def shuffled_records(files, counts, seed, consumed=0,
                     read=records.read_records, part=Part()):
  """Yields serialized records for training, without end.

  Args:
    files: list of TFRecord files.
    counts: list of int, the number of records in each file.
    seed: seed of the run.
    consumed: number of records that the rank has had already.
    read: function of a file and the number of its records to pass over, that
      yields a record each, in whatever form.
    part: `Part` of each epoch that is read.
  """
  begin, end = _bounds(sum(counts), part)
  epoch, consumed = divmod(consumed, end - begin)
  while True:
    places = permutation(seed, epoch, len(files))
    pieces = _cut([files[i] for i in places], [counts[i] for i in places], part)
    first = consumed // WINDOW
    offset = consumed - first * WINDOW
    stream = _read_epoch(pieces, first * WINDOW, read)
    for number, window in enumerate(_windows(stream), first):
      # Place 0 is the order of the files.
      for i in permutation(seed, epoch, len(window), number + 1)[offset:]:
        yield window[i]
      offset = 0
    epoch, consumed = epoch + 1, 0


def _next_turn(sizes, done):
  """Returns the source that is furthest behind its share (Webster's rule)."""
  return max(range(len(sizes)),
             key=lambda i: (sizes[i] / (2.0 * done[i] + 1), -i))


def turns_of(sizes, turns):
  """Returns how many of the first `turns` turns each source has.

  In proportion to the sizes, and one turn more never takes one away.

  Args:
    sizes: list of int, records of each source, none 0.
    turns: int.
  """
  # Rounded shares are at most half the number of sources from the exact ones.
  spare = len(sizes) // 2 + 1
  done = [max(0, size * turns // sum(sizes) - spare) for size in sizes]
  while sum(done) < turns:
    done[_next_turn(sizes, done)] += 1
  return done


def mixed_records(sources, seed, consumed=0, unit=1,
                  read=records.read_records, part=Part()):
  """Yields the records of several sources in turn, without end.

  Each source is shuffled by itself and goes through its own epochs; turns are
  dealt in proportion to the sizes, so that their epochs keep in step.

  Args:
    sources: list of (files, counts), each as for `shuffled_records`.
    seed: seed of the run.
    consumed: number of records that the rank has had already; a multiple of
      `unit`, unless the batch size was changed.
    unit: records a turn: 1 mixes the sources in each batch, the batch size
      gives each batch to one of them.
    read: as for `shuffled_records`.
    part: as for `shuffled_records`.
  """
  bounds = [_bounds(sum(counts), part) for _, counts in sources]
  sizes = [end - begin for begin, end in bounds]
  done = turns_of(sizes, -(-consumed // unit))
  streams = [
      shuffled_records(paths, counts, seed + i, done[i] * unit, read, part)
      for i, (paths, counts) in enumerate(sources)]
  while True:
    i = _next_turn(sizes, done)
    done[i] += 1
    for _ in range(unit):
      yield next(streams[i])


def is_by_file(sources, part):
  """Says whether ranks read files of their own: there are enough of them."""
  return part.size > 1 and all(len(files) >= part.size for files, _ in sources)


def division(sources, part):
  """Returns, as a sentence, how the records are divided among the ranks."""
  if is_by_file(sources, part):
    return ("each of the %d ranks reads files of its own, other ones in each "
            "epoch" % part.size)
  return ("each of the %d ranks reads its part of each batch: there are fewer "
          "files than ranks" % part.size)


def rank_records(sources, seed, part, consumed=0, unit=1,
                 read=records.read_records):
  """Yields one rank's records of `mixed_records`, without end.

  With fewer files than ranks all ranks go through the same order, that of a
  single rank, and each keeps its windows: an update has the records that it
  would have with one rank and a larger batch. Else each reads a part of the
  files, so that no record is read twice.

  Args:
    sources: as for `mixed_records`.
    seed: as for `mixed_records`.
    part: `Part`.
    consumed: number of records that all ranks together have had already.
    unit: as for `mixed_records`.
    read: as for `mixed_records`.
  """
  if is_by_file(sources, part):
    yield from mixed_records(sources, seed, consumed // part.size, unit, read,
                             part)
  stream = mixed_records(sources, seed, consumed, unit, read)
  before = part.rank * part.window
  after = (part.size - part.rank - 1) * part.window
  while True:
    for _ in itertools.islice(stream, before):
      pass
    yield from itertools.islice(stream, part.window)
    for _ in itertools.islice(stream, after):
      pass
