"""SQuAD features: Google's code, oracles by hand, bad input, the cache."""

import json
import logging
import os
import subprocess
import sys

import numpy as np
import pytest

import squad_oracle
import tokenization
from utils import squad_data
from utils.errors import UserError

VOCAB = ("[PAD] [UNK] [CLS] [SEP] [MASK] the man went to store and bought a "
         "gallon of milk who did what ( ) - . , 1895 1943 leader was john "
         "smith japan ##ese good is it year born ?").split()


@pytest.fixture(scope="module")
def google():
  try:
    return squad_oracle.load()
  except ImportError as error:
    pytest.skip(str(error))


@pytest.fixture
def lines():
  """What the suite logs during the test."""
  messages = []

  class Keep(logging.Handler):
    def emit(self, record):
      messages.append(record.getMessage())

  logger = logging.getLogger("bert")
  handler, level = Keep(), logger.level
  logger.addHandler(handler)
  logger.setLevel(logging.INFO)
  yield messages
  logger.removeHandler(handler)
  logger.setLevel(level)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
  path = tmp_path_factory.mktemp("vocab") / "vocab.txt"
  path.write_text("\n".join(VOCAB) + "\n")
  return tokenization.FullTokenizer(str(path), do_lower_case=True)


def settings(seq=32, stride=8, query=8, lower=True, vocab="0"):
  return squad_data.FeatureSettings(seq, stride, query, lower, vocab)


def question(qas_id="q1", text="Who was it?", answers=(), **more):
  return dict({"id": qas_id, "question": text, "answers": [
      {"text": t, "answer_start": s} for t, s in answers]}, **more)


def squad(tmp_path, context, *questions):
  path = tmp_path / "squad.json"
  path.write_text(json.dumps({"version": "1.1", "data": [{
      "title": "t",
      "paragraphs": [{"context": context, "qas": list(questions)}]}]}))
  return str(path)


def train_features(tmp_path, tokenizer, context, *questions, **options):
  examples = squad_data.read_examples(
      squad(tmp_path, context, *questions), True, options.pop("v2", False))
  return squad_data.featurize(examples, tokenizer, settings(**options), True)


# The published code, on real questions.


def fields(example):
  return (example.qas_id, example.question_text, example.doc_tokens,
          example.orig_answer_text, example.start_position,
          example.end_position, example.is_impossible)


def assert_features_equal(features, published, is_training):
  assert len(features) == len(published)
  rows = np.arange(len(features))
  mask, segments = features.input_mask(rows), features.segment_ids(rows)
  for i, row in enumerate(published):
    assert (row.unique_id, row.example_index, row.doc_span_index) == (
        features.unique_ids[i], features.example_index[i],
        features.doc_span_index[i])
    assert row.input_ids == features.input_ids[i].tolist()
    assert row.input_mask == mask[i].tolist()
    assert row.segment_ids == segments[i].tolist()
    own = slice(features.doc_offsets[i], features.doc_offsets[i + 1])
    first = features.query_length[i] + 2
    assert row.token_to_orig_map == dict(
        enumerate(features.token_to_orig[own].tolist(), first))
    assert row.token_is_max_context == dict(
        enumerate(features.is_max_context[own].tolist(), first))
    assert bool(row.is_impossible) == features.is_impossible[i]
    if is_training:
      assert row.start_position == features.start_positions[i]
      assert row.end_position == features.end_positions[i]


def compare(google, data, name, vocab, lower, is_training, version_2,
            lengths, part=slice(None)):
  run_squad, published_tokenization = google
  path, vocab = str(data / "squad" / name), str(data / "vocab" / vocab)
  run_squad.FLAGS.version_2_with_negative = version_2
  expected = run_squad.read_squad_examples(path, is_training)
  examples = squad_data.read_examples(path, is_training, version_2)
  assert [fields(e) for e in examples] == [fields(e) for e in expected]
  features = squad_data.featurize(
      examples[part], tokenization.FullTokenizer(vocab, lower),
      settings(*lengths, lower=lower), is_training)
  published = []
  run_squad.convert_examples_to_features(
      expected[part], published_tokenization.FullTokenizer(vocab, lower),
      *lengths, is_training=is_training, output_fn=published.append)
  assert_features_equal(features, published, is_training)


