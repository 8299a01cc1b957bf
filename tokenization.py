"""WordPiece tokenization as published with BERT, behind a cache of words.

The steps are those of the reference: drop control characters, set CJK
characters apart, split at white space, lower-case and strip accents
(uncased models), split at punctuation, then take the longest piece of the
vocabulary again and again. Only the first three look at more than one word,
so everything after them is remembered by word: most words of a text have
been seen before.

Nothing here imports more than the standard library; TensorFlow's gfile is
imported only for a vocabulary at a `scheme://` path.
"""

import collections
import io
import itertools
import re
import unicodedata
from array import array

from utils.errors import UserError

# Two generations of at most CACHE_WORDS words of at most CACHE_WORD_CHARS
# characters: at most 262,144 entries. Measured: 65 MB of ordinary words, 180 MB
# of the worst (all punctuation, four bytes a character). Packed ids take twice
# as many words: 120 MB of ordinary ones, 230 MB of the worst.
CACHE_WORDS = 131072
CACHE_WORD_CHARS = 32

_CJK_RANGES = (
    (0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF),
    (0x2A700, 0x2B73F), (0x2B740, 0x2B81F), (0x2B820, 0x2CEAF),
    (0xF900, 0xFAFF), (0x2F800, 0x2FA1F))

_ASCII_PARTS = re.compile(r"[0-9A-Za-z]+|[^0-9A-Za-z]")
_NOT_ASCII = re.compile(r"[^\x00-\x7f]")
_BRACKETED = re.compile(r"^(\[.*\]|<.*>)$")
_UPPER = re.compile(r"[A-Z]")
_SCHEME = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]*://")


def _is_whitespace(char):
  """Says whether `char` counts as a blank: \\t, \\n, \\r or category Zs."""
  return char in " \t\n\r" or unicodedata.category(char) == "Zs"


def _is_control(char):
  """Says whether `char` is dropped: category Cc or Cf, but no white space."""
  return char not in "\t\n\r" and unicodedata.category(char) in ("Cc", "Cf")


def _is_punctuation(char):
  """Says whether `char` stands alone: category P*, or an ASCII symbol.

  All of ASCII that is neither letter, digit, blank nor control counts, also
  what Unicode calls a symbol ("$", "^", "`").
  """
  if " " < char < "\x7f":
    return not char.isalnum()
  return unicodedata.category(char).startswith("P")


def _is_removed(char):
  return char == "\ufffd" or _is_control(char)


def _class_of(codes):
  """Returns the inside of a regular expression's class for code points."""
  ranges = []
  for code in sorted(codes):
    if ranges and code == ranges[-1][1] + 1:
      ranges[-1][1] = code
    else:
      ranges.append([code, code])
  return "".join("%s-%s" % (re.escape(chr(low)), re.escape(chr(high)))
                 for low, high in ranges)


def _removed_codes():
  # Format characters lie in planes 0, 1 and 14 alone; looking at all of
  # Unicode would cost each start a tenth of a second.
  return [code for code in itertools.chain(range(0x20000),
                                           range(0xE0000, 0xE1000))
          if _is_removed(chr(code))]


_CJK_CODES = frozenset(itertools.chain.from_iterable(
    range(low, high + 1) for low, high in _CJK_RANGES))
_REMOVED = re.compile("[%s]+" % _class_of(_removed_codes()))
_CJK = re.compile("([%s])" % _class_of(_CJK_CODES))
# Whether a text needs either of the two. All beyond the basic plane counts:
# `re` searches one table for the basic plane, but range by range beyond it.
_UNUSUAL = re.compile("[%s\U00010000-\U0010ffff]" % _class_of(
    code for code in _CJK_CODES.union(_removed_codes()) if code < 0x10000))


def convert_to_unicode(text):
  """Returns `text` as str; bytes are read as UTF-8, bad bytes dropped.

  Raises:
    ValueError: if `text` is neither str nor bytes.
  """
  if isinstance(text, str):
    return text
  if isinstance(text, bytes):
    return text.decode("utf-8", "ignore")
  raise ValueError("Unsupported string type: %s" % type(text))


def printable_text(text):
  """Returns `text` (str or bytes) as str for a log line."""
  return convert_to_unicode(text)


def _open_vocab(path):
  if _SCHEME.match(path):
    import tensorflow.compat.v1 as tf  # pylint: disable=g-import-not-at-top
    return tf.gfile.GFile(path, "rb")
  return io.open(path, "rb")


