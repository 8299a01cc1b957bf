"""tokenization: hand-worked cases, bad vocabularies, the cache's bounds."""

import pickle
from array import array

import pytest

import tokenization
from utils.errors import UserError

PIECES = ["[UNK]", "[CLS]", "[SEP]", "[MASK]", "want", "##want", "##ed", "wa",
          "un", "runn", "##ing", ",", "[", "]", "mask", "a", "b"]


@pytest.fixture
def vocab_file(tmp_path):
  path = tmp_path / "vocab.txt"
  path.write_text("\n".join(PIECES) + "\n", encoding="utf-8")
  return str(path)


def error_of(function, *args):
  """Returns the one line of the UserError that the call must raise."""
  with pytest.raises(UserError) as caught:
    function(*args)
  message = str(caught.value)
  assert "\n" not in message
  return message


class TestFullTokenizer:

  def test_accents_case_and_punctuation(self, vocab_file):
    tokenizer = tokenization.FullTokenizer(vocab_file)
    tokens = tokenizer.tokenize("UNwant\u00E9d,running")
    assert tokens == ["un", "##want", "##ed", ",", "runn", "##ing"]
    assert tokenizer.convert_tokens_to_ids(tokens) == [8, 5, 6, 11, 9, 10]
    assert tokenizer.convert_ids_to_tokens([8, 5]) == ["un", "##want"]
    packed = tokenizer.tokenize_to_packed("UNwant\u00E9d,running")
    assert array("i", packed).tolist() == tokenizer.tokenize_to_ids(
        "UNwant\u00E9d,running")
    assert tokenizer.tokenize_to_ids("UNwant\u00E9d,running") == [
        8, 5, 6, 11, 9, 10]

  def test_second_call_is_equal_and_a_list_of_its_own(self, vocab_file):
    tokenizer = tokenization.FullTokenizer(vocab_file)
    first = tokenizer.tokenize("unwanted running")
    first.append("changed by the caller")
    assert tokenizer.tokenize("unwanted running") == [
        "un", "##want", "##ed", "runn", "##ing"]

  def test_bytes_and_other_types(self, vocab_file):
    tokenizer = tokenization.FullTokenizer(vocab_file)
    assert tokenizer.tokenize(b"want\xff wa") == ["want", "wa"]
    with pytest.raises(ValueError):
      tokenizer.tokenize(7)

  def test_special_tokens_are_split_unless_named(self, vocab_file):
    text = "want [MASK],a"
    plain = tokenization.FullTokenizer(vocab_file)
    assert plain.tokenize(text) == ["want", "[", "mask", "]", ",", "a"]
    keeping = tokenization.FullTokenizer(vocab_file, never_split=["[MASK]"])
    assert keeping.tokenize(text) == ["want", "[MASK]", ",", "a"]
    assert "[PAD]" in error_of(
        tokenization.FullTokenizer, vocab_file, True, ["[PAD]"])

  def test_control_characters_join_words(self, vocab_file):
    # str.split would split at all of these but the last.
    for char in "\x0b\x0c\x1c\x1d\x1e\x1f\x85\u200b":
      tokenizer = tokenization.FullTokenizer(vocab_file)
      assert tokenizer.tokenize("wa%snt" % char) == ["want"], repr(char)
      assert tokenizer.tokenize("un%swant" % char) == ["un", "##want"]

  def test_line_and_paragraph_separators_split(self, vocab_file):
    tokenizer = tokenization.FullTokenizer(vocab_file)
    assert tokenizer.tokenize("un\u2028want\u2029a") == ["un", "want", "a"]

  def test_travels_to_another_process(self, vocab_file):
    tokenizer = tokenization.FullTokenizer(vocab_file)
    tokenizer.tokenize("unwanted")
    again = pickle.loads(pickle.dumps(tokenizer))
    assert again.tokenize("unwanted") == ["un", "##want", "##ed"]