@pytest.mark.parametrize(
    "name, vocab, lower, is_training, version_2, lengths", [
        ("dev-v1.1.json", "uncased_vocab.txt", True, False, False,
         (384, 128, 64)),
        ("dev-v1.1.json", "cased_vocab.txt", False, False, False,
         (64, 7, 6)),
        ("train-v1.1-44articles.json", "uncased_vocab.txt", True, True, False,
         (128, 64, 32)),
        ("train-v1.1-44articles.json", "multi_cased_vocab.txt", False, True,
         False, (96, 200, 12)),
        ("dev-v2.0-reconstructed.json", "uncased_vocab.txt", True, False,
         True, (128, 50, 16)),
        ("train-v2.0-part.json", "cased_vocab.txt", False, True, True,
         (160, 64, 24)),
    ])
def test_equals_published_code(google, shared_data, name, vocab, lower,
                               is_training, version_2, lengths):
  compare(google, shared_data, name, vocab, lower, is_training, version_2,
          lengths, slice(None, None, 97))


@pytest.mark.slow
@pytest.mark.parametrize("name, is_training, version_2", [
    ("dev-v1.1.json", False, False),
    ("train-v1.1-44articles.json", True, False),
    ("dev-v2.0-reconstructed.json", False, True),
    ("train-v2.0-part.json", True, True),
])
@pytest.mark.parametrize("vocab, lower, lengths", [
    ("uncased_vocab.txt", True, (384, 128, 64)),
    ("cased_vocab.txt", False, (128, 32, 24)),
])
def test_equals_published_code_whole(google, shared_data, name, vocab, lower,
                                     is_training, version_2, lengths):
  compare(google, shared_data, name, vocab, lower, is_training, version_2,
          lengths)


# By hand.


def test_windows_and_most_context(tmp_path, tokenizer):
  # 15 words, windows of 32 - 4 - 3 = 25 tokens would hold all; 12 - 1 - 3 =
  # 8 do not: they start at 0, 3, 6 and the last, at 9, has 6 tokens... but
  # 6 + 8 < 15, so there is one more.
  text = "the man went to the store and bought a gallon of milk and a store"
  path = squad(tmp_path, text, question(text="who"))
  features = squad_data.featurize(
      squad_data.read_examples(path, False, False), tokenizer,
      settings(12, 3, 4), False)
  assert features.doc_span_index.tolist() == [0, 1, 2, 3]
  assert features.length.tolist() == [12, 12, 12, 10]
  assert features.query_length.tolist() == [1] * 4
  assert features.token_to_orig.tolist() == (
      list(range(0, 8)) + list(range(3, 11)) + list(range(6, 14))
      + list(range(9, 15)))
  # Token 5 is at 5 of 0..7 (least context 2), at 2 of 3..10 (2): the first
  # of equals. Token 6: 1 against 3. Token 9: 1, 3 (of 6..13), 0.
  # Token 12: 1 in 6..13, 2 in 9..14; token 11: 2 and 2, yet the longer
  # window has 0.08 against 0.06.
  own = [features.is_max_context[a:b].tolist() for a, b in zip(
      features.doc_offsets[:-1], features.doc_offsets[1:])]
  best = [[t for t, yes in zip(range(start, 15), flags) if yes]
          for start, flags in zip((0, 3, 6, 9), own)]
  assert best == [[0, 1, 2, 3, 4, 5], [6, 7, 8], [9, 10, 11], [12, 13, 14]]
  words = [VOCAB[i] for i in features.input_ids[3]]
  assert words == ["[CLS]", "who", "[SEP]", "gallon", "of", "milk", "and",
                   "a", "store", "[SEP]", "[PAD]", "[PAD]"]
  assert features.input_mask([3]).tolist() == [[1] * 10 + [0] * 2]
  assert features.segment_ids([3]).tolist() == [[0] * 3 + [1] * 7 + [0] * 2]
  assert features.unique_ids[0] == 1000000000
  assert features.start_positions is None


