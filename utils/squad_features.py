"""SQuAD questions as model input: windows over paragraphs, in numpy columns.

Equal, field for field, to the published featurisation (run_squad's
convert_examples_to_features), but a paragraph is tokenised once and not once
a question, a word once and not once an occurrence, and the rest is array
arithmetic over all windows at a time.
"""

from typing import NamedTuple

import numpy as np

from utils.errors import UserError

# Raise it whenever the columns of equal input change: it is part of the key
# under which features are cached.
FEATURE_VERSION = 1
FIRST_UNIQUE_ID = 1000000000


class FeatureSettings(NamedTuple):
  """All that shapes features, beside the questions themselves."""
  max_seq_length: int
  doc_stride: int
  max_query_length: int
  do_lower_case: bool
  # SHA-256 of the vocabulary file.
  vocab_sha256: str


class Features(object):
  """The windows of all questions, one row a window.

  A row is `[CLS] question [SEP] piece of the paragraph [SEP]`, padded with
  zeros. Its paragraph tokens are row positions `query_length + 2` to
  `length - 2`; `token_to_orig` and `is_max_context` hold one value for each
  of them, row after row, row i's at `doc_offsets[i]:doc_offsets[i + 1]`.

  Attributes:
    unique_ids: int32 [n], from 1000000000.
    example_index: int32 [n], ascending.
    doc_span_index: int32 [n], number of the window within its question.
    input_ids: int32 [n, seq].
    length: int32 [n], tokens that are not padding.
    query_length: int32 [n], tokens of the question.
    is_impossible: bool [n].
    start_positions, end_positions: int32 [n], first and last token of the
      answer as row positions, both 0 ([CLS]) where the window lacks the
      answer; None unless for training.
    doc_offsets: int64 [n + 1].
    token_to_orig: int32 [paragraph tokens of all rows], index of the
      white-space separated word that the token comes from.
    is_max_context: bool, as long; whether no other window of the question
      shows the token with more context.
  """

  COLUMNS = ("unique_ids", "example_index", "doc_span_index", "input_ids",
             "length", "query_length", "is_impossible", "doc_offsets",
             "token_to_orig", "is_max_context")
  TRAINING_COLUMNS = ("start_positions", "end_positions")

  def __init__(self, **columns):
    for name in self.COLUMNS:
      setattr(self, name, columns.pop(name))
    for name in self.TRAINING_COLUMNS:
      setattr(self, name, columns.pop(name, None))
    if columns:
      raise ValueError("unknown columns: %s" % ", ".join(sorted(columns)))

  def __len__(self):
    return len(self.unique_ids)

  def columns(self):
    """Returns {name: array} of the columns that are there."""
    names = self.COLUMNS + self.TRAINING_COLUMNS
    return {name: getattr(self, name) for name in names
            if getattr(self, name) is not None}

  def input_mask(self, rows):
    """Returns int32 [k, seq] for k row numbers: 1 for what is not padding."""
    positions = np.arange(self.input_ids.shape[1])
    return (positions < self.length[rows][:, None]).astype(np.int32)

  def segment_ids(self, rows):
    """Returns int32 [k, seq] for k row numbers: 1 for the paragraph's part.

    That part includes the last [SEP]; padding has 0.
    """
    positions = np.arange(self.input_ids.shape[1])
    inside = ((positions >= self.query_length[rows][:, None] + 2)
              & (positions < self.length[rows][:, None]))
    return inside.astype(np.int32)


def check_settings(settings):
  """Raises UserError if windows of these lengths cannot be made."""
  if settings.doc_stride < 1:
    raise UserError("--doc_stride=%d must be at least 1" % settings.doc_stride)
  if settings.max_query_length < 1:
    raise UserError("--max_query_length=%d must be at least 1"
                    % settings.max_query_length)
  if settings.max_seq_length <= settings.max_query_length + 3:
    raise UserError(
        "--max_seq_length=%d must be greater than --max_query_length=%d + 3: "
        "[CLS], two [SEP] and the paragraph need room"
        % (settings.max_seq_length, settings.max_query_length))


def _offsets(counts):
  """Returns int64 [n + 1]: where each of n runs of these lengths begins."""
  return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])


def _runs(starts, counts):
  """Returns start, start + 1, ... of each run, one run after the other."""
  offsets = _offsets(counts)
  return (np.arange(offsets[-1])
          + np.repeat(np.asarray(starts, np.int64) - offsets[:-1], counts))


class _Pieces(object):
  """Token ids of many texts, each distinct word tokenised once.

  Words are what blanks separate. The tokenizer cleans and splits at blanks
  before anything else, so a text's tokens are its words' tokens in a row.
  """

  def __init__(self, tokenizer):
    self._tokenizer = tokenizer
    self._numbers = {}
    self._ids = []
    self._starts = [0]

  def _add(self, word):
    tokens = self._tokenizer.tokenize(word)
    self._ids.extend(self._tokenizer.convert_tokens_to_ids(tokens))
    self._starts.append(len(self._ids))
    number = self._numbers[word] = len(self._numbers)
    return number

  def of(self, words):
    """Returns (ids, counts) of a list of words.

    ids is int32, the tokens of all words in a row; counts is int64
    [len(words)].
    """
    known = self._numbers
    numbers = np.fromiter(
        (known[w] if w in known else self._add(w) for w in words),
        np.int64, len(words))
    starts = np.asarray(self._starts)
    counts = np.diff(starts)[numbers]
    ids = np.asarray(self._ids, np.int32)
    return ids[_runs(starts[:-1][numbers], counts)], counts


