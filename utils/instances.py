"""Pre-training instances: pairs of segments and their masks.

As published (Devlin et al. 2018, section 3.1 and the reference's
create_pretraining_data.py), but in two passes. `plan_instances` walks through
the sentences and settles which tokens form A and B: as every segment is a run
of the text, a row of five numbers says it all. `make_batch` then cuts, masks
and pads some thousand rows at a time with numpy. So nothing but the tokens and
the rows is held in memory, and the rows are shuffled instead of the instances.

Chance comes from two sources whose sequences are promised never to change:
`random.Random.random` and the legacy `numpy.random.RandomState`.
"""

import bisect
from array import array
from typing import Any, FrozenSet, List, NamedTuple

import numpy as np

# Bits set in each byte.
_ONES = np.array([bin(i).count("1") for i in range(256)], np.uint8)
# Of 64 random bits so many make room for a position: 8192 of them at most.
_POSITION_BITS = 13
_NEVER = np.uint64(0xffffffffffffffff)


class Rules(NamedTuple):
  """What the builders of instances must know.

  `cls_id`, `sep_id`, `mask_id` are ids of the vocabulary;
  `continuations` holds the ids of the pieces that go on a word ("##...").
  """
  max_seq_length: int
  max_predictions_per_seq: int
  masked_lm_prob: float
  short_seq_prob: float
  do_whole_word_mask: bool
  vocab_size: int
  cls_id: int
  sep_id: int
  mask_id: int
  continuations: FrozenSet[int]


class Text(NamedTuple):
  """Tokens of documents whose instances are mixed with each other.

  `tokens` is an int32 array of ids; sentence i is `starts[i]:starts[i + 1]`
  of it, never empty; document d has the sentences `firsts[d]:firsts[d + 1]`,
  one at least. So both lists have one number more than there are things.
  """
  tokens: Any
  starts: List[int]
  firsts: List[int]


class Batch(NamedTuple):
  """n instances: arrays of int32 but for `is_random_next` (bool).

  `input_ids` [n, max_seq_length] is masked and padded with 0; `lengths` [n]
  and `first_lengths` [n] count real tokens and those of segment 0, its [SEP]
  included; `positions` and `labels` [n, max_predictions_per_seq] are padded
  with 0, `counts` [n] of them are real.
  """
  input_ids: Any
  lengths: Any
  first_lengths: Any
  is_random_next: Any
  positions: Any
  labels: Any
  counts: Any


def between(random, low, high):
  """Returns an int drawn evenly from low..high, both included.

  Args:
    random: function that returns floats of [0, 1).
    low: int.
    high: int.
  """
  return low + int(random() * (high - low + 1))


def plan_document(text, index, rules, random, plan):
  """Adds the instances of one document to a plan, as published.

  Sentences are gathered until they reach the target length, then divided at
  a random sentence into A and B. In half of the cases, and always if there
  is but one sentence, B is replaced by text of another document, and the
  sentences that were to be B are used again.

  Args:
    text: Text.
    index: which document.
    rules: Rules.
    random: function that returns floats of [0, 1).
    plan: array("i"); five numbers an instance are added: the places in
      `text.tokens` where A starts and ends and where B does, not cut yet, and
      whether B is random.
  """
  starts = text.starts
  start, last = text.firsts[index], text.firsts[index + 1]
  target = rules.max_seq_length - 3
  # Short sequences are wasteful, but what comes after pre-training has them.
  if random() < rules.short_seq_prob:
    target = between(random, 2, target)
  while start < last:
    first_token = starts[start]
    end = bisect.bisect_left(starts, first_token + target, start + 1, last)
    middle = start + 1
    if end > middle:
      middle += int(random() * (end - middle))
    middle_token = starts[middle]
    if end - start == 1 or random() < 0.5:
      low, high = _random_next(
          text, index, target - (middle_token - first_token), random)
      plan.extend((first_token, middle_token, low, high, 1))
      start = middle
    else:
      plan.extend((first_token, middle_token, middle_token, starts[end], 0))
      start = end