def load_vocab(vocab_file):
  """Reads a vocabulary, one token a line, ids in the order of the lines.

  Args:
    vocab_file: path; `scheme://` paths are read through TensorFlow.

  Returns:
    OrderedDict from token (str) to id (int, from 0).

  Raises:
    UserError: if the file is missing, empty or not UTF-8, or if a token
      occurs twice (the reference's versions give such tokens different ids).
  """
  try:
    with _open_vocab(vocab_file) as stream:
      data = stream.read()
  except Exception as error:  # gfile raises errors of its own.
    reason = getattr(error, "strerror", None) or error
    raise UserError("cannot read the vocabulary %s (%s)"
                    % (vocab_file, reason))
  try:
    lines = data.decode("utf-8").split("\n")
  except UnicodeDecodeError as error:
    raise UserError("the vocabulary %s is not UTF-8 text (byte %d)"
                    % (vocab_file, error.start))
  if not lines[-1]:
    lines.pop()
  vocab = collections.OrderedDict()
  for number, line in enumerate(lines, 1):
    token = line.strip()
    if token in vocab:
      raise UserError(
          "the vocabulary %s has the token %r twice, in lines %d and %d: "
          "each token needs an id of its own"
          % (vocab_file, token, vocab[token] + 1, number))
    vocab[token] = len(vocab)
  if not any(vocab):
    raise UserError("the vocabulary %s is empty" % vocab_file)
  return vocab


def convert_by_vocab(vocab, items):
  """Returns [vocab[item] for each item]: tokens to ids, or ids to tokens.

  Raises:
    KeyError: if an item is not in the vocabulary.
  """
  return [vocab[item] for item in items]


def convert_tokens_to_ids(vocab, tokens):
  """Returns the ids (list of int) of `tokens`."""
  return convert_by_vocab(vocab, tokens)


def convert_ids_to_tokens(inv_vocab, ids):
  """Returns the tokens (list of str) of `ids`."""
  return convert_by_vocab(inv_vocab, ids)


def whitespace_tokenize(text):
  """Returns the list of words that white space separates."""
  return text.split()


def clean_words(text):
  """Returns the words of `text`: cleaned, CJK characters apart.

  Cleaning comes before splitting because `str.split` also splits at control
  characters, which the reference drops: "a\\x1fb" is one word.

  Args:
    text: str or bytes.

  Returns:
    List of str without white space or control characters.
  """
  text = convert_to_unicode(text)
  if _UNUSUAL.search(text):
    text = " ".join(_CJK.split(_REMOVED.sub("", text)))
  return text.split()


class FullTokenizer(object):
  """Turns text into word pieces of a vocabulary.

  Args:
    vocab_file: path of the vocabulary, or an already loaded one (mapping
      from token to id).
    do_lower_case: lower-case and strip accents (uncased models).
    never_split: tokens of the vocabulary, such as "[MASK]", to be kept whole
      wherever they occur in a text. The reference splits them.

  Attributes:
    vocab: OrderedDict from token to id.
    inv_vocab: dict from id to token.

  Raises:
    UserError: if the vocabulary cannot be used (see `load_vocab`) or lacks a
      token of `never_split`.
  """

  def __init__(self, vocab_file, do_lower_case=True, never_split=()):
    if isinstance(vocab_file, dict):
      self.vocab = vocab_file
    else:
      self.vocab = load_vocab(vocab_file)
    self.inv_vocab = {index: token for token, index in self.vocab.items()}
    for token in never_split:
      if token not in self.vocab:
        raise UserError("the token %s, never to be split, is not in the "
                        "vocabulary" % token)
    self.basic_tokenizer = BasicTokenizer(do_lower_case, never_split)
    self.wordpiece_tokenizer = WordpieceTokenizer(self.vocab)
    self._tokens = _WordCache(self._word_tokens, CACHE_WORDS)
    self._ids = _WordCache(self._word_ids, CACHE_WORDS)
    # Words carry punctuation; the parts between it are far fewer.
    self._packed = _WordCache(self._word_packed, 2 * CACHE_WORDS)
    self._packed_parts = _WordCache(self._part_packed, CACHE_WORDS)

  def tokenize(self, text):
    """Returns the word pieces (list of str) of `text` (str or bytes)."""
    return list(itertools.chain.from_iterable(
        map(self._tokens.__getitem__, clean_words(text))))

  def tokenize_to_ids(self, text):
    """Returns the ids (list of int) of the word pieces of `text`.

    Raises:
      KeyError: if a word is unknown and the vocabulary has no "[UNK]".
    """
    return list(itertools.chain.from_iterable(
        map(self._ids.__getitem__, clean_words(text))))

  def tokenize_to_packed(self, text):
    """Returns the ids of `text` as bytes: int32 in the machine's order.

    For text by the gigabyte: half the time of `tokenize_to_ids`, and no
    object for each id.

    Raises:
      KeyError: if a word is unknown and the vocabulary has no "[UNK]".
    """
    return b"".join(map(self._packed.__getitem__, clean_words(text)))

  def convert_tokens_to_ids(self, tokens):
    return convert_by_vocab(self.vocab, tokens)

  def convert_ids_to_tokens(self, ids):
    return convert_by_vocab(self.inv_vocab, ids)

  def _word_tokens(self, word):
    pieces_of = self.wordpiece_tokenizer.pieces_of
    return tuple(itertools.chain.from_iterable(
        map(pieces_of, self.basic_tokenizer.parts_of(word))))

  def _word_ids(self, word):
    return tuple(convert_by_vocab(self.vocab, self._word_tokens(word)))

  def _word_packed(self, word):
    return b"".join(map(self._packed_parts.__getitem__,
                        self.basic_tokenizer.parts_of(word)))

  def _part_packed(self, part):
    return array("i", convert_by_vocab(
        self.vocab, self.wordpiece_tokenizer.pieces_of(part))).tobytes()


