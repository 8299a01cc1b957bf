"""instances: the published algorithm, rates and pairs."""

import collections
import itertools
import random
import zlib

import numpy as np
import pytest

from instance_making import CLS
from instance_making import SEP
from instance_making import all_instances
from instance_making import book
from instance_making import book_ids
from instance_making import make
from instance_making import numbered_documents
from instance_making import planned
from instance_making import real_rules
from instance_making import rules_for
from instance_making import text_of
from instance_making import unmasked
from instance_making import vocab
from utils import instances as making

# Of test_same_bytes_everywhere.
DIGEST = 3764434511

# Of a normal distribution 99.9 % lie within so many standard deviations.
SURE = 3.29


def assert_near(count, total, expected, tells_from=None):
  """The count suits the expected share, at a confidence of 99.9 %.

  Seeds are fixed, so this holds always or never.

  Args:
    count: int.
    total: int, number of independent draws.
    expected: share.
    tells_from: a share that a fault would give; there must be draws enough
      that its own 99.9 % lie apart from those of `expected`.
  """
  def width(share):
    return SURE * (share * (1 - share) / total) ** 0.5

  assert abs(count / float(total) - expected) < width(expected), (
      count, total, count / float(total))
  if tells_from is not None:
    assert width(expected) + width(tells_from) < abs(expected - tells_from)


def assert_even(counts, values):
  """The counts of `values` suit an even distribution, likewise.

  By chi-square, in Wilson and Hilferty's approximation (99.9 %: 3.09).
  """
  assert set(counts) == set(values)
  expected = sum(counts.values()) / float(len(values))
  chi_square = sum((counts[v] - expected) ** 2 / expected for v in values)
  freedom = len(values) - 1
  spread = 2 / (9.0 * freedom)
  assert chi_square < freedom * (1 - spread + 3.09 * spread ** 0.5) ** 3


def of_two_sentences(plan):
  """Leaves out what is random by rule: chunks of but one sentence.

  Where no sentence reaches the target length alone, that is only a
  document's last chunk: one of more sentences that got a random B would have
  left the others for a further chunk.

  Args:
    plan: rows of one document, in order.
  """
  if len(plan) and plan[-1, 4]:
    return plan[:-1]
  return plan


@pytest.fixture(scope="module")
def real_instances(book_ids, real_rules):
  return [i for seed in range(4)
          for i in all_instances(book_ids, real_rules, seed)]


