"""tokenization against Google's code and an independent implementation.

Google's code (PyPI bert-tensorflow) must agree to the last token. Hugging
Face's `tokenizers` differs by rules that are known and named here:

- words of more than 100 characters are unknown there, of more than 200 here;
- it drops private-use characters (category Co);
- it leaves out U+2B820 to U+2B91F among the CJK characters;
- it lower-cases character by character, so a capital sigma at the end of a
  word does not become a final one;
- it keeps special tokens that stand in the text;
- its tables of marks, punctuation and format characters are of an older
  Unicode than `unicodedata`: characters that came later, or were moved to
  another category, are treated as if they were letters.

A test shows each of these at work; texts that touch none of them must come out
equal.
"""

import itertools
import json
import random
import unicodedata
from array import array

from absl import flags
import pytest

import tokenization

# Vocabulary and whether it is uncased, as published.
MODELS = [("uncased", True), ("cased", False), ("multi_cased", False),
          ("chinese", True)]

# Characters that later versions of Unicode moved to another category.
MOVED = {0x111c9, 0x166d, 0x1734, 0x1885, 0x1886}
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


@pytest.fixture(scope="module")
def google():
  module = pytest.importorskip("bert.tokenization")
  flags.FLAGS.mark_as_parsed()
  return module


@pytest.fixture(scope="module")
def hugging_face(shared_data):
  tokenizers = pytest.importorskip("tokenizers")

  def make(name, lower):
    return tokenizers.BertWordPieceTokenizer(
        vocab_path(shared_data, name), lowercase=lower)
  return make


@pytest.fixture(scope="module")
def lines(shared_data):
  """Lines of all books, then contexts and questions of all SQuAD files."""
  found = []
  for path in sorted((shared_data / "books").glob("*.txt")):
    found.extend(path.read_text(encoding="utf-8").split("\n"))
  for path in sorted((shared_data / "squad").glob("*.json")):
    articles = json.loads(path.read_text(encoding="utf-8"))["data"]
    for article in articles:
      for paragraph in article["paragraphs"]:
        found.append(paragraph["context"])
        found.extend(qa["question"] for qa in paragraph["qas"])
  return found


def vocab_path(shared_data, name):
  return str(shared_data / "vocab" / (name + "_vocab.txt"))


def make_both(google, shared_data, name, lower):
  path = vocab_path(shared_data, name)
  return (tokenization.FullTokenizer(path, lower),
          google.FullTokenizer(path, lower))


def assert_equal_to_google(ours, theirs, texts):
  for text in texts:
    tokens = theirs.tokenize(text)
    assert ours.tokenize(text) == tokens, repr(text)
    ids = theirs.convert_tokens_to_ids(tokens)
    assert ours.tokenize_to_ids(text) == ids, repr(text)
    assert array("i", ours.tokenize_to_packed(text)).tolist() == ids, repr(text)


@pytest.mark.parametrize("name,lower", MODELS)
def test_google_on_a_sample(google, shared_data, lines, name, lower):
  ours, theirs = make_both(google, shared_data, name, lower)
  texts = lines[len(name)::400]
  assert sum(map(len, texts)) > 50000
  assert_equal_to_google(ours, theirs, texts)


@pytest.mark.slow
@pytest.mark.parametrize("name,lower", MODELS + [
    ("uncased", False), ("cased", True), ("multi_cased", True),
    ("chinese", False)])
def test_google_on_everything(google, shared_data, lines, name, lower):
  assert len(lines) > 400000
  ours, theirs = make_both(google, shared_data, name, lower)
  assert_equal_to_google(ours, theirs, lines)