class _Texts(object):
  """Ragged token ids of a list of texts, each given as a list of words.

  Attributes:
    ids: int32, all tokens in a row.
    offsets: int64 [n + 1], where each text's tokens begin.
    word_of: int32 like ids, index of the token's word within its text.
    word_starts: int64, for each word its first token within its text.
    word_offsets: int64 [n + 1], where each text's words begin.
  """

  def __init__(self, texts, pieces):
    words = [word for text in texts for word in text]
    self.ids, counts = pieces.of(words)
    self.word_offsets = _offsets([len(text) for text in texts])
    starts = _offsets(counts)
    self.offsets = starts[self.word_offsets]
    word_counts = np.diff(self.word_offsets)
    self.word_starts = starts[:-1] - np.repeat(self.offsets[:-1], word_counts)
    self.word_of = np.repeat(
        _runs(np.zeros_like(word_counts), word_counts), counts
    ).astype(np.int32)

  @property
  def lengths(self):
    """int64 [n], tokens of each text."""
    return np.diff(self.offsets)

  def of(self, number):
    """Returns the token ids of one text, int32."""
    return self.ids[self.offsets[number]:self.offsets[number + 1]]


def _share_paragraphs(examples):
  """Returns the distinct word lists and each example's number among them.

  Questions on one paragraph hold the same list object, which lives as long
  as they do.
  """
  numbers, paragraphs, paragraph_of = {}, [], []
  for example in examples:
    key = id(example.doc_tokens)
    if key not in numbers:
      numbers[key] = len(paragraphs)
      paragraphs.append(example.doc_tokens)
    paragraph_of.append(numbers[key])
  return paragraphs, np.asarray(paragraph_of, np.int64)


def _improved_span(tokens, start, end, answer):
  """Returns the first place within [start, end] that is exactly `answer`.

  The words that an answer touches may hold more than it, as "(1895-1943)."
  does for "1895"; their tokens often hold it exactly. Where they do not,
  the words' whole span stays.

  Args:
    tokens: bytes of the paragraph's token ids, 4 a token.
    start, end: int, first and last token of the words.
    answer: bytes of the answer's token ids.
  """
  length = len(answer) // 4
  if length:
    for first in range(start, end - length + 2):
      if tokens[first * 4:(first + length) * 4] == answer:
        return first, first + length - 1
  return start, end


def _answer_spans(examples, paragraphs, paragraph_of, pieces):
  """Returns int64 [m], [m]: each answer's first and last paragraph token.

  Both are -1 for questions without an answer.
  """
  answers = _Texts([(e.orig_answer_text or "").split(" ") for e in examples],
                   pieces)
  starts = np.full(len(examples), -1, np.int64)
  ends = np.full(len(examples), -1, np.int64)
  for i, example in enumerate(examples):
    if example.is_impossible:
      continue
    number = paragraph_of[i]
    words = paragraphs.word_offsets[number]
    tokens = paragraphs.of(number)
    start = int(paragraphs.word_starts[words + example.start_position])
    if example.end_position < len(example.doc_tokens) - 1:
      end = int(paragraphs.word_starts[words + example.end_position + 1]) - 1
    else:
      end = len(tokens) - 1
    starts[i], ends[i] = _improved_span(
        tokens.tobytes(), start, end, answers.of(i).tobytes())
  return starts, ends


class _Windows(NamedTuple):
  """One value a window: int64 [n] each.

  example: number of the question.
  index: number of the window within the question.
  count: windows of the question.
  step: paragraph tokens between this question's windows.
  size: most paragraph tokens a window of this question can hold.
  start: first paragraph token.
  length: number of paragraph tokens.
  """
  example: np.ndarray
  index: np.ndarray
  count: np.ndarray
  step: np.ndarray
  size: np.ndarray
  start: np.ndarray
  length: np.ndarray


