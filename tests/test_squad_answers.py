"""SQuAD answers: files equal to those of Google's code, and by hand."""

import json
import random

import numpy as np
import pytest

import squad_oracle
import tokenization
from utils import squad_answers
from utils import squad_data
from utils.errors import UserError

NAMES = ("predictions.json", "nbest_predictions.json", "null_odds.json")


@pytest.fixture(scope="module")
def google():
  try:
    return squad_oracle.load()
  except ImportError as error:
    pytest.skip(str(error))


def with_a_valid_span(logits, features):
  """Makes a window's last word as good as its best token.

  Where no window has a valid span Google's code ends in an AttributeError
  on v2.0; see test_no_valid_span_where_no_answer_is_allowed. Padding, which
  may take a place among Google's best, is worse than all else.
  """
  padding = np.arange(logits.shape[2]) >= features.length[:, None]
  logits[:, padding] = -10000
  logits[:, np.arange(len(features)), features.length - 2] = logits.max(axis=2)
  return logits


def random_logits(features, seed):
  generator = np.random.RandomState(seed)
  logits = generator.randn(2, *features.input_ids.shape) * 3
  return with_a_valid_span(logits.astype(np.float32), features)


def tied_logits(features, seed):
  """Whole numbers: most candidates tie with others."""
  return np.round(random_logits(features, seed) / 2)


def model_like_logits(features, seed):
  """Low everywhere but at a few near places of the paragraph and at [CLS]."""
  generator = np.random.RandomState(seed)
  logits = random_logits(features, seed) / 3 - 6
  for i in range(len(features)):
    first, last = features.query_length[i] + 2, features.length[i] - 2
    starts = generator.randint(first, last + 1, size=6)
    ends = np.minimum(starts + generator.randint(0, 5, size=6), last)
    logits[0, i, starts] += generator.rand(6) * 12
    logits[1, i, ends] += generator.rand(6) * 12
  logits[:, :, 0] += generator.rand(2, len(features)) * 12
  return logits


def publish(google, examples, tokenizer_file, lengths, logits, settings,
            paths):
  """Writes Google's files for these logits."""
  run_squad, published_tokenization = google
  run_squad.FLAGS.version_2_with_negative = settings.version_2_with_negative
  run_squad.FLAGS.null_score_diff_threshold = (
      settings.null_score_diff_threshold)
  features = []
  run_squad.convert_examples_to_features(
      examples, published_tokenization.FullTokenizer(
          tokenizer_file, settings.do_lower_case),
      *lengths, is_training=False, output_fn=features.append)
  results = [
      run_squad.RawResult(f.unique_id, start.tolist(), end.tolist())
      for f, start, end in zip(features, *logits)]
  run_squad.write_predictions(
      examples, features, results, settings.n_best_size,
      settings.max_answer_length, settings.do_lower_case, *paths)


def compare(google, data, tmp_path, name, vocab, lengths, make_logits,
            settings, part=slice(None)):
  vocab = str(data / "vocab" / vocab)
  version_2 = settings.version_2_with_negative
  examples = squad_data.read_examples(
      str(data / "squad" / name), False, version_2)[part]
  tokenizer = tokenization.FullTokenizer(vocab, settings.do_lower_case)
  features = squad_data.featurize(
      examples, tokenizer, squad_data.FeatureSettings(
          *lengths, do_lower_case=settings.do_lower_case, vocab_sha256=""),
      False)
  logits = make_logits(features, 5)
  answers = squad_answers.predict_answers(
      examples, features, logits[0], logits[1], settings, tokenizer)
  squad_answers.write_answers(
      str(tmp_path), *answers, version_2_with_negative=version_2)
  published = [str(tmp_path / ("published_" + n)) for n in NAMES]
  publish(google, examples, vocab, lengths, logits, settings, published)
  written = NAMES if version_2 else NAMES[:2]
  for ours, theirs in zip(written, published):
    with open(theirs, "rb") as stream:
      assert (tmp_path / ours).read_bytes() == stream.read(), ours
  assert (tmp_path / NAMES[2]).exists() == version_2
  assert sorted(p.name for p in tmp_path.iterdir()) == sorted(
      written + tuple("published_" + n for n in written))


V1 = squad_answers.AnswerSettings()
V1_CASED = V1._replace(do_lower_case=False, n_best_size=7,
                       max_answer_length=4)
V2 = V1._replace(version_2_with_negative=True)
V2_CASED = V2._replace(do_lower_case=False, n_best_size=30,
                       null_score_diff_threshold=-1.5)
CASES = [
    ("dev-v1.1.json", "uncased_vocab.txt", (384, 128, 64), V1),
    ("dev-v1.1.json", "cased_vocab.txt", (96, 24, 16), V1_CASED),
    ("dev-v2.0-reconstructed.json", "uncased_vocab.txt", (384, 128, 64), V2),
    ("dev-v2.0-reconstructed.json", "cased_vocab.txt", (96, 32, 16),
     V2_CASED),
]
LOGITS = [random_logits, tied_logits, model_like_logits]