def random_texts(seed, count, keep=lambda char: True, longest=250):
  """Yields strings of all kinds of characters, in words of all lengths.

  Args:
    seed: int.
    count: number of strings.
    keep: function that says of a character whether it may occur.
    longest: length of the longest of the words that are sown among them.
  """
  chance = random.Random(seed)
  pools = [
      [chr(c) for c in range(0x250)],
      [chr(c) for c in range(0x300, 0x600)],
      [chr(c) for c in range(0x1e00, 0x2070)],
      [chr(c) for c in range(0x4e00, 0x4f00)] + list("\uf900\u3400\u3042"),
      [chr(c) for c in range(0xac00, 0xac80)],
      list(" \t\n\r\x00\x0b\x1c\x85\u00a0\u2028\u2029\u3000\u200b\u00ad\ufffd"
           "\ufeff\u202e"),
      list("[MASK] [CLS]##'\u0301\u03a3\u03c3\u0130\u0131\u1e9e\ufb01$^`"),
      [chr(c) for c in range(0x1f300, 0x1f680)] + ["\U00020001",
                                                  "\U0002b820", "\ue000"],
  ]
  pools = [[char for char in pool if keep(char)] for pool in pools]
  words = ["The", "unaffable", "coöperation", "RUNNING", "don't", "3.14",
           "ΌΔΟΣ", "Straße", "e\u0301te", "日本語", "x" * 250]
  words = [word for word in words
           if len(word) <= longest and all(map(keep, word))]
  for _ in range(count):
    parts = []
    for _ in range(chance.randint(0, 12)):
      pool = chance.choice(pools)
      parts.append("".join(chance.choice(pool)
                           for _ in range(chance.randint(0, 5))))
      if chance.random() < 0.5:
        parts.append(chance.choice(words))
      if chance.random() < 0.1:
        parts.extend(filter(keep, chr(chance.choice(
            [chance.randrange(0xd800), chance.randrange(0xd800, 0x110000)]))))
      parts.append(chance.choice(["", " "]))
    yield "".join(parts)


@pytest.mark.parametrize("lower", [True, False])
def test_google_on_random_characters(google, shared_data, lower):
  ours, theirs = make_both(google, shared_data, "multi_cased", lower)
  basic = tokenization.BasicTokenizer(lower)
  for text in random_texts(seed=lower, count=1500):
    assert_equal_to_google(ours, theirs, [text])
    assert basic.tokenize(text) == theirs.basic_tokenizer.tokenize(text)


def test_google_on_every_character(google):
  """Each code point on its own, and the predicates on it."""
  for code in range(0x20000):
    char = chr(code)
    for name in ("_is_whitespace", "_is_control", "_is_punctuation"):
      assert (getattr(tokenization, name)(char)
              == getattr(google, name)(char)), (name, hex(code))


def explained_character(char):
  """Names the rule by which Hugging Face may treat `char` otherwise."""
  code = ord(char)
  if unicodedata.category(char) == "Co":
    return "private use"
  if 0x2b820 <= code < 0x2b920:
    return "gap in the CJK ranges"
  if code in MOVED:
    return "moved to another category"
  if unicodedata.ucd_3_2_0.category(char) == "Cn":
    # Letters and symbols that came later are treated alike: as letters.
    if unicodedata.category(char)[0] in "MP" or (
        unicodedata.category(char) in ("Cf", "Cn")):
      return "newer than its tables"
  return None


def is_clean(char):
  """Says whether a character touches none of the known rules."""
  return (explained_character(char) is None and char != "\u03a3"
          and unicodedata.category(char) != "Cs")


def differences(ours, theirs, texts):
  """Returns the texts that come out otherwise."""
  found = []
  for start in range(0, len(texts), 10000):
    some = texts[start:start + 10000]
    encoded = theirs.encode_batch(some, add_special_tokens=False)
    found.extend(
        text for text, encoding in zip(some, encoded)
        if (ours.tokenize(text) != encoding.tokens
            or ours.tokenize_to_ids(text) != encoding.ids))
  return found


@pytest.mark.parametrize("name,lower", MODELS)
def test_hugging_face_on_a_sample(hugging_face, shared_data, lines, name,
                                  lower):
  ours = tokenization.FullTokenizer(vocab_path(shared_data, name), lower)
  assert not differences(ours, hugging_face(name, lower),
                         lines[len(name)::50])


@pytest.mark.slow
@pytest.mark.parametrize("name,lower", MODELS)
def test_hugging_face_on_everything(hugging_face, shared_data, lines, name,
                                    lower):
  """One word of one book (103 letters, Ulysses) is all that differs."""
  ours = tokenization.FullTokenizer(vocab_path(shared_data, name), lower)
  text, = differences(ours, hugging_face(name, lower), lines)
  assert text.startswith("Nationalgymnasium")