class TestBasicTokenizer:

  def test_lower(self):
    tokenize = tokenization.BasicTokenizer(do_lower_case=True).tokenize
    assert tokenize(" \tHeLLo!how  \n Are yoU?  ") == [
        "hello", "!", "how", "are", "you", "?"]
    assert tokenize("H\u00E9llo") == ["hello"]
    # A combining mark alone leaves nothing.
    assert tokenize("a \u0301 b") == ["a", "b"]

  def test_no_lower(self):
    tokenize = tokenization.BasicTokenizer(do_lower_case=False).tokenize
    assert tokenize(" \tHeLLo!how  \n Are yoU?  ") == [
        "HeLLo", "!", "how", "Are", "yoU", "?"]
    assert tokenize("H\u00E9llo") == ["H\u00E9llo"]

  def test_chinese_apart(self):
    tokenize = tokenization.BasicTokenizer().tokenize
    assert tokenize("ah\u535A\u63A8zz") == ["ah", "\u535A", "\u63A8", "zz"]
    # Beyond the basic plane, and kana, which are no ideographs.
    assert tokenize("a\U00020000b\u3042c") == [
        "a", "\U00020000", "b\u3042c"]

  def test_punctuation(self):
    tokenize = tokenization.BasicTokenizer().tokenize
    assert tokenize("$5.00--\u201cno\u201d`^") == [
        "$", "5", ".", "00", "-", "-", "\u201c", "no", "\u201d", "`", "^"]
    # A symbol outside of ASCII is no punctuation.
    assert tokenize("\u20ac5") == ["\u20ac5"]


class TestWordpieceTokenizer:

  def test_longest_match_first(self):
    tokenize = tokenization.WordpieceTokenizer(vocab=PIECES).tokenize
    assert tokenize("") == []
    assert tokenize("unwanted running") == [
        "un", "##want", "##ed", "runn", "##ing"]
    assert tokenize("unwantedX running") == ["[UNK]", "runn", "##ing"]
    assert tokenize("want") == ["want"]

  def test_limit_of_200_characters(self):
    tokenize = tokenization.WordpieceTokenizer(["a", "##a"]).tokenize
    assert tokenize("a" * 200) == ["a"] + ["##a"] * 199
    assert tokenize("a" * 201) == ["[UNK]"]

  def test_own_unknown_token(self):
    tokenizer = tokenization.WordpieceTokenizer({"a": 0}, "<unk>", 3)
    assert tokenizer.tokenize("a b aaaa") == ["a", "<unk>", "<unk>"]


class TestCharacters:

  def test_whitespace(self):
    for char in " \t\r\n\u00A0\u3000":
      assert tokenization._is_whitespace(char)
    for char in "A-\u200b\u2028":
      assert not tokenization._is_whitespace(char)

  def test_control(self):
    for char in "\u0005\x00\u200b\u00ad":
      assert tokenization._is_control(char)
    for char in "A \t\r\n\U0001F4A9":
      assert not tokenization._is_control(char)

  def test_punctuation(self):
    for char in "-$`.~!\u2019\u3001":
      assert tokenization._is_punctuation(char)
    for char in "A z09\x7f\t\u00a9":
      assert not tokenization._is_punctuation(char)

  def test_all_removed_characters_are_known(self):
    """The planes left out at import hold no character to remove."""
    for code in range(0x110000):
      removed = tokenization._is_removed(chr(code))
      assert bool(tokenization._REMOVED.match(chr(code))) == removed
      if removed:
        assert tokenization._UNUSUAL.match(chr(code)), hex(code)


class TestConversion:

  def test_ids(self):
    vocab = {piece: i for i, piece in enumerate(PIECES)}
    ids = tokenization.convert_tokens_to_ids(vocab, ["un", "##ing"])
    assert ids == [8, 10]
    inverse = {i: piece for piece, i in vocab.items()}
    assert tokenization.convert_ids_to_tokens(inverse, ids) == ["un", "##ing"]
    with pytest.raises(KeyError):
      tokenization.convert_by_vocab(vocab, ["missing"])

  def test_unicode(self):
    for function in (tokenization.convert_to_unicode,
                     tokenization.printable_text):
      assert function("\u00e9") == "\u00e9"
      assert function(b"\xc3\xa9\xff") == "\u00e9"
      with pytest.raises(ValueError):
        function(None)

  def test_whitespace_tokenize(self):
    assert tokenization.whitespace_tokenize("  a \n b\t") == ["a", "b"]
    assert tokenization.whitespace_tokenize(" ") == []