@pytest.mark.parametrize("make_logits", LOGITS)
@pytest.mark.parametrize("name, vocab, lengths, settings", CASES)
def test_files_equal_published_ones(google, shared_data, tmp_path, name,
                                    vocab, lengths, settings, make_logits):
  compare(google, shared_data, tmp_path, name, vocab, lengths, make_logits,
          settings, slice(None, None, 300))


@pytest.mark.slow
@pytest.mark.parametrize("make_logits", LOGITS)
@pytest.mark.parametrize("name, vocab, lengths, settings", CASES)
def test_files_equal_published_ones_for_many(
    google, shared_data, tmp_path, name, vocab, lengths, settings,
    make_logits):
  compare(google, shared_data, tmp_path, name, vocab, lengths, make_logits,
          settings, slice(3, None, 8))


@pytest.mark.slow
def test_files_equal_published_ones_for_all(google, shared_data, tmp_path):
  compare(google, shared_data, tmp_path, *CASES[0][:3], model_like_logits, V1)


# By hand.


VOCAB = "[PAD] [UNK] [CLS] [SEP] steve smith ' s lives in paris , ##ian".split()


@pytest.fixture
def small(tmp_path):
  """One question on "Steve  Smith's Parisian, in Paris", and its features."""
  vocab = tmp_path / "vocab.txt"
  vocab.write_text("\n".join(VOCAB) + "\n")
  data = tmp_path / "squad.json"
  data.write_text(json.dumps({"data": [{"paragraphs": [{
      "context": "Steve  Smith's Parisian, in Paris",
      "qas": [{"id": "q", "question": "smith"}]}]}]}))
  tokenizer = tokenization.FullTokenizer(str(vocab), True)
  examples = squad_data.read_examples(str(data), False, False)
  features = squad_data.featurize(
      examples, tokenizer,
      squad_data.FeatureSettings(16, 8, 4, True, ""), False)
  # [CLS] smith [SEP] steve smith ' s paris ##ian , in paris [SEP]
  assert features.length.tolist() == [13]
  return examples, features, tokenizer


def answer(small, starts, ends, **options):
  """Returns the Answers where the logits are -9 but for {position: value}."""
  examples, features, tokenizer = small
  logits = np.full((2,) + features.input_ids.shape, -9, np.float32)
  for row, values in zip(logits, (starts, ends)):
    for position, value in values.items():
      row[0, position] = value
  return squad_answers.predict_answers(
      examples, features, logits[0], logits[1],
      squad_answers.AnswerSettings(**options), tokenizer)


@pytest.mark.parametrize("start, end, text", [
    (3, 4, "Steve Smith"), (4, 4, "Smith"), (4, 6, "Smith's"),
    (5, 6, "'s"), (7, 8, "Parisian"), (8, 8, "ian"), (7, 9, "Parisian,"),
    (7, 7, "Paris"), (9, 10, ", in"), (11, 11, "Paris")])
def test_text_of_a_span(small, start, end, text):
  found = answer(small, {start: 5}, {end: 5})
  assert found.predictions == {"q": text}
  best = found.nbest["q"][0]
  assert list(best) == ["text", "probability", "start_logit", "end_logit"]
  assert (best["start_logit"], best["end_logit"]) == (5, 5)
  assert sum(e["probability"] for e in found.nbest["q"]) == pytest.approx(1)
  assert not found.null_odds


def test_equal_texts_count_once_and_equal_scores_keep_their_order(small):
  # "Paris" at 7 and 11; (3, 3) and (4, 4) tie, the first start wins.
  found = answer(small, {7: 5, 11: 4, 3: 1, 4: 1}, {7: 5, 11: 4, 3: 1, 4: 1},
                 max_answer_length=1)
  texts = [entry["text"] for entry in found.nbest["q"]]
  assert texts[:3] == ["Paris", "Steve", "Smith"]
  assert len(set(texts)) == len(texts) == 8


def test_spans_that_cannot_be(small):
  # Into the question, on [SEP], backwards, too long: what is left is low.
  found = answer(small, {1: 9, 2: 9, 10: 8, 3: 1}, {1: 9, 12: 9, 9: 8, 5: 1},
                 max_answer_length=3)
  assert found.predictions == {"q": "Steve Smith'"}
  assert found.nbest["q"][0]["start_logit"] == 1


def test_padding_takes_no_place_among_the_best(small):
  best = {position: 50 for position in (13, 14, 15)}
  found = answer(small, {3: 5, **best}, {4: 5, **best}, n_best_size=2)
  assert found == answer(small, {3: 5}, {4: 5}, n_best_size=2)
  assert found.predictions == {"q": "Steve Smith"}