def _random_next(text, index, target, random):
  """Returns where `target` or more tokens of another document start and end.

  One sentence at least; "another", unless ten draws all hit this one.
  """
  for _ in range(10):
    other = between(random, 0, len(text.firsts) - 2)
    if other != index:
      break
  first, last = text.firsts[other], text.firsts[other + 1]
  sentence = between(random, first, last - 1)
  low = text.starts[sentence]
  end = bisect.bisect_left(text.starts, low + target, sentence + 1, last)
  return low, text.starts[end]


def plan_instances(text, rules, dupe_factor, random):
  """Returns the plan of all instances of a text.

  Args:
    text: Text.
    rules: Rules.
    dupe_factor: passes over the text.
    random: function that returns floats of [0, 1).

  Returns:
    int32 array [instances, 5], in the order of passes and documents; see
    `plan_document`.
  """
  plan = array("i")
  for _ in range(dupe_factor):
    for index in range(len(text.firsts) - 1):
      plan_document(text, index, rules, random, plan)
  return np.frombuffer(plan, np.int32).reshape(-1, 5)


def _fronts(dropped, chance):
  """Returns how many of `dropped` tokens go from the front, each by a coin.

  Args:
    dropped: int array [n].
    chance: RandomState.
  """
  sizes = (dropped + 7) // 8
  ends = np.cumsum(sizes)
  total = int(ends[-1])
  fronts = np.zeros(len(dropped), np.int64)
  if not total:
    return fronts
  coins = np.frombuffer(chance.bytes(total), np.uint8).copy()
  some = dropped > 0
  rest = dropped[some] % 8
  coins[ends[some] - 1] &= np.where(rest, (1 << rest) - 1, 255).astype(
      np.uint8)
  fronts[some] = np.add.reduceat(
      _ONES[coins], (ends - sizes)[some], dtype=np.int64)
  return fronts


def cut_pairs(plan, max_tokens, chance):
  """Cuts tokens off the longer segment until both fit together.

  Each token goes from the front or the back with equal chance, so that
  neither sentence starts nor sentence ends are favoured. As in the reference,
  the second of two equally long segments gives way first.

  Args:
    plan: rows of `plan_instances`.
    max_tokens: most tokens of A and B.
    chance: RandomState.

  Returns:
    (start of A, length of A, start of B, length of B): int64 arrays [n].
  """
  a, a_end, b, b_end = plan[:, :4].T.astype(np.int64)
  a_length, b_length = a_end - a, b_end - b
  excess = np.maximum(a_length + b_length - max_tokens, 0)
  uneven = np.minimum(excess, np.abs(a_length - b_length))
  a_longer = a_length > b_length
  a_drop = (excess - uneven) // 2 + np.where(a_longer, uneven, 0)
  b_drop = excess - a_drop
  a = a + _fronts(a_drop, chance)
  b = b + _fronts(b_drop, chance)
  return a, a_length - a_drop, b, b_length - b_drop


def _lay_out(tokens, a, a_length, b, b_length, rules):
  """Returns (ids [n, seq] with [CLS] A [SEP] B [SEP], candidates' mask)."""
  column = np.arange(rules.max_seq_length)
  first_end = a_length[:, None] + 1   # the place of the first [SEP]
  last = first_end + b_length[:, None] + 1
  in_a = column < first_end
  place = np.where(in_a, a[:, None] - 1, (b[:, None] - 1) - first_end) + column
  candidates = column < last
  candidates[:, 0] = False
  rows = np.arange(len(a))
  candidates[rows, first_end[:, 0]] = False
  ids = np.where(candidates, tokens.take(place, mode="clip"), 0)
  ids[:, 0] = rules.cls_id
  ids[rows, first_end[:, 0]] = rules.sep_id
  ids[rows, last[:, 0]] = rules.sep_id
  return ids, candidates


def _keys(shape, chance):
  """Returns random uint64 [n, m], the column in the lowest bits: no ties."""
  keys = np.frombuffer(
      chance.bytes(8 * shape[0] * shape[1]), "<u8").reshape(shape)
  return (keys << np.uint64(_POSITION_BITS)) | np.arange(
      shape[1], dtype=np.uint64)


def _columns(keys):
  return (keys & np.uint64((1 << _POSITION_BITS) - 1)).astype(np.int32)


