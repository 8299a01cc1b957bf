"""From span logits to answers, as the published run_squad finds them.

For equal logits the three files are byte for byte those of Google's code;
the search for candidate spans runs on arrays and the realignment to the
original text on words that are tokenised once.
"""

import collections
import json
import logging
import math
import os
from typing import NamedTuple

import numpy as np

from utils import files
from utils.errors import UserError

_LOGGER = logging.getLogger("bert")
# Rows whose start x end candidates are looked at together.
_CHUNK = 512
# The published "large and positive" start of the search for the least null
# score.
_LARGE = 1000000


class AnswerSettings(NamedTuple):
  """How answers are chosen; names and meaning are the flags'."""
  n_best_size: int = 20
  max_answer_length: int = 30
  do_lower_case: bool = True
  version_2_with_negative: bool = False
  null_score_diff_threshold: float = 0.0
  verbose_logging: bool = False


class Answers(NamedTuple):
  """Results by question id, in the order of the questions.

  predictions: {id: text}; "" means no answer.
  nbest: {id: list of {"text", "probability", "start_logit", "end_logit"}}.
  null_odds: {id: score of no answer minus best answer's}; empty for v1.1.
  """
  predictions: collections.OrderedDict
  nbest: collections.OrderedDict
  null_odds: collections.OrderedDict


class _Spans(NamedTuple):
  """Candidate answers of all questions, best first within each question.

  offsets: list of int [questions + 1], where each question's spans begin.
  The rest are lists, one value a span: row of the features, first and last
  token as row positions, their logits, and the sum of those.
  """
  offsets: list
  row: list
  start: list
  end: list
  start_logit: list
  end_logit: list
  score: list


def best_indexes(logits, n_best_size):
  """Returns int64 [n, k]: positions of the largest logits, largest first.

  Equal logits keep the order of their positions.

  Args:
    logits: float [n, seq].
    n_best_size: int; k is this or seq, the smaller.
  """
  return np.argsort(-logits, axis=1, kind="stable")[:, :n_best_size]


def _token_table(features, rows, values, empty):
  """Returns [k, seq]: ragged per-token `values` at their row positions."""
  table = np.full((len(rows), features.input_ids.shape[1]), empty,
                  values.dtype)
  first, last = rows[0], rows[-1] + 1
  ragged = slice(features.doc_offsets[first], features.doc_offsets[last])
  positions = np.arange(table.shape[1])
  begin = features.query_length[first:last, None] + 2
  end = features.length[first:last, None] - 1
  table[(positions >= begin) & (positions < end)] = values[ragged]
  return table


def _candidates(features, rows, start_logits, end_logits, settings):
  """Returns (row, start, end) int64 arrays of the spans that may be answers.

  In the published order: by row, then rank of the start, then of the end. But
  for padding, which is never among the best: what a model gives it means
  nothing, and differs between the layouts of `modeling.ModelOptions`.

  Args:
    rows: int64 [k], consecutive row numbers.
    start_logits, end_logits: float [k, seq] of these rows.
  """
  real = np.arange(start_logits.shape[1]) < features.length[rows][:, None]
  starts, ends = (
      best_indexes(np.where(real, logits, -np.inf), settings.n_best_size)
      for logits in (start_logits, end_logits))
  # A token may start an answer only in the window that shows it best; both
  # ends must lie in the paragraph's part.
  may_start = np.take_along_axis(_token_table(
      features, rows, features.is_max_context, False), starts, axis=1)
  positions = ends - features.query_length[rows][:, None]
  may_end = (positions >= 2) & (ends < features.length[rows][:, None] - 1)
  length = ends[:, None, :] - starts[:, :, None] + 1
  allowed = (may_start[:, :, None] & may_end[:, None, :]
             & (length >= 1) & (length <= settings.max_answer_length))
  row, i, j = np.nonzero(allowed)
  return rows[row], starts[row, i], ends[row, j]


def _find_spans(features, num_examples, start_logits, end_logits, settings):
  """Returns the _Spans of all questions."""
  found = []
  for first in range(0, len(features), _CHUNK):
    rows = np.arange(first, min(first + _CHUNK, len(features)))
    found.append(_candidates(features, rows, start_logits[rows],
                             end_logits[rows], settings))
  row, start, end = (np.concatenate(part) for part in zip(*found))
  # Python's floats are doubles: so are the published sums.
  start_logit = start_logits[row, start].astype(np.float64)
  end_logit = end_logits[row, end].astype(np.float64)
  score = start_logit + end_logit
  example = features.example_index[row]
  order = np.lexsort((-score, example))
  offsets = np.searchsorted(example[order], np.arange(num_examples + 1))
  columns = (a[order].tolist()
             for a in (row, start, end, start_logit, end_logit, score))
  return _Spans(offsets.tolist(), *columns)