def test_answer_is_narrowed_to_its_tokens(tmp_path, tokenizer):
  context = "The leader was John Smith (1895-1943). Japanese it is 1-1943"
  features = train_features(
      tmp_path, tokenizer, context,
      question("year", answers=[("1895", context.index("1895"))]),
      # Part of a word: what its tokens can say, else the whole word.
      question("part", answers=[("Japan", context.index("Japan"))]),
      question("odd", answers=[("Japanes", context.index("Japan"))]),
      question("last", answers=[("1943", context.rindex("1943"))]),
      seq=48)
  answers = [[VOCAB[i] for i in row[start:end + 1]] for row, start, end in zip(
      features.input_ids, features.start_positions, features.end_positions)]
  assert answers == [["1895"], ["japan"], ["japan", "##ese"], ["1943"]]


def test_answer_outside_the_window_points_at_cls(tmp_path, tokenizer):
  text = "the man went to the store and bought a gallon of milk and a store"
  features = train_features(
      tmp_path, tokenizer, text,
      question(text="who", answers=[("gallon of milk", text.index("gal"))]),
      seq=12, stride=3, query=4)
  # Words 9 to 11, in windows from 0, 3, 6 and 9 of 8 words.
  assert features.start_positions.tolist() == [0, 0, 6, 3]
  assert features.end_positions.tolist() == [0, 0, 8, 5]


def test_impossible_points_at_cls(tmp_path, tokenizer):
  features = train_features(
      tmp_path, tokenizer, "John Smith",
      question("yes", answers=[("Smith", 5)], is_impossible=False),
      question("no", is_impossible=True), v2=True)
  assert features.is_impossible.tolist() == [False, True]
  assert features.start_positions.tolist() == [7, 0]
  assert features.end_positions.tolist() == [7, 0]


def test_question_is_cut(tmp_path, tokenizer):
  path = squad(tmp_path, "John Smith", question(text="who was it ? " * 5))
  features = squad_data.featurize(
      squad_data.read_examples(path, False, False), tokenizer,
      settings(query=6), False)
  assert features.query_length.tolist() == [6]
  assert features.length.tolist() == [11]


def test_only_five_characters_separate_words(tmp_path):
  path = squad(tmp_path, " a\tb\rc\nd\u202fe f\u00a0g \u2003h", question())
  (example,) = squad_data.read_examples(path, False, False)
  assert example.doc_tokens == ["a", "b", "c", "d", "e", "f\u00a0g",
                                "\u2003h"]


def test_paragraphs_are_shared(tmp_path):
  path = squad(tmp_path, "John Smith", question("a"), question("b"))
  first, second = squad_data.read_examples(path, False, False)
  assert first.doc_tokens is second.doc_tokens


def test_unfound_answers_are_counted(tmp_path, lines):
  path = squad(tmp_path, "John Smith was the leader",
               question("kept", answers=[("Smith", 5)]),
               question("shifted", answers=[("Smith", 14)]),
               question("lost", answers=[("Jones", 5)]))
  examples = squad_data.read_examples(path, True, False)
  assert [e.qas_id for e in examples] == ["kept"]
  assert lines == ["%s: left out 2 of 3 questions whose answer is not found "
                   "at its offset in the context, shifted the first" % path]


def test_all_answers_unfound(tmp_path):
  path = squad(tmp_path, "John Smith", question(answers=[("Jane", 0)]))
  with pytest.raises(UserError, match="no question's answer is found"):
    squad_data.read_examples(path, True, False)


def test_leading_blanks_belong_to_the_first_word(tmp_path):
  path = squad(tmp_path, "  John", question(answers=[("  John", 0)]))
  (example,) = squad_data.read_examples(path, True, False)
  assert (example.start_position, example.end_position) == (0, 0)


# Bad input.


