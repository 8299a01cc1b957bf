"""instances against Google's script, part by part."""

import random
from unittest import mock

from absl import flags
import numpy as np
import pytest
import tensorflow.compat.v1 as tf

from instance_making import book
from instance_making import book_ids
from instance_making import planned
from instance_making import real_rules
from instance_making import text_of
from instance_making import vocab
from utils import instances as making


class TestLikeGoogle(object):
  """Google's function, drawing from our stream, makes our pairs."""

  class Stream(object):
    """A random.Random for Google's code that draws as ours does."""

    def __init__(self, seed):
      self.random = random.Random(seed).random

    def randint(self, low, high):
      return making.between(self.random, low, high)

  @pytest.fixture(scope="class")
  def google(self):
    # Its flags have the names of ours.
    pytest.importorskip("bert.tokenization")
    flags.FLAGS.mark_as_parsed()
    nothing = {name: mock.DEFAULT for name in (
        "DEFINE_string", "DEFINE_bool", "DEFINE_integer", "DEFINE_float")}
    with mock.patch.multiple(tf.flags, **nothing):
      return pytest.importorskip("bert.create_pretraining_data")

  @pytest.mark.parametrize("seq,short", [
      (128, 0.1), (64, 1.0), (5, 0.5), (512, 0.0)])
  def test_pairs(self, google, book, book_ids, vocab, real_rules, seq, short):
    """All that comes before cutting and masking, which draw in another way."""
    rules = real_rules._replace(max_seq_length=seq, short_seq_prob=short)
    text = text_of(book_ids)
    words = np.array(list(vocab))[text.tokens].tolist()
    theirs, ours = self.Stream(seq), random.Random(seq).random
    pairs = []

    def keep(first, second, most, stream):
      assert most == seq - 3 and stream is theirs
      pairs.append((list(first), list(second)))
      del first[1:], second[1:]

    compared = 0
    with mock.patch.object(google, "truncate_seq_pair", keep):
      for index in range(0, len(book), 1 if seq > 64 else 7):
        del pairs[:]
        with mock.patch.object(google, "create_masked_lm_predictions",
                               lambda tokens, *rest: (tokens, [], [])):
          expected = google.create_instances_from_document(
              book, index, seq, short, 0.15, 20, words, theirs)
        found = planned(text, index, rules, ours).tolist()
        assert len(found) == len(expected)
        for row, pair, instance in zip(found, pairs, expected):
          compared += 1
          assert words[row[0]:row[1]] == pair[0]
          assert words[row[2]:row[3]] == pair[1]
          assert bool(row[4]) == instance.is_random_next
    assert compared > 200

  def test_cuts(self, google):
    """How much goes from which segment."""
    chance = random.Random(4)
    lengths = [(chance.choice([1, 2, 60, chance.randrange(1, 400)]),
                chance.choice([1, 2, 60, chance.randrange(1, 400)]))
               for _ in range(2000)]
    plan = np.array([(0, a, 1000, 1000 + b, 0) for a, b in lengths], np.int32)
    _, first, _, second = making.cut_pairs(plan, 125, np.random.RandomState(1))
    for (a, b), mine in zip(lengths, zip(first, second)):
      left, right = [0] * a, [0] * b
      google.truncate_seq_pair(left, right, 125, chance)
      assert mine == (len(left), len(right)), (a, b)

  def test_number_of_masks(self, google, vocab, real_rules):
    words = list(vocab)
    for length in list(range(5, 129)):
      ids = np.full((1, 128), 0)
      ids[0, :length] = [real_rules.cls_id, 2000, real_rules.sep_id] + (
          [3000] * (length - 4)) + [real_rules.sep_id]
      candidates = (ids == 2000) | (ids == 3000)
      tokens = [words[i] for i in ids[0, :length]]
      _, positions, _ = google.create_masked_lm_predictions(
          tokens, 0.15, 20, words, random.Random(1))
      _, _, counts = making.mask_tokens(
          ids, candidates, np.array([length]), real_rules,
          np.random.RandomState(1))
      assert counts.tolist() == [len(positions)]