class _Texts(object):
  """Spans as text of the paragraph, in its own casing and spacing."""

  def __init__(self, examples, features, tokenizer, verbose):
    self._examples = examples
    self._features = features
    self._tokens = tokenizer.inv_vocab
    self._basic = tokenizer.basic_tokenizer
    self._verbose = verbose
    self._words = {}
    self._row = self._doc = None

  def _load(self, row):
    features = self._features
    self._row = row
    self._ids = features.input_ids[row, :features.length[row]].tolist()
    begin = features.doc_offsets[row]
    self._word_of = features.token_to_orig[
        begin:features.doc_offsets[row + 1]].tolist()
    self._shift = int(features.query_length[row]) + 2
    doc = self._examples[features.example_index[row]].doc_tokens
    if doc is not self._doc:
      self._doc = doc
      self._parts = [self._basic_tokens(word) for word in doc]

  def _basic_tokens(self, word):
    """Returns the word's basic tokens, blanks between."""
    if word not in self._words:
      self._words[word] = " ".join(self._basic.tokenize(word))
    return self._words[word]

  def of(self, row, start, end):
    """Returns the text of tokens `start` to `end` (row positions)."""
    if row != self._row:
      self._load(row)
    tokens = self._tokens
    pieces = " ".join([tokens[i] for i in self._ids[start:end + 1]])
    pieces = pieces.replace(" ##", "").replace("##", "")
    predicted = " ".join(pieces.split())
    covered = slice(self._word_of[start - self._shift],
                    self._word_of[end - self._shift] + 1)
    # Words hold no blank, so their basic tokens in a row are those of the
    # joined text.
    return realign(predicted, " ".join(self._doc[covered]),
                   " ".join([part for part in self._parts[covered] if part]),
                   self._verbose)


def _nth_visible(text, number):
  """Returns the index of the `number`-th (from 0) non-blank in `text`."""
  index = number
  while True:
    found = index + 1 - text.count(" ", 0, index + 1)
    if found == number + 1 and text[index] != " ":
      return index
    index += max(number + 1 - found, 1)


def realign(predicted, original, tokenized, verbose=False):
  """Finds the part of `original` that a normalised answer came from.

  For instance "steve smith" in "Steve Smith's" gives "Steve Smith". Works
  where `original` and `tokenized` have the same characters but for blanks
  and casing, one to one; elsewhere all of `original` is the answer, as
  published (run_squad's get_final_text).

  Args:
    predicted: the answer's tokens as text, no blank at its ends.
    original: words of the paragraph that hold it.
    tokenized: basic tokens of `original`, blanks between.
    verbose: whether to log why all of `original` was taken.

  Returns:
    Text of `original`.
  """
  start = tokenized.find(predicted) if predicted else -1
  if start == -1:
    if verbose:
      _LOGGER.info("unable to find %r in %r", predicted, original)
    return original
  visible = len(original) - original.count(" ")
  if visible != len(tokenized) - tokenized.count(" "):
    if verbose:
      _LOGGER.info("%r and %r do not align", original, tokenized)
    return original
  end = start + len(predicted) - 1
  first = start - tokenized.count(" ", 0, start)
  last = end - tokenized.count(" ", 0, end)
  return original[_nth_visible(original, first):
                  _nth_visible(original, last) + 1]


def softmax(scores):
  """Returns the probabilities of a list of scores, in double precision."""
  largest = max(scores)
  powers = [math.exp(score - largest) for score in scores]
  total = 0.0
  for power in powers:
    total += power
  return [power / total for power in powers]


def _null_scores(features, num_examples, start_logits, end_logits):
  """Returns for each question its least [CLS] score over the windows.

  Returns:
    list of (score, start logit, end logit), floats.
  """
  best = [(_LARGE, 0, 0)] * num_examples
  first = start_logits[:, 0].astype(np.float64).tolist()
  last = end_logits[:, 0].astype(np.float64).tolist()
  for example, start, end in zip(features.example_index.tolist(), first, last):
    if start + end < best[example][0]:
      best[example] = (start + end, start, end)
  return best