def test_no_valid_span(small):
  spans = {0: 3, 1: 2}
  found = answer(small, spans, spans, n_best_size=2)
  assert found.predictions == {"q": "empty"}
  assert found.nbest["q"] == [{"text": "empty", "probability": 1.0,
                               "start_logit": 0.0, "end_logit": 0.0}]


def test_no_valid_span_where_no_answer_is_allowed(small):
  spans = {0: 3, 1: 2}
  found = answer(small, spans, spans, n_best_size=2,
                 version_2_with_negative=True)
  assert found.predictions == {"q": ""}
  assert found.null_odds == {"q": 1000000.0}
  assert found.nbest["q"] == [{"text": "", "probability": 1.0,
                               "start_logit": 3.0, "end_logit": 3.0}]


@pytest.mark.parametrize("threshold, text", [
    (0.0, "Steve"), (-2.0, "Steve"), (-2.5, "")])
def test_threshold(small, threshold, text):
  # No answer scores 4, "Steve" 6; the odds must exceed the threshold.
  found = answer(small, {0: 1, 3: 4}, {0: 3, 3: 2},
                 version_2_with_negative=True,
                 null_score_diff_threshold=threshold)
  assert found.predictions == {"q": text}
  assert found.null_odds == {"q": -2.0}
  assert [e["text"] for e in found.nbest["q"][:2]] == ["Steve", ""]


def test_no_answer_comes_after_an_equal_one_and_may_be_one_too_many(small):
  found = answer(small, {0: 1, 3: 1}, {0: 1, 3: 1}, n_best_size=2,
                 version_2_with_negative=True)
  assert [e["text"] for e in found.nbest["q"]] == ["Steve", ""]
  found = answer(small, {0: 1, 3: 2}, {0: 1, 3: 2, 4: 2}, n_best_size=2,
                 version_2_with_negative=True)
  assert [e["text"] for e in found.nbest["q"]] == ["Steve", "Steve Smith", ""]


def test_best_indexes_keep_the_order_of_equals():
  logits = np.random.RandomState(0).randint(0, 5, (50, 40)).astype(np.float32)
  for k in (1, 7, 60):
    expected = [[i for i, _ in sorted(enumerate(row), key=lambda x: x[1],
                                      reverse=True)][:k] for row in logits]
    assert squad_answers.best_indexes(logits, k).tolist() == expected


@pytest.mark.parametrize("predicted, original, tokenized, expected", [
    ("steve smith", "Steve Smith's", "steve smith ' s", "Steve Smith"),
    ("smith", "(Smith)", "( smith )", "Smith"),
    ("1895", "(1895-1943).", "( 1895 - 1943 ) .", "1895"),
    ("jones", "Steve Smith", "steve smith", "Steve Smith"),
    ("", "Steve", "steve", "Steve"),
    # One character more after normalisation: no alignment.
    ("i", "\u0130 (x", "i\u0307 ( x y", "\u0130 (x"),
    ("a b", "A B c", "a b c", "A B"),
])
def test_realign(predicted, original, tokenized, expected):
  assert squad_answers.realign(predicted, original, tokenized) == expected


def test_realign_equals_published_code(google):
  run_squad, published_tokenization = google
  generator = random.Random(3)
  alphabet = "aB .,'\u00e9\u0130\u4e2d\u00df-(\u0301\u200b\u00a0"
  aligned = 0
  for _ in range(3000):
    original = " ".join("".join(
        generator.choice(alphabet)
        for _ in range(generator.randint(1, 12))).split()) or "a"
    lower = generator.random() < 0.7
    tokens = published_tokenization.BasicTokenizer(lower).tokenize(original)
    tokenized = " ".join(tokens)
    first = generator.randint(0, len(tokens))
    predicted = " ".join(tokens[first:first + generator.randint(1, 4)])
    expected = run_squad.get_final_text(predicted, original, lower)
    assert squad_answers.realign(predicted, original, tokenized) == expected
    aligned += expected != original
  assert aligned > 500


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_that_are_not_finite(small, value):
  with pytest.raises(UserError, match="logits for question q are not finite"):
    answer(small, {3: value}, {3: 1})


@pytest.mark.parametrize("name", ["n_best_size", "max_answer_length"])
def test_sizes_below_one(small, name):
  with pytest.raises(UserError, match="--%s=0" % name):
    answer(small, {3: 1}, {3: 1}, **{name: 0})


def test_other_tokenizer_or_shape(small):
  with pytest.raises(ValueError, match="do_lower_case"):
    answer(small, {3: 1}, {3: 1}, do_lower_case=False)
  examples, features, tokenizer = small
  with pytest.raises(ValueError, match="logits"):
    squad_answers.predict_answers(
        examples, features, np.zeros((1, 15)), np.zeros((1, 15)),
        squad_answers.AnswerSettings(), tokenizer)
