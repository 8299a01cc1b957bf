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
  Unicode than `unicodedata`: characters that came later are treated as if
  they were not there.
"""

import itertools
import json
import random
import re
import unicodedata

from absl import flags
import pytest

import tokenization

# Vocabulary and whether it is uncased, as published.
MODELS = [("uncased", True), ("cased", False), ("multi_cased", False),
          ("chinese", True)]

# Characters that later versions of Unicode moved to another category.
MOVED = {0x166d, 0x1734, 0x1885, 0x1886}

LONG_WORD = re.compile(r"\w{101}")


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
    assert ours.tokenize_to_ids(text) == theirs.convert_tokens_to_ids(
        tokens), repr(text)


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


def random_texts(seed, count):
  """Returns strings of all kinds of characters, in words of all lengths."""
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
  words = ["The", "unaffable", "coöperation", "RUNNING", "don't", "3.14",
           "ΌΔΟΣ", "Straße", "e\u0301te", "日本語", "x" * 250]
  for _ in range(count):
    parts = []
    for _ in range(chance.randint(0, 12)):
      pool = chance.choice(pools)
      parts.append("".join(chance.choice(pool)
                           for _ in range(chance.randint(0, 5))))
      if chance.random() < 0.5:
        parts.append(chance.choice(words))
      if chance.random() < 0.1:
        parts.append(chr(chance.choice(
            [chance.randrange(0xd800), chance.randrange(0xd800, 0x110000)])))
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


def explained(text, lower):
  """Names the rule by which Hugging Face's tokens of `text` may differ."""
  if LONG_WORD.search(text):
    return "over 100 characters"
  for word in tokenization.clean_words(text):
    if lower and word.lower() != "".join(char.lower() for char in word):
      return "final sigma"
  if re.search(r"\[(UNK|CLS|SEP|PAD|MASK)\]", text):
    return "special token in the text"
  for char in set(text):
    if explained_character(char):
      return explained_character(char)
  return None


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
    return "newer than its tables"
  return None


def differences(ours, theirs, texts, lower):
  """Returns [(rule or None, text)] for the texts that come out otherwise."""
  found = []
  for start in range(0, len(texts), 10000):
    some = texts[start:start + 10000]
    encoded = theirs.encode_batch(some, add_special_tokens=False)
    for text, encoding in zip(some, encoded):
      if (ours.tokenize(text) != encoding.tokens
          or ours.tokenize_to_ids(text) != encoding.ids):
        found.append((explained(text, lower), text))
  return found


@pytest.mark.parametrize("name,lower", MODELS)
def test_hugging_face_on_a_sample(hugging_face, shared_data, lines, name,
                                  lower):
  ours = tokenization.FullTokenizer(vocab_path(shared_data, name), lower)
  assert not differences(ours, hugging_face(name, lower),
                         lines[len(name)::50], lower)


@pytest.mark.slow
@pytest.mark.parametrize("name,lower", MODELS)
def test_hugging_face_on_everything(hugging_face, shared_data, lines, name,
                                    lower):
  """One word of one book (103 letters, Ulysses) is all that differs."""
  ours = tokenization.FullTokenizer(vocab_path(shared_data, name), lower)
  found = differences(ours, hugging_face(name, lower), lines, lower)
  assert [rule for rule, _ in found] == ["over 100 characters"]
  assert found[0][1].startswith("Nationalgymnasium")


@pytest.mark.parametrize("lower", [True, False])
def test_hugging_face_on_random_characters(hugging_face, shared_data, lower):
  texts = ["".join(c for c in text if not 0xd800 <= ord(c) < 0xe000)
           for text in random_texts(seed=lower, count=2000)]
  ours = tokenization.FullTokenizer(
      vocab_path(shared_data, "multi_cased"), lower)
  found = differences(ours, hugging_face("multi_cased", lower), texts, lower)
  assert found, "the rules below must be seen at work"
  assert not [text for rule, text in found if rule is None][:3]


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