def _slide(doc_lengths, query_lengths, settings):
  """Returns the _Windows over paragraphs of `doc_lengths` tokens, int64 [m].

  All windows of a question but the last are full, so they start at equal
  distances and their number is a division rounded up.
  """
  size = settings.max_seq_length - query_lengths - 3
  step = np.minimum(size, settings.doc_stride)
  count = 1 + np.maximum(-((size - doc_lengths) // step), 0)
  example = np.repeat(np.arange(len(count)), count)
  index = _runs(np.zeros_like(count), count)
  start = index * step[example]
  return _Windows(
      example=example, index=index, count=count[example], step=step[example],
      size=size[example], start=start,
      length=np.minimum(doc_lengths[example] - start, size[example]))


def _context_score(position, start, length):
  """The published measure of how much context a window gives a token.

  The smaller side counts; 1 % of the window's length breaks ties.
  """
  left = position - start
  return np.minimum(left, length - 1 - left) + 0.01 * length


def _max_context(windows, doc_lengths):
  """Returns bool, one a window's token: no other window shows more context.

  Among equals the first window wins.

  Args:
    windows: _Windows.
    doc_lengths: int64 [m], tokens of each question's paragraph.
  """
  result = np.ones(int(windows.length.sum()), np.bool_)
  several = windows.count > 1
  if not several.any():
    return result
  row = np.repeat(np.arange(len(several)), windows.length)
  place = np.flatnonzero(several[row])
  row = row[place]
  position = place - _offsets(windows.length)[row] + windows.start[row]
  own = _context_score(position, windows.start[row], windows.length[row])
  best = np.ones(len(place), np.bool_)
  reach = int(np.max(-(-windows.size[several] // windows.step[several]))) - 1
  for distance in range(1, reach + 1):
    for sign in (-1, 1):
      other = windows.index[row] + sign * distance
      start = other * windows.step[row]
      length = np.minimum(doc_lengths[windows.example[row]] - start,
                          windows.size[row])
      shows = ((other >= 0) & (other < windows.count[row])
               & (position >= start) & (position < start + length))
      score = _context_score(position, start, length)
      best &= ~(shows & ((score >= own) if sign < 0 else (score > own)))
  result[place] = best
  return result


def _fill(windows, paragraphs, paragraph_of, queries, query_length, settings,
          tokenizer):
  """Returns (input_ids [n, seq], flat index of the rows' paragraph tokens)."""
  cls, sep = tokenizer.convert_tokens_to_ids(["[CLS]", "[SEP]"])
  seq = settings.max_seq_length
  input_ids = np.zeros((len(windows.start), seq), np.int32)
  rows = np.arange(len(input_ids))
  asked = query_length[windows.example]
  input_ids[:, 0] = cls
  input_ids[rows, asked + 1] = sep
  input_ids[rows, asked + 2 + windows.length] = sep
  flat = input_ids.reshape(-1)
  flat[_runs(rows * seq + 1, asked)] = queries.ids[
      _runs(queries.offsets[:-1][windows.example], asked)]
  source = _runs(
      paragraphs.offsets[:-1][paragraph_of[windows.example]] + windows.start,
      windows.length)
  flat[_runs(rows * seq + asked + 2, windows.length)] = paragraphs.ids[source]
  return input_ids, source


def _positions(windows, query_length, starts, ends):
  """Returns the answers' int32 [n] start and end positions within rows.

  Args:
    windows: _Windows.
    query_length: int64 [m].
    starts, ends: int64 [m], paragraph tokens; -1 where there is no answer.
  """
  start, end = starts[windows.example], ends[windows.example]
  last = windows.start + windows.length - 1
  inside = (start >= windows.start) & (end <= last) & (start >= 0)
  shift = query_length[windows.example] + 2 - windows.start
  return (np.where(inside, start + shift, 0).astype(np.int32),
          np.where(inside, end + shift, 0).astype(np.int32))


def featurize(examples, tokenizer, settings, is_training):
  """Turns questions into model input.

  Args:
    examples: list of `squad_data.Example`; those on one paragraph share
      their `doc_tokens` list.
    tokenizer: `tokenization.FullTokenizer`.
    settings: FeatureSettings.
    is_training: whether to add the answers' positions.

  Returns:
    Features.

  Raises:
    UserError: if the lengths do not fit together, or a paragraph has no
      token that the tokenizer keeps.
  """
  check_settings(settings)
  pieces = _Pieces(tokenizer)
  shared, paragraph_of = _share_paragraphs(examples)
  paragraphs = _Texts(shared, pieces)
  queries = _Texts([e.question_text.split(" ") for e in examples], pieces)
  doc_lengths = paragraphs.lengths[paragraph_of]
  if not doc_lengths.all():
    raise UserError("question %s: its context has no readable character: "
                    "mend or remove it"
                    % examples[int(np.argmin(doc_lengths))].qas_id)
  query_length = np.minimum(queries.lengths, settings.max_query_length)
  windows = _slide(doc_lengths, query_length, settings)
  input_ids, source = _fill(windows, paragraphs, paragraph_of, queries,
                            query_length, settings, tokenizer)
  asked = query_length[windows.example]
  training = {}
  if is_training:
    starts, ends = _answer_spans(examples, paragraphs, paragraph_of, pieces)
    training = dict(zip(Features.TRAINING_COLUMNS, _positions(
        windows, query_length, starts, ends)))
  impossible = np.array([e.is_impossible for e in examples], np.bool_)
  return Features(
      unique_ids=np.arange(len(input_ids), dtype=np.int32) + FIRST_UNIQUE_ID,
      example_index=windows.example.astype(np.int32),
      doc_span_index=windows.index.astype(np.int32),
      input_ids=input_ids,
      length=(asked + windows.length + 3).astype(np.int32),
      query_length=asked.astype(np.int32),
      is_impossible=impossible[windows.example],
      doc_offsets=_offsets(windows.length),
      token_to_orig=paragraphs.word_of[source],
      is_max_context=_max_context(windows, doc_lengths),
      **training)