@pytest.mark.parametrize("name,lower", MODELS + [("multi_cased", True)])
def test_hugging_face_on_random_characters(hugging_face, shared_data, name,
                                           lower):
  basic = tokenization.BasicTokenizer(lower)
  texts = [text for text in random_texts(len(name), 3000, is_clean, 100)
           if max(map(len, basic.tokenize(text) or [""])) <= 100]
  # Not one is left out, and they are as varied as those for Google.
  assert len(texts) == 3000 and sum(map(len, texts)) > 100000
  assert len(set("".join(texts))) > 3000
  ours = tokenization.FullTokenizer(vocab_path(shared_data, name), lower)
  assert not differences(ours, hugging_face(name, lower), texts)


@pytest.fixture(scope="module")
def both(hugging_face, shared_data):
  """Returns a function: (our tokens, theirs) of a text."""
  def tokens(text, lower=False, **more):
    ours = tokenization.FullTokenizer(
        vocab_path(shared_data, "multi_cased"), lower, **more)
    theirs = hugging_face("multi_cased", lower).encode(
        text, add_special_tokens=False)
    return ours.tokenize(text), theirs.tokens
  return tokens


class TestRules(object):
  """Each rule by which Hugging Face's tokens differ, and where it ends."""

  def test_words_of_more_than_100_characters(self, both):
    ours, theirs = both("x" * 100)
    assert ours == theirs and len(ours) > 10
    for length in (101, 200):
      ours, theirs = both("x" * length)
      assert theirs == ["[UNK]"] and len(ours) > 10
    ours, theirs = both("x" * 201)
    assert ours == theirs == ["[UNK]"]

  @pytest.mark.parametrize("char", ["\ue000", "\uf8ff"])
  def test_private_use(self, both, char):
    ours, theirs = both("the%sre" % char)
    assert ours == ["[UNK]"] and theirs == both("there")[0]

  def test_gap_among_the_cjk_characters(self, both):
    for char in "\U0002b820\U0002b91f":
      ours, theirs = both("the%sre" % char)
      assert ours == ["the", "[UNK]", "re"] and theirs == ["[UNK]"]
    for char in "\U0002b81f\U0002b920":
      ours, theirs = both("the%sre" % char)
      assert ours == theirs == ["the", "[UNK]", "re"]

  def test_final_sigma(self, both):
    ours, theirs = both("ΟΔΟΣ", lower=True)
    assert ours == both("οδος")[0] and theirs == both("οδοσ")[0] != ours
    for text in ("ΟΔΟΣΑ", "Σ", "οδος ΣΟΣΑ"):
      ours, theirs = both(text, lower=True)
      assert ours == theirs, text
    ours, theirs = both("ΟΔΟΣ")
    assert ours == theirs

  @pytest.mark.parametrize("token", SPECIAL)
  def test_special_tokens_in_the_text(self, both, token):
    text = "the%s dog [ MASK ] %sx" % (token, token)
    ours, theirs = both(text)
    assert token in theirs and token not in ours
    ours, theirs = both(text, never_split=SPECIAL)
    assert ours == theirs

  def test_newer_than_its_tables(self, both):
    # Punctuation, a format character and a mark of Unicode 9.
    ours, theirs = both("the\u2e43re")
    assert ours == ["the", "[UNK]", "re"] and theirs == ["[UNK]"]
    ours, theirs = both("the\u08e2re")
    assert ours == both("there")[0] and theirs == ["[UNK]"]
    ours, theirs = both("the\u08d4re", lower=True)
    assert ours == both("there")[0] and theirs == ["[UNK]"]

  def test_moved_to_another_category(self, both):
    ours, theirs = both("the\u1885re", lower=True)  # a mark since Unicode 9
    assert ours == both("there")[0] and theirs == ["[UNK]"]


@pytest.mark.parametrize("lower", [True, False])
def test_hugging_face_on_every_character(lower):
  """Each code point of the basic plane between two letters, and others."""
  tokenizers = pytest.importorskip("tokenizers")
  normalize = tokenizers.normalizers.BertNormalizer(
      lowercase=lower).normalize_str
  split = tokenizers.pre_tokenizers.BertPreTokenizer().pre_tokenize_str
  basic = tokenization.BasicTokenizer(lower)
  rules = set()
  for code in itertools.chain(range(0xd800), range(0xf000, 0x11200),
                              range(0x2b700, 0x2ba00)):
    text = "a%sb" % chr(code)
    if basic.tokenize(text) != [part for part, _ in split(normalize(text))]:
      rule = explained_character(chr(code))
      assert rule, hex(code)
      rules.add(rule)
  assert {"private use", "gap in the CJK ranges",
          "newer than its tables"} <= rules