def _entries(spans, begin, end, texts, n_best_size, null):
  """Returns one question's n-best list of (text, start logit, end logit).

  Args:
    spans: _Spans; the question's are numbers `begin` to `end` - 1.
    texts: _Texts.
    n_best_size: int.
    null: (score, start logit, end logit) of no answer, or None for v1.1.
  """
  entries, seen = [], set()
  pending = null is not None
  for number in range(begin, end + 1):
    # No answer comes after all spans that score no less.
    if pending and (number == end or spans.score[number] < null[1] + null[2]):
      if len(entries) < n_best_size:
        seen.add("")
        entries.append(("", null[1], null[2]))
      pending = False
    if number == end or len(entries) >= n_best_size:
      break
    text = texts.of(spans.row[number], spans.start[number], spans.end[number])
    if text not in seen:
      seen.add(text)
      entries.append((text, spans.start_logit[number],
                      spans.end_logit[number]))
  if null is not None and "" not in seen:
    entries.append(("", null[1], null[2]))
  return entries or [("empty", 0.0, 0.0)]


def _choose(entries, null_score, threshold):
  """Returns (answer, null odds) of a v2.0 question.

  Where no window has a valid span the published code crashes; there is
  nothing to weigh no answer against, so its odds are the largest.
  """
  for text, start_logit, end_logit in entries:
    if text:
      odds = null_score - start_logit - end_logit
      return "" if odds > threshold else text, odds
  return "", float(_LARGE)


def _check(examples, features, start_logits, end_logits, settings, tokenizer):
  if settings.n_best_size < 1 or settings.max_answer_length < 1:
    raise UserError("--n_best_size=%d and --max_answer_length=%d must be at "
                    "least 1" % (settings.n_best_size,
                                 settings.max_answer_length))
  if tokenizer.basic_tokenizer.do_lower_case != settings.do_lower_case:
    raise ValueError("the tokenizer's do_lower_case is not the settings'")
  for logits in (start_logits, end_logits):
    if logits.shape != features.input_ids.shape:
      raise ValueError("logits %s for features %s"
                       % (logits.shape, features.input_ids.shape))
    finite = np.isfinite(logits).all(axis=1)
    if not finite.all():
      row = int(np.argmin(finite))
      raise UserError(
          "the model's logits for question %s are not finite: the checkpoint "
          "is not usable" % examples[features.example_index[row]].qas_id)


def predict_answers(examples, features, start_logits, end_logits, settings,
                    tokenizer):
  """Chooses the answers, as published in run_squad's write_predictions.

  Args:
    examples: list of `squad_data.Example`.
    features: their `squad_data.Features`, n windows.
    start_logits, end_logits: float32 [n, seq], in the features' order.
    settings: AnswerSettings.
    tokenizer: `tokenization.FullTokenizer` that made the features.

  Returns:
    Answers.

  Raises:
    UserError: a setting below 1, or logits that are not finite.
  """
  start_logits = np.asarray(start_logits, np.float32)
  end_logits = np.asarray(end_logits, np.float32)
  _check(examples, features, start_logits, end_logits, settings, tokenizer)
  spans = _find_spans(features, len(examples), start_logits, end_logits,
                      settings)
  texts = _Texts(examples, features, tokenizer, settings.verbose_logging)
  nulls = [None] * len(examples)
  if settings.version_2_with_negative:
    nulls = _null_scores(features, len(examples), start_logits, end_logits)
  answers = Answers(*(collections.OrderedDict() for _ in range(3)))
  for i, (example, null) in enumerate(zip(examples, nulls)):
    entries = _entries(spans, spans.offsets[i], spans.offsets[i + 1], texts,
                       settings.n_best_size, null)
    probabilities = softmax([start + end for _, start, end in entries])
    answers.nbest[example.qas_id] = [
        {"text": text, "probability": probability, "start_logit": start,
         "end_logit": end}
        for (text, start, end), probability in zip(entries, probabilities)]
    if null is None:
      answers.predictions[example.qas_id] = entries[0][0]
    else:
      text, odds = _choose(entries, null[0],
                           settings.null_score_diff_threshold)
      answers.predictions[example.qas_id] = text
      answers.null_odds[example.qas_id] = odds
  return answers


def write_answers(output_dir, predictions, nbest, null_odds=None,
                  version_2_with_negative=False):
  """Writes predictions.json, nbest_predictions.json and null_odds.json.

  Each is whole or not there; the last is written for v2.0 alone.

  Args:
    output_dir: folder.
    predictions, nbest, null_odds: as in `Answers`.
    version_2_with_negative: whether there are null odds.

  Returns:
    {file name: path}.
  """
  contents = [("predictions.json", predictions),
              ("nbest_predictions.json", nbest)]
  if version_2_with_negative:
    contents.append(("null_odds.json", null_odds))
  paths = {}
  for name, value in contents:
    paths[name] = os.path.join(output_dir, name)
    with files.atomic_write(paths[name]) as stream:
      stream.write(json.dumps(value, indent=4) + "\n")
  return paths