class _WordCache(dict):
  """Remembers a function of words, in bounded memory.

  A full generation becomes the old one and the old one is dropped, so words
  in use survive and a hit costs no bookkeeping.
  """

  def __init__(self, function, words):
    super(_WordCache, self).__init__()
    self._function = function
    self._words = words
    self._old = {}

  def __missing__(self, word):
    value = self._old.get(word)
    if value is None:
      value = self._function(word)
    if len(word) <= CACHE_WORD_CHARS:
      if len(self) >= self._words:
        self._old = dict(self)
        self.clear()
      self[word] = value
    return value

  def __reduce__(self):
    return _WordCache, (self._function, self._words)


class BasicTokenizer(object):
  """Splits text at white space and punctuation, and cleans it.

  Args:
    do_lower_case: lower-case and strip accents.
    never_split: strings to be kept as they are.
  """

  def __init__(self, do_lower_case=True, never_split=()):
    self.do_lower_case = do_lower_case
    self._never_split = frozenset(never_split)
    self._kept = None
    if never_split:
      longest_first = sorted(self._never_split, key=len, reverse=True)
      self._kept = re.compile(
          "(%s)" % "|".join(re.escape(token) for token in longest_first))

  def tokenize(self, text):
    """Returns the list of words and punctuation marks of `text`."""
    return list(itertools.chain.from_iterable(
        map(self.parts_of, clean_words(text))))

  def parts_of(self, word):
    """Returns the parts (list of str) of one word of `clean_words`."""
    if self._kept is None or not self._kept.search(word):
      return self._plain_parts(word)
    parts = []
    for part in self._kept.split(word):
      if part in self._never_split:
        parts.append(part)
      else:
        parts.extend(self._plain_parts(part))
    return parts

  def _plain_parts(self, word):
    if self.do_lower_case:
      word = word.lower()
    if not _NOT_ASCII.search(word):
      return _ASCII_PARTS.findall(word)
    if self.do_lower_case:
      word = _strip_accents(word)
    return _split_at_punctuation(word)


def _strip_accents(word):
  """Decomposes `word` and drops its combining marks (category Mn)."""
  return "".join(char for char in unicodedata.normalize("NFD", word)
                 if unicodedata.category(char) != "Mn")


def _split_at_punctuation(word):
  """Returns the parts of `word`, each punctuation mark being a part."""
  parts = []
  for is_mark, chars in itertools.groupby(word, _is_punctuation):
    parts.extend(chars if is_mark else ("".join(chars),))
  return parts