class TestVocabulary:

  def test_order_of_lines(self, vocab_file):
    vocab = tokenization.load_vocab(vocab_file)
    assert list(vocab.items()) == [(t, i) for i, t in enumerate(PIECES)]

  def test_windows_line_ends_and_no_last_one(self, tmp_path):
    path = tmp_path / "v.txt"
    path.write_bytes(b"a\r\nb\r\nc")
    assert list(tokenization.load_vocab(str(path))) == ["a", "b", "c"]

  def test_bad_files(self, tmp_path):
    path = tmp_path / "v.txt"
    load = tokenization.load_vocab
    assert "v.txt (No such file" in error_of(load, str(path))
    assert "Is a directory" in error_of(load, str(tmp_path))
    path.write_bytes(b"")
    assert "v.txt is empty" in error_of(load, str(path))
    path.write_bytes(b"\n")
    assert "v.txt is empty" in error_of(load, str(path))
    path.write_bytes(b"a\nb\na\n")
    assert "'a' twice, in lines 1 and 3" in error_of(load, str(path))
    path.write_bytes(b"abc\n\xff\n")
    assert "not UTF-8 text (byte 4)" in error_of(load, str(path))

  def test_scheme_is_read_through_tensorflow(self, vocab_file):
    vocab = tokenization.load_vocab("file://" + vocab_file)
    assert list(vocab) == PIECES
    assert "cannot read" in error_of(
        tokenization.load_vocab, "file:///no/such/vocab.txt")

  def test_case(self, vocab_file):
    assert tokenization.infer_lower_case(vocab_file)
    assert tokenization.infer_lower_case(["[CLS]", "<S>", "a"])
    cased = PIECES + ["The", "##S"]
    assert not tokenization.infer_lower_case(cased)
    tokenization.check_case(PIECES, True)
    tokenization.check_case(cased, False)
    assert "--do_lower_case=true does not suit" in error_of(
        tokenization.check_case, cased, True)
    assert "--x=false does not suit the vocabulary, which is uncased" in (
        error_of(tokenization.check_case, PIECES, False, "x"))

  def test_size(self):
    check = tokenization.check_vocab_size
    check(PIECES, len(PIECES), "v.txt", "c.json")
    check(PIECES, len(PIECES) + 8, "v.txt", "c.json")
    for size in (len(PIECES) - 1, len(PIECES) + 1024):
      message = error_of(check, PIECES, size, "v.txt", "c.json")
      assert "v.txt has 17 tokens" in message and str(size) in message

  def test_published_vocabularies(self, shared_data):
    for name, size, uncased in (
        ("uncased", 30522, True), ("cased", 28996, False),
        ("multi_cased", 119547, False), ("chinese", 21128, True)):
      vocab = tokenization.load_vocab(
          str(shared_data / "vocab" / (name + "_vocab.txt")))
      assert len(vocab) == size
      assert tokenization.infer_lower_case(vocab) == uncased


def test_case_of_published_checkpoints():
  check = tokenization.validate_case_matches_checkpoint
  for name, lower in (("uncased_L-24_H-1024_A-16", True),
                      ("cased_L-12_H-768_A-12", False),
                      ("multi_cased_L-12_H-768_A-12", False),
                      ("chinese_L-12_H-768_A-12", True)):
    path = "/models/%s/bert_model.ckpt" % name
    check(lower, path)
    with pytest.raises(ValueError) as caught:
      check(not lower, path)
    assert name in str(caught.value)
  # Names that say nothing.
  for path in (None, "", "model.ckpt", "/m/own/bert_model.ckpt",
               "/m/chinese_L-24_H-1024_A-16/bert_model.ckpt"):
    check(True, path)
    check(False, path)


class TestCache:

  def test_bounded_and_right(self):
    asked = []
    cache = tokenization._WordCache(
        lambda word: asked.append(word) or (word,), 10)
    for _ in range(2):
      for i in range(100):
        assert cache["w%d" % i] == ("w%d" % i,)
        assert len(cache) <= 10 and len(cache._old) <= 10
    assert len(asked) == 200

  def test_words_in_use_stay(self):
    asked = []
    cache = tokenization._WordCache(
        lambda word: asked.append(word) or (word,), 10)
    for i in range(100):
      assert cache["the"] == ("the",)
      assert cache["w%d" % i] == ("w%d" % i,)
    assert asked.count("the") == 1

  def test_long_words_are_not_kept(self):
    cache = tokenization._WordCache(lambda word: (word,), 10)
    longest = tokenization.CACHE_WORD_CHARS
    for length in (longest + 1, 10000):
      assert cache["x" * length] == ("x" * length,)
    assert not cache
    assert cache["x" * longest] == ("x" * longest,)
    assert list(cache) == ["x" * longest]
