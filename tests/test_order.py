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