@pytest.mark.parametrize("text, message", [
    ("{\"data\": [", "is not valid JSON"),
    ("[1, 2]", "'data' is missing or not a list: is this a SQuAD file"),
    ("{\"data\": {}}", "'data' is missing or not a list"),
    ("{\"data\": [1]}", r"data\[0\]: 'paragraphs' is missing"),
    ("{\"data\": [{\"paragraphs\": [{\"qas\": []}]}]}",
     r"data\[0\].paragraphs\[0\]: 'context' is missing or not a text"),
    ("{\"data\": [{\"paragraphs\": [{\"context\": \"a\", \"qas\": [{}]}]}]}",
     r"data\[0\].paragraphs\[0\].qas\[0\]: 'id' is missing"),
    ("{\"data\": []}", "has no questions"),
    ("", "is not valid JSON"),
])
def test_not_a_squad_file(tmp_path, text, message):
  path = tmp_path / "bad.json"
  path.write_text(text)
  with pytest.raises(UserError, match=message) as caught:
    squad_data.read_examples(str(path), False, False)
  assert str(path) in str(caught.value)
  assert "\n" not in str(caught.value)


def test_missing_file(tmp_path):
  with pytest.raises(UserError, match="cannot read .*none.json"):
    squad_data.read_examples(str(tmp_path / "none.json"), False, False)


@pytest.mark.parametrize("context, bad, message", [
    ("", question(), "the context of question q1 is empty"),
    (" \t\n", question(), "the context of question q1 is empty"),
    ("John", question(text=" "), "question q1 is empty"),
    ("John", {"id": "q1"}, "question q1: 'question' is missing"),
    ("John", question(""), "id is empty"),
    ("John", question(7), "'id' is missing or not a text"),
])
@pytest.mark.parametrize("is_training", [False, True])
def test_bad_question(tmp_path, context, bad, message, is_training):
  path = squad(tmp_path, context, bad)
  with pytest.raises(UserError, match=message) as caught:
    squad_data.read_examples(path, is_training, False)
  assert path in str(caught.value)


def test_repeated_id(tmp_path):
  path = squad(tmp_path, "John", question("same"), question("same"))
  with pytest.raises(UserError, match="question id same occurs twice"):
    squad_data.read_examples(path, False, False)


@pytest.mark.parametrize("answers, version_2, message", [
    ([("John", 1)], False, "answer at 1 to 5 is outside the context, which "
     "has 4 characters"),
    ([("John", -1)], False, "outside the context"),
    ([("John", 99)], False, "outside the context"),
    ([("", 0)], False, "its answer is empty"),
    ([("John", "0")], False, "'answer_start' is missing or not a whole"),
    ([("John", True)], False, "'answer_start' is missing or not a whole"),
    ([(3, 0)], False, "'text' is missing or not a text"),
    ([], False, "has 0 answers: for training it must have exactly one$"),
    ([("John", 0)] * 2, False, "has 2 answers"),
    ([("John", 0)], True, "goes without --version_2_with_negative"),
])
def test_bad_answer(tmp_path, answers, version_2, message):
  path = squad(tmp_path, "John", question("q7", answers=answers))
  with pytest.raises(UserError, match=message) as caught:
    squad_data.read_examples(path, True, version_2)
  assert str(caught.value).startswith("%s: question q7" % path)
  # Nothing looks at answers for prediction.
  assert len(squad_data.read_examples(path, False, version_2)) == 1


def test_v2_file_without_the_flag(tmp_path):
  path = squad(tmp_path, "John", question(is_impossible=True))
  with pytest.raises(UserError, match="needs --version_2_with_negative"):
    squad_data.read_examples(path, True, False)


@pytest.mark.parametrize("lengths, message", [
    ((11, 8, 8), "--max_seq_length=11 must be greater than "
     "--max_query_length=8"),
    ((32, 0, 8), "--doc_stride=0"),
    ((32, 8, 0), "--max_query_length=0"),
])
def test_bad_lengths(tmp_path, tokenizer, lengths, message):
  examples = squad_data.read_examples(
      squad(tmp_path, "John", question()), False, False)
  with pytest.raises(UserError, match=message):
    squad_data.featurize(examples, tokenizer, settings(*lengths), False)


def test_context_without_a_token(tmp_path, tokenizer):
  examples = squad_data.read_examples(
      squad(tmp_path, "\u200b", question("q9")), False, False)
  with pytest.raises(UserError, match="question q9: its context has no"):
    squad_data.featurize(examples, tokenizer, settings(), False)


# The cache.