class WordpieceTokenizer(object):
  """Splits words into the longest pieces that the vocabulary has.

  Args:
    vocab: collection of tokens; those that go on a word start with "##".
    unk_token: stands for a word that cannot be put together from pieces.
    max_input_chars_per_word: longer words become `unk_token`.
  """

  def __init__(self, vocab, unk_token="[UNK]", max_input_chars_per_word=200):
    self.vocab = vocab
    self.unk_token = unk_token
    self.max_input_chars_per_word = max_input_chars_per_word
    # The values are the vocabulary's own strings: pieces share their memory.
    self._first = {token: token for token in vocab}
    self._next = {token[2:]: token for token in vocab
                  if token.startswith("##")}
    self._longest = max(map(len, vocab)) if vocab else 0

  def tokenize(self, text):
    """Returns the pieces of all words of `text`, as `BasicTokenizer` left it.

    "unaffable" gives ["un", "##aff", "##able"].
    """
    words = whitespace_tokenize(convert_to_unicode(text))
    return list(itertools.chain.from_iterable(map(self.pieces_of, words)))

  def pieces_of(self, word):
    """Returns the pieces (tuple of str) of one word."""
    size = len(word)
    if size > self.max_input_chars_per_word:
      return (self.unk_token,)
    piece = self._first.get(word)
    if piece is not None:
      return (piece,)
    pieces = []
    table, start = self._first, 0
    while start < size:
      for end in range(min(size, start + self._longest), start, -1):
        piece = table.get(word[start:end])
        if piece is not None:
          break
      else:
        return (self.unk_token,)
      pieces.append(piece)
      table, start = self._next, end
    return tuple(pieces)


def infer_lower_case(vocab):
  """Says whether a vocabulary is uncased.

  An uncased one has no upper-case ASCII letter outside of specials such as
  "[CLS]" or "<S>"; of the published cased ones 14 and 28 tokens in a hundred
  have one. One in 200 is let pass as added by hand.

  Args:
    vocab: path, or collection of tokens.
  """
  if isinstance(vocab, str):
    vocab = load_vocab(vocab)
  upper = sum(1 for token in vocab
              if _UPPER.search(token) and not _BRACKETED.match(token))
  return upper * 200 <= len(vocab)


def check_case(vocab, do_lower_case, flag="do_lower_case"):
  """Raises UserError if `do_lower_case` does not suit the vocabulary.

  Args:
    vocab: path, or collection of tokens.
    do_lower_case: what --`flag` says.
    flag: name of the flag, for the message.
  """
  uncased = infer_lower_case(vocab)
  if uncased != bool(do_lower_case):
    raise UserError(
        "--%s=%s does not suit the vocabulary, which is %s: pass --%s=%s, or "
        "another vocabulary"
        % (flag, str(bool(do_lower_case)).lower(),
           "uncased" if uncased else "cased", flag, str(uncased).lower()))


def check_vocab_size(vocab, config_vocab_size, vocab_file, config_file):
  """Raises UserError if a vocabulary does not suit a model's vocab_size.

  A model may have up to 1,023 rows more than there are tokens: tables are
  often padded to a round number.

  Args:
    vocab: collection of tokens.
    config_vocab_size: `vocab_size` of the model's configuration.
    vocab_file: path, for the message.
    config_file: path, for the message.
  """
  if not 0 <= config_vocab_size - len(vocab) < 1024:
    raise UserError(
        "the vocabulary %s has %d tokens, but vocab_size is %d in %s: they "
        "do not belong together"
        % (vocab_file, len(vocab), config_vocab_size, config_file))


_LOWER_MODELS = ("uncased", "multilingual", "chinese")
_CASED_MODELS = ("cased", "multi_cased")


def validate_case_matches_checkpoint(do_lower_case, init_checkpoint):
  """Checks the flag against the name of a published model's folder.

  Args:
    do_lower_case: what the flag says.
    init_checkpoint: path; only `.../<published name>/bert_model.ckpt` says
      anything about the case.

  Raises:
    ValueError: if the named model is cased and the flag true, or the other
      way round.
  """
  match = re.match(r"^.*?([A-Za-z0-9_-]+)/bert_model.ckpt",
                   init_checkpoint or "")
  if not match:
    return
  name, _, size = match.group(1).partition("_L-")
  if size == "24_H-1024_A-16":
    known = name in ("uncased", "cased")
  else:
    known = size == "12_H-768_A-12"
  if not known or name not in _LOWER_MODELS + _CASED_MODELS:
    return
  is_lower = name in _LOWER_MODELS
  if is_lower != bool(do_lower_case):
    raise ValueError(
        "--do_lower_case=%s does not suit --init_checkpoint=%s: the model %s "
        "is %s, so pass --do_lower_case=%s"
        % (bool(do_lower_case), init_checkpoint, match.group(1),
           "uncased" if is_lower else "cased", is_lower))