def _choose_pieces(candidates, counts, most, chance):
  """Returns positions [n, most], `counts` [n] of each row, ascending, then 0.

  Each set of so many candidates is equally likely.
  """
  keys = np.where(candidates, _keys(candidates.shape, chance), _NEVER)
  if most < keys.shape[1]:
    keys = np.partition(keys, most - 1, axis=1)[:, :most]
  positions = _columns(np.sort(keys, axis=1))
  return _in_order(positions, np.arange(positions.shape[1]) < counts[:, None])


def _in_order(positions, chosen):
  """Sorts the chosen ones of [n, m] in front of the others, which become 0."""
  beyond = 1 << _POSITION_BITS
  positions = np.sort(np.where(chosen, positions, beyond), axis=1)
  positions[positions == beyond] = 0
  return positions


def _choose_words(ids, candidates, counts, rules, chance):
  """Returns (positions [n, most], how many of each row): whole words.

  As published: words are taken in random order; one that would exceed
  `counts` [n] is passed over. A "##" piece belongs to the word before it,
  even where that word ends segment A (the start of B's word was cut off).
  """
  continues = np.zeros(rules.vocab_size, bool)
  continues[list(rules.continuations)] = True
  heads = candidates & ~continues[ids]
  heads[:, 1] = candidates[:, 1]
  words = np.where(candidates, np.cumsum(heads, axis=1), 0)
  rows, width = words.shape
  row = np.arange(rows)
  sizes = np.bincount((words + row[:, None] * width).ravel(),
                      minlength=rows * width).reshape(rows, width)
  # Column w of the keys is word w: as many as the row has.
  exist = np.arange(width) <= words.max(axis=1)[:, None]
  exist[:, 0] = False
  keys = np.sort(np.where(exist, _keys(words.shape, chance), _NEVER), axis=1)
  taken = np.zeros((rows, width), bool)
  totals = np.zeros(rows, np.int64)
  for step in range(int(exist.sum(axis=1).max())):
    word = _columns(keys[:, step])
    size = np.where(keys[:, step] == _NEVER, width, sizes[row, word % width])
    fits = totals + size <= counts
    taken[row[fits], word[fits]] = True
    totals += np.where(fits, size, 0)
    if (totals == counts).all():
      break
  chosen = taken[row[:, None], words] & candidates
  return (_in_order(np.arange(width)[None, :], chosen)
          [:, :rules.max_predictions_per_seq], totals)


def mask_tokens(ids, candidates, lengths, rules, chance):
  """Masks tokens in place: 80 % [MASK], 10 % as they are, 10 % any token.

  Args:
    ids: int array [n, seq].
    candidates: bool array [n, seq]: may be masked.
    lengths: int array [n], real tokens of each row.
    rules: Rules.
    chance: RandomState.

  Returns:
    (positions, labels, counts) as in Batch.
  """
  most = rules.max_predictions_per_seq
  counts = np.clip(np.rint(lengths * rules.masked_lm_prob).astype(np.int64),
                   1, np.minimum(most, candidates.sum(axis=1)))
  if rules.do_whole_word_mask:
    positions, counts = _choose_words(ids, candidates, counts, rules, chance)
  else:
    positions = _choose_pieces(candidates, counts, most, chance)
  row = np.arange(len(ids))[:, None]
  valid = np.arange(positions.shape[1]) < counts[:, None]
  labels = np.where(valid, ids[row, positions], 0)
  fate = chance.random_sample(labels.shape)
  strange = (chance.random_sample(labels.shape) * rules.vocab_size).astype(
      ids.dtype)
  replaced = np.where(fate < 0.8, rules.mask_id,
                      np.where(fate < 0.9, labels, strange))
  rows, columns = np.nonzero(valid)
  ids[rows, positions[rows, columns]] = replaced[rows, columns]
  return positions, labels, counts


def make_batch(text, plan, rules, chance):
  """Returns the Batch of some rows of a plan.

  Args:
    text: Text.
    plan: rows of `plan_instances`, in any order.
    rules: Rules.
    chance: RandomState.
  """
  a, a_length, b, b_length = cut_pairs(plan, rules.max_seq_length - 3, chance)
  ids, candidates = _lay_out(text.tokens, a, a_length, b, b_length, rules)
  lengths = a_length + b_length + 3
  positions, labels, counts = mask_tokens(
      ids, candidates, lengths, rules, chance)
  return Batch(ids, lengths, a_length + 2, plan[:, 4] != 0, positions, labels,
               counts)
