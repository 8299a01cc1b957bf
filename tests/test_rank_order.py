"""What each rank reads: disjoint parts, nothing left out, exact resume."""

import itertools

import pytest

from test_order import shards  # pylint: disable=unused-import
from utils import order
from utils import records


def take(sources, part, count, consumed=0, unit=1):
  return list(itertools.islice(order.rank_records(
      sources, 1, part, consumed, unit), count))


def write(path, name, count):
  records.write_records(str(path), [b"%s/%d" % (name, i)
                                    for i in range(count)])
  return str(path)


@pytest.fixture
def one_file(tmp_path):
  return [([write(tmp_path / "one", b"one", 50)], [50])]


@pytest.mark.parametrize("size", [2, 3, 7, 11])
def test_by_file_every_record_is_read_by_one_rank(shards, size):
  total = sum(shards[1])
  parts = [order.Part(rank, size, 4) for rank in range(size)]
  assert order.is_by_file([shards], parts[0])
  lengths = [total * (r + 1) // size - total * r // size for r in range(size)]
  assert max(lengths) - min(lengths) <= 1 and sum(lengths) == total
  expected = sorted(b"%d/%d" % (n, i) for n, count in enumerate(shards[1])
                    for i in range(count))
  for epoch in range(2):
    read = [take([shards], part, (epoch + 1) * length)[epoch * length:]
            for part, length in zip(parts, lengths)]
    assert sorted(itertools.chain(*read)) == expected
  assert take([shards], parts[0], 20) != take([shards], parts[1], 20)


def test_by_file_a_rank_reads_few_of_the_files(shards):
  """Two ranks may meet inside of a file; else a file has one reader."""
  size, seen = 3, []

  def read(path, skip=0):
    seen.append(path)
    return records.read_records(path, skip)

  total = sum(shards[1])
  for rank in range(size):
    list(itertools.islice(order.rank_records(
        [shards], 1, order.Part(rank, size, 1), 0, read=read), total // size))
  assert len(seen) <= len(shards[0]) + 2 * size


@pytest.mark.parametrize("consumed", [0, 8, 24, 80, 168])
def test_by_file_the_rest_follows_from_the_count(shards, consumed):
  for rank in (0, 1):
    part = order.Part(rank, 2, 4)
    whole = take([shards], part, 120)
    assert take([shards], part, 20, consumed) == whole[
        consumed // 2:consumed // 2 + 20]


@pytest.mark.parametrize("size, window", [(2, 4), (3, 2)])
def test_with_few_files_an_update_has_what_one_rank_would_have(
    one_file, size, window):
  parts = [order.Part(rank, size, window) for rank in range(size)]
  assert not order.is_by_file(one_file, parts[0])
  alone = take(one_file, order.Part(), 120)
  updates = 120 // (size * window)
  streams = [take(one_file, part, updates * window) for part in parts]
  joined = []
  for update in range(updates):
    for stream in streams:
      joined += stream[update * window:(update + 1) * window]
  assert joined == alone
  # The rest from the middle of it.
  assert take(one_file, parts[1], window, 4 * size * window) == streams[1][
      4 * window:5 * window]


def test_sources_keep_their_shares_on_every_rank(tmp_path, shards):
  other = [write(tmp_path / ("b%d" % n), b"b%d" % n, 10) for n in range(4)]
  sources = [shards, (other, [10] * 4)]
  read = [take(sources, order.Part(rank, 2, 4), 60) for rank in (0, 1)]
  for stream in read:
    share = sum(record.startswith(b"b") for record in stream) / 60
    assert abs(share - 40 / (sum(shards[1]) + 40)) < 0.05
  assert sorted(itertools.chain(*read)) == sorted(
      [b"%d/%d" % (n, i) for n, c in enumerate(shards[1]) for i in range(c)]
      + [b"b%d/%d" % (n, i) for n in range(4) for i in range(10)])


def test_single_source_batches_stay_so_on_ranks(tmp_path, shards):
  other = [write(tmp_path / ("b%d" % n), b"b%d" % n, 10) for n in range(4)]
  for rank in (0, 1):
    stream = take([shards, (other, [10] * 4)], order.Part(rank, 2, 4), 40,
                  unit=4)
    for at in range(0, 40, 4):
      assert len({record[:1] == b"b" for record in stream[at:at + 4]}) == 1


def test_one_rank_reads_what_it_always_read(shards):
  assert take([shards], order.Part(window=8), 200) == list(itertools.islice(
      order.mixed_records([shards], 1), 200))


def test_the_division_is_told(one_file, shards):
  assert "files of its own" in order.division([shards], order.Part(0, 2, 1))
  assert "fewer files" in order.division(one_file, order.Part(0, 2, 1))