def same(one, other):
  mine, theirs = one.columns(), other.columns()
  return sorted(mine) == sorted(theirs) and all(
      mine[k].dtype == theirs[k].dtype and np.array_equal(mine[k], theirs[k])
      for k in mine)


@pytest.fixture
def cached(tmp_path, tokenizer):
  """Calls load_or_make on a small file; keywords change settings."""
  path = squad(tmp_path, "John Smith was the leader",
               question(answers=[("Smith", 5)], is_impossible=False))

  def load(is_training=True, v2=False, cache_dir=tmp_path / "cache",
           **options):
    return squad_data.load_or_make(
        path, tokenizer, settings(**options), is_training, v2,
        cache_dir and str(cache_dir))

  load.path, load.folder = path, tmp_path / "cache"
  return load


@pytest.mark.parametrize("is_training", [False, True])
def test_cache_is_reused(cached, lines, is_training):
  examples, made, from_cache = cached(is_training)
  assert not from_cache
  again, loaded, from_cache = cached(is_training)
  assert from_cache and again == examples and same(made, loaded)
  assert isinstance(loaded.input_ids, np.memmap)
  assert "reused 1 windows" in lines[-1] and cached.path in lines[-1]
  assert len(list(cached.folder.iterdir())) == 1


@pytest.mark.parametrize("change", [
    dict(seq=33), dict(stride=7), dict(query=7), dict(lower=False),
    dict(vocab="1"), dict(is_training=False), dict(v2=True)])
def test_cache_depends_on_all_settings(cached, change):
  cached()
  assert not cached(**change)[2]
  assert cached()[2]


def test_cache_depends_on_the_content(cached):
  cached()
  with open(cached.path, "a") as stream:
    stream.write(" ")
  assert not cached()[2]


def test_cache_depends_on_the_code(cached, monkeypatch):
  cached()
  monkeypatch.setattr(squad_data, "FEATURE_VERSION", -1)
  assert not cached()[2]


def flip_a_byte(folder):
  path = folder / "input_ids.npy"
  content = bytearray(path.read_bytes())
  content[-1] ^= 1
  path.write_bytes(bytes(content))


def remove_an_array(folder):
  (folder / "token_to_orig.npy").unlink()


def cut_the_list(folder):
  path = folder / "features.json"
  path.write_text(path.read_text()[:40])


def forget_an_array(folder):
  path = folder / "features.json"
  meta = json.loads(path.read_text())
  del meta["arrays"]["length"]
  path.write_text(json.dumps(meta))


def empty_it(folder):
  for path in folder.iterdir():
    path.unlink()


@pytest.mark.parametrize("damage", [
    flip_a_byte, remove_an_array, cut_the_list, forget_an_array, empty_it])
def test_damaged_cache_is_made_anew(cached, lines, damage):
  _, made, _ = cached()
  (folder,) = cached.folder.iterdir()
  damage(folder)
  del lines[:]
  _, mended, from_cache = cached()
  assert not from_cache and same(made, mended)
  assert [("is damaged" in line) for line in lines] == [True, False]
  assert cached()[2]


def test_leftovers_of_a_killed_run_go(cached):
  cached()
  (folder,) = cached.folder.iterdir()
  leftover = cached.folder / (".%s.abc.tmp" % folder.name)
  folder.rename(leftover)
  assert not cached()[2]
  assert [p.name for p in cached.folder.iterdir()] == [folder.name]


def test_cache_that_cannot_be_written_costs_a_line(cached, lines, tmp_path):
  (tmp_path / "file").write_text("")
  _, features, from_cache = cached(cache_dir=tmp_path / "file" / "cache")
  assert len(features) == 1 and not from_cache
  assert "cannot keep them" in lines[-1]


def test_no_cache(cached, tmp_path):
  assert not cached(cache_dir=None)[2]
  assert sorted(os.listdir(str(tmp_path))) == ["squad.json"]


def test_imports_no_tensorflow(root):
  subprocess.run(
      [sys.executable, "-c",
       "import sys, tokenization\n"
       "from utils import squad_data, squad_answers, squad_score\n"
       "sys.exit('tensorflow' in sys.modules)"], cwd=str(root), check=True)