class TestMasking(object):
  """Rates on real text."""

  def test_15_percent(self, real_instances):
    lengths = collections.Counter()
    for instance in real_instances:
      wanted = min(20, max(1, int(round(len(instance.input_ids) * 0.15))))
      assert len(instance.masked_lm_positions) == wanted
      lengths[len(instance.input_ids)] += 1
    assert len(real_instances) > 4000 and lengths[128] > 2000

  def test_80_10_10(self, real_instances, real_rules):
    masked = kept = total = 0
    strange = collections.Counter()
    for instance in real_instances:
      for position, label in zip(instance.masked_lm_positions,
                                 instance.masked_lm_ids):
        total += 1
        token = instance.input_ids[position]
        if token == real_rules.mask_id:
          masked += 1
        elif token == label:
          kept += 1
        else:
          strange[token] += 1
    assert total > 50000
    assert_near(masked, total, 0.8)
    assert_near(kept, total, 0.1)
    replaced = sum(strange.values())
    assert_near(replaced, total, 0.1)
    # Drawn evenly from the whole vocabulary.
    for part in range(3):
      low, high = (real_rules.vocab_size * p // 3 for p in (part, part + 1))
      assert_near(sum(n for t, n in strange.items() if low <= t < high),
                  replaced, 1 / 3.0)

  def test_positions_evenly_spread(self, real_instances):
    """Every place of full sequences is masked equally often."""
    counts = collections.Counter()
    full = [i for i in real_instances if len(i.input_ids) == 128]
    for instance in full:
      counts.update(instance.masked_lm_positions)
    # 19 of 125 candidates; a place is [SEP] in few instances.
    for position in range(1, 127):
      assert abs(counts[position] / float(len(full)) - 19 / 125.0) < 0.05

  def test_form(self, real_instances, real_rules):
    special = {real_rules.cls_id, real_rules.sep_id}
    for instance in real_instances:
      ids, positions = instance.input_ids, instance.masked_lm_positions
      assert 5 <= len(ids) <= 128
      assert 2 < instance.first_length < len(ids) - 1
      assert positions == sorted(set(positions))
      assert 0 < positions[0] and positions[-1] < len(ids) - 1
      assert instance.first_length - 1 not in positions
      assert not special.intersection(instance.masked_lm_ids)
      assert ids[0] == real_rules.cls_id
      assert ids[-1] == ids[instance.first_length - 1] == real_rules.sep_id

  def test_labels_are_the_text(self):
    for instance in all_instances(
        numbered_documents(50, 20, 9), rules_for(10000)):
      for segment in unmasked(instance):
        assert segment == list(range(segment[0], segment[-1] + 1))

  @staticmethod
  def masked(ids, rules, seed=1):
    """Masks one row, a list of ids; returns (positions, labels)."""
    row = np.zeros((1, rules.max_seq_length), np.int64)
    row[0, :len(ids)] = ids
    positions, labels, counts = making.mask_tokens(
        row, row >= 10, np.array([len(ids)]), rules,
        np.random.RandomState(seed))
    return (positions[0, :counts[0]].tolist(), labels[0, :counts[0]].tolist())

  def test_at_least_one(self):
    positions, labels = self.masked(
        [CLS, 10, SEP, 11, SEP], rules_for(20, masked_lm_prob=0.01))
    assert len(positions) == 1 and labels[0] in (10, 11)

  def test_no_more_than_there_are(self):
    assert self.masked([CLS, 10, SEP, 11, SEP], rules_for(
        20, masked_lm_prob=0.99)) == ([1, 3], [10, 11])

  def test_sets_are_equally_likely(self):
    """Each pair of four candidates, so neighbours are independent."""
    rules = rules_for(20, masked_lm_prob=0.29)
    counts = collections.Counter(
        tuple(self.masked([CLS, 10, 11, SEP, 12, 13, SEP], rules, seed)[0])
        for seed in range(6000))
    assert_even(counts, [(1, 2), (1, 4), (1, 5), (2, 4), (2, 5), (4, 5)])


class TestWholeWords(object):

  @pytest.fixture(scope="class")
  def instances(self, book_ids, real_rules):
    rules = real_rules._replace(do_whole_word_mask=True)
    return all_instances(book_ids, rules, 5)

  def test_all_pieces_or_none(self, instances, real_rules):
    continuations = real_rules.continuations
    several = 0
    for instance in instances:
      ids = list(instance.input_ids)
      chosen = set(instance.masked_lm_positions)
      for position, label in zip(instance.masked_lm_positions,
                                 instance.masked_lm_ids):
        ids[position] = label
      for position in range(2, len(ids) - 1):
        # The first piece of B may be a cut word's.
        if (ids[position] in continuations
            and ids[position - 1] not in (real_rules.cls_id,
                                          real_rules.sep_id)):
          several += position in chosen
          assert (position in chosen) == (position - 1 in chosen)
    assert several > 500

  def test_rate(self, instances):
    """Words that do not fit are passed over, so few masks are missing."""
    missing = wanted = 0
    for instance in instances:
      most = min(20, max(1, int(round(len(instance.input_ids) * 0.15))))
      assert len(instance.masked_lm_positions) <= most
      wanted += most
      missing += most - len(instance.masked_lm_positions)
    assert missing < wanted * 0.002

  def test_rule_by_hand(self):
    """A word of three pieces never fits into two predictions."""
    rules = rules_for(100, do_whole_word_mask=True, masked_lm_prob=0.2,
                      continuations=frozenset([50, 51, 52]))
    ids = [CLS, 10, 50, 51, 11, SEP, 52, 12, 13, SEP]
    seen = {tuple(TestMasking.masked(ids, rules, seed)[0])
            for seed in range(200)}
    # 52 has lost its word's start and goes with the last word of A.
    assert seen == {(4, 6), (7, 8)}

  def test_a_cut_word_at_the_start(self):
    """A piece without a word before it is a word of its own."""
    rules = rules_for(100, do_whole_word_mask=True, masked_lm_prob=0.01,
                      continuations=frozenset([50, 51]))
    ids = [CLS, 50, 10, SEP, 51, SEP]
    seen = {tuple(TestMasking.masked(ids, rules, seed)[0])
            for seed in range(200)}
    assert seen == {(1,)}

  def test_order_of_words_is_even(self):
    rules = rules_for(100, do_whole_word_mask=True, masked_lm_prob=0.01,
                      continuations=frozenset([50]))
    counts = collections.Counter(
        tuple(TestMasking.masked(
            [CLS, 10, 11, 50, SEP, 12, 13, SEP], rules, seed)[0])
        for seed in range(4000))
    assert_even(counts, [(1,), (5,), (6,)])


class TestPairs(object):

  def test_next_is_next_and_random_is_elsewhere(self):
    documents = numbered_documents(60, 40, 7)
    size = 40 * 7
    labels = collections.Counter()
    for instance in all_instances(documents, rules_for(20000)):
      first, second = unmasked(instance)
      home, other = ((s[0] - 1000) // size for s in (first, second))
      labels[instance.is_random_next] += 1
      if instance.is_random_next:
        assert home != other
      else:
        assert home == other and first[-1] < second[0]
        if len(first) + len(second) < 125:
          assert second[0] == first[-1] + 1
    assert min(labels.values()) > 80

  def test_half_are_random(self):
    documents = numbered_documents(8, 16000, 1)
    rules = rules_for(200000, max_seq_length=13, max_predictions_per_seq=1)
    chance, text = random.Random(2).random, text_of(documents)
    labels = [row[4] for index in range(len(documents))
              for row in of_two_sentences(planned(text, index, rules, chance))]
    assert_near(sum(labels), len(labels), 0.5, tells_from=0.47)

  def test_half_are_random_on_real_text(self, book_ids, real_rules):
    rules = real_rules._replace(max_seq_length=320, max_predictions_per_seq=1,
                                short_seq_prob=0.0)
    # No sentence may reach the target alone.
    documents = [d for d in book_ids if max(map(len, d)) < 317]
    assert len(documents) > 0.9 * len(book_ids)
    chance, text = random.Random(3).random, text_of(documents)
    labels = [row[4] for _ in range(20) for index in range(len(documents))
              for row in of_two_sentences(planned(text, index, rules, chance))]
    assert_near(sum(labels), len(labels), 0.5, tells_from=0.46)

  def test_all_text_is_used(self):
    """What a random B displaced begins the next pair: nothing is lost."""
    documents = numbered_documents(20, 30, 3)
    rules = rules_for(3000, short_seq_prob=0.0)
    firsts = collections.Counter()
    for instance in all_instances(documents, rules):
      first, second = unmasked(instance)
      firsts.update(first)
      if not instance.is_random_next:
        firsts.update(second)
    missing = [i for d in documents for s in d for i in s if not firsts[i]]
    # Only truncation loses any: a chunk may be two tokens too long.
    assert len(missing) < 20 * 90 * 0.03
    assert max(firsts.values()) == 1

  def test_single_document_takes_itself(self):
    instances = all_instances(numbered_documents(1, 50, 9), rules_for(2000))
    assert any(i.is_random_next for i in instances)

  def test_single_sentence_is_random(self):
    for instance in all_instances(
        [[[10, 11]], [[12, 13]]], rules_for(20)):
      assert instance.is_random_next

  def first_lengths(self, short_seq_prob, seed):
    """Returns lengths of documents' first pairs, of sentences of one token.

    With those a pair that is really next hits its target, 2 to 32.
    """
    documents = numbered_documents(20000, 33, 1)
    rules = rules_for(1000000, max_seq_length=35, max_predictions_per_seq=1,
                      short_seq_prob=short_seq_prob)
    chance, text = random.Random(seed).random, text_of(documents)
    firsts = [planned(text, index, rules, chance)[0]
              for index in range(len(documents))]
    return [int(row[3] - row[0]) for row in firsts if not row[4]]

  def test_a_tenth_is_short(self):
    lengths = self.first_lengths(0.1, 7)
    short = sum(length < 32 for length in lengths)
    # One short target of 31 is 32 again.
    assert_near(short, len(lengths), 0.1 * 30 / 31,
                tells_from=0.08 * 30 / 31)

  def test_short_lengths_are_even_from_2(self):
    lengths = self.first_lengths(1.0, 8)
    assert_even(collections.Counter(lengths), range(2, 33))
    assert set(self.first_lengths(0.0, 9)) == {32}

  def test_short_share_on_real_text(self, book_ids, real_rules):
    """What each document's first pair is, against its odds by hand."""
    size, half, repeats = 61, 0.5, 12
    rules = real_rules._replace(max_seq_length=size + 3,
                                max_predictions_per_seq=1, short_seq_prob=half)
    documents = [d[i:i + 7] for d in book_ids for i in range(0, len(d), 7)]
    documents = [d for d in documents if sum(map(len, d)) >= size]
    expected = variance = found = 0
    chance, text = random.Random(10).random, text_of(documents)
    for index, document in enumerate(documents):
      ends = list(itertools.accumulate(map(len, document)))
      # The chunk of each target, where it shows that the target was short:
      # below the full size, of two sentences at least.
      chunks = [min(e for e in ends if e >= target)
                for target in range(2, size + 1)]
      odds = 0.5 * half * sum(
          ends[0] < chunk < size for chunk in chunks) / len(chunks)
      expected += repeats * odds
      variance += repeats * odds * (1 - odds)
      for _ in range(repeats):
        row = planned(text, index, rules, chance)[0]
        found += bool(not row[4] and row[3] - row[0] < size)
    width = SURE * variance ** 0.5
    assert abs(found - expected) < width, (found, expected)
    # A fifth less would have been seen.
    assert 2 * width < 0.2 * expected, (width, expected)

  def test_truncation_at_both_ends(self):
    plan = np.array([(0, 300, 1000, 1200, 0)] * 200, np.int32)
    a, a_length, b, b_length = making.cut_pairs(
        plan, 125, np.random.RandomState(11))
    assert (a_length == 62 + (a_length > b_length)).all()
    assert (a_length + b_length == 125).all()
    assert (a >= 0).all() and (a + a_length <= 300).all()
    assert (b >= 1000).all() and (b + b_length <= 1200).all()
    cut_front = int(a.sum() + b.sum()) - 200 * 1000
    assert_near(cut_front, 200 * 375, 0.5)

  def test_no_truncation(self):
    plan = np.array([(5, 7, 9, 10, 1), (5, 8, 20, 30, 0)], np.int32)
    assert [x.tolist() for x in making.cut_pairs(
        plan[:1], 3, np.random.RandomState(1))] == [[5], [2], [9], [1]]
    # Beside a row that is cut, and a long one: bits are counted row by row.
    a, a_length, b, b_length = making.cut_pairs(
        np.concatenate([plan, [(0, 100000, 7, 8, 0)]]), 12,
        np.random.RandomState(1))
    assert a_length.tolist() == [2, 3, 11] and b_length.tolist() == [1, 9, 1]
    assert a[0] == 5 and b[0] == 9 and a[1] == 5 and b[1] in (20, 21)
    assert_near(int(a[2]), 99989, 0.5)

  def test_truncation_on_real_text(self, book_ids, real_rules):
    """Cuts reach sentence starts and ends equally often."""
    starts = {tuple(s[:3]) for d in book_ids for s in d}
    ends = {tuple(s[-3:]) for d in book_ids for s in d}
    cut_start = cut_end = 0
    for instance in all_instances(book_ids, real_rules, 9):
      if len(instance.input_ids) < 128:
        continue
      ids = list(instance.input_ids)
      for position, label in zip(instance.masked_lm_positions,
                                 instance.masked_lm_ids):
        ids[position] = label
      segment = ids[1:instance.first_length - 1]
      if len(segment) > 8:
        cut_start += tuple(segment[:3]) not in starts
        cut_end += tuple(segment[-3:]) not in ends
    assert cut_start > 100 and cut_end > 100
    assert 0.8 < cut_start / float(cut_end) < 1.25


class TestCopies(object):

  @pytest.mark.parametrize("factor", [1, 4])
  def test_dupe_factor_on_real_text(self, book_ids, real_rules, factor):
    """Each document comes so often, with other masks each time."""
    text = text_of(book_ids)
    plan = making.plan_instances(
        text, real_rules, factor, random.Random(5).random)
    # A pass begins where the first document begins.
    starts = np.flatnonzero(plan[:, 0] == 0)
    assert len(starts) == factor and starts[0] == 0
    for document in range(len(book_ids)):
      low, high = (text.starts[text.firsts[d]] for d in (document,
                                                         document + 1))
      assert np.count_nonzero(plan[:, 0] == low) == factor
      inside = (plan[:, 0] >= low) & (plan[:, 0] < high)
      assert (plan[inside, 1] <= high).all()
    made = make(text, plan, real_rules, 5)
    assert len({str(instance) for instance in made}) == len(plan)
    # Three quarters of a sequence are new text, the rest comes from elsewhere.
    assert abs(len(plan) * 125 * 0.75 / len(text.tokens) / factor - 1) < 0.15


class TestChance(object):

  def test_between(self):
    stream = iter([0.0, 0.999999999, 0.5]).__next__
    assert [making.between(stream, 3, 5) for _ in range(3)] == [3, 5, 4]

  def test_same_bytes_everywhere(self):
    """The streams and what is made of them, on any Python and numpy."""
    text = text_of(numbered_documents(3, 4, 30))
    rules = rules_for(20000, max_seq_length=40, max_predictions_per_seq=4)
    plan = making.plan_instances(text, rules, 1, random.Random(1).random)
    batch = making.make_batch(text, plan, rules, np.random.RandomState([1, 2]))
    digest = zlib.crc32(repr(
        [plan.tolist()] + [value.tolist() for value in batch]).encode())
    assert digest == DIGEST
