"""The order of records: complete, seeded, and the same after a resume."""

import itertools

import numpy as np
import pytest

from utils import order
from utils import records


@pytest.fixture
def shards(tmp_path, monkeypatch):
  """Eleven files of unequal size (one empty), small windows and groups."""
  monkeypatch.setattr(order, "WINDOW", 16)
  monkeypatch.setattr(order, "GROUP", 4)
  counts = [5, 1, 17, 0, 9, 3, 30, 2, 8, 1, 4]
  paths = []
  for number, count in enumerate(counts):
    path = str(tmp_path / ("%02d.tfrecord" % number))
    records.write_records(
        path, [b"%d/%d" % (number, i) for i in range(count)])
    paths.append(path)
  return paths, counts


def take(shards, count, seed=1, consumed=0):
  paths, counts = shards
  return list(itertools.islice(
      order.shuffled_records(paths, counts, seed, consumed), count))


def test_every_epoch_has_every_record_once(shards):
  total = sum(shards[1])
  stream = take(shards, 3 * total)
  expected = sorted(b"%d/%d" % (n, i) for n, count in enumerate(shards[1])
                    for i in range(count))
  for epoch in range(3):
    assert sorted(stream[epoch * total:(epoch + 1) * total]) == expected


def test_epochs_and_seeds_differ(shards):
  total = sum(shards[1])
  stream = take(shards, 2 * total)
  assert stream[:total] != stream[total:]
  assert stream[:total] != take(shards, total, seed=2)
  assert stream[:total] == take(shards, total)


def test_resumed_stream_is_the_rest(shards):
  total = sum(shards[1])
  stream = take(shards, 2 * total + 40)
  for consumed in range(0, 2 * total + 20):
    assert take(shards, 12, consumed=consumed) == stream[
        consumed:consumed + 12]


def test_round_robin_by_hand():
  # Turns: a b c | a b c | a c | a ; files of 4, 2 and 3 records.
  turns = [0, 1, 2, 0, 1, 2, 0, 2, 0]
  for consumed in range(len(turns) + 1):
    skips, turn = order._round_robin_skips([4, 2, 3], consumed)
    assert skips == [turns[:consumed].count(i) for i in range(3)]
    if consumed < 6:
      assert turn == turns[consumed]


def test_index_batches_cross_epochs_and_resume():
  stream = order.index_batches(10, seed=3, batch_size=4, consumed=0)
  rows = np.concatenate([next(stream) for _ in range(5)])
  assert sorted(rows[:10]) == sorted(rows[10:]) == list(range(10))
  resumed = order.index_batches(10, seed=3, batch_size=4, consumed=8)
  assert list(next(resumed)) == list(rows[8:12])


def test_permutation_is_frozen():
  # Any other order would break the resume of existing runs.
  assert list(order.permutation(1, 2, 6, 3)) == [0, 2, 4, 5, 3, 1]


class TestSources(object):
  """Several sources: each has its share, and a resume finds its place."""

  @pytest.fixture
  def sources(self, shards):
    paths, counts = shards
    # 17 + 5 + 1, 30 and 9 records.
    return [(paths[:3], counts[:3]), ([paths[6]], [counts[6]]),
            (paths[3:5], counts[3:5])]

  @staticmethod
  def source_of(payload):
    number = int(payload.split(b"/")[0])
    return 0 if number < 3 else 1 if number == 6 else 2

  @staticmethod
  def take(sources, count, consumed=0, unit=1):
    return list(itertools.islice(
        order.mixed_records(sources, 1, consumed, unit), count))

  def test_shares(self, sources):
    """Never a record away from its share, so each stretch has them all."""
    labels = [self.source_of(p) for p in self.take(sources, 4 * 62)]
    for end in range(1, len(labels) + 1):
      for source, size in enumerate((23, 30, 9)):
        assert abs(labels[:end].count(source) - end * size / 62.0) < 1.01
    for start in range(0, 248, 31):
      assert set(labels[start:start + 31]) == {0, 1, 2}

  @pytest.mark.parametrize("unit", [1, 5])
  def test_each_goes_through_its_epochs(self, sources, unit):
    stream = self.take(sources, 1240, unit=unit)
    for source, (paths, counts) in enumerate(sources):
      mine = [p for p in stream if self.source_of(p) == source]
      size = sum(counts)
      assert mine == take((paths, counts), len(mine), seed=1 + source)
      assert len(set(mine[:size])) == size

  def test_a_unit_is_of_one_source(self, sources):
    stream = self.take(sources, 620, unit=5)
    labels = [self.source_of(p) for p in stream]
    units = [set(labels[i:i + 5]) for i in range(0, 620, 5)]
    assert all(len(unit) == 1 for unit in units)
    assert [sum(unit == {s} for unit in units) for s in range(3)] == [46, 60,
                                                                      18]

  @pytest.mark.parametrize("unit", [1, 5])
  def test_resume(self, sources, unit):
    whole = self.take(sources, 400, unit=unit)
    for consumed in (0, 5, 30, 145, 310):
      rest = self.take(sources, 400 - consumed, consumed, unit)
      assert rest == whole[consumed:]

  def test_a_single_source_is_as_without(self, shards):
    assert self.take([shards], 200, 33) == take(shards, 200, consumed=33)

  @pytest.mark.parametrize("sizes", [
      [1], [3, 1], [1, 1, 1, 1], [1000, 1], [7, 300, 2, 2, 90, 1]])
  def test_turns_far_ahead_are_those_one_by_one(self, sizes):
    done = [0] * len(sizes)
    for turn in range(1500):
      assert order.turns_of(sizes, turn) == done
      done[order._next_turn(sizes, done)] += 1
    assert sum(order.turns_of(sizes, 10 ** 12 + 1)) == 10 ** 12 + 1


def test_grouped_batches_are_of_similar_length():
  lengths = np.random.RandomState(3).randint(1, 400, 1003)
  batches = list(itertools.islice(
      order.index_batches(1003, 7, 8, 0, lengths), 3 * 1003 // 8))
  plain = list(itertools.islice(order.index_batches(1003, 7, 8, 0), 375))
  spread = lambda found: np.mean([np.ptp(lengths[rows]) for rows in found])
  assert spread(batches) < 0.15 * spread(plain)
  # Each row once an epoch, whose batches meet inside of one.
  flat = np.concatenate(batches)
  for epoch in range(2):
    assert sorted(flat[1003 * epoch:1003 * (epoch + 1)]) == list(range(1003))
  # Batches follow each other at random, and other epochs have others.
  means = np.array([lengths[rows].mean() for rows in batches[:125]])
  assert abs(np.corrcoef(means[1:], means[:-1])[0, 1]) < 0.4
  assert flat[:1003].tolist() != flat[1003:2006].tolist()


@pytest.mark.parametrize("consumed", [0, 8, 1000, 1003, 2000, 5008])
def test_grouped_batches_go_on_anywhere(consumed):
  lengths = np.random.RandomState(3).randint(1, 400, 1003)
  whole = order.index_batches(1003, 7, 8, 0, lengths)
  rest = order.index_batches(1003, 7, 8, consumed // 8 * 8, lengths)
  for expected, found in zip(itertools.islice(whole, consumed // 8, 900),
                             itertools.islice(rest, 40)):
    np.testing.assert_array_equal(found, expected)
