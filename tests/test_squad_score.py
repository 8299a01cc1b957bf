"""SQuAD scores: known results of the official evaluators, and by hand."""

import json
import random
import subprocess
import sys

import pytest

from utils import squad_score
from utils.errors import UserError

V1_KNOWN = {"exact_match": 86.20624408703878, "f1": 92.19557978351145}
V2_KNOWN = {"exact": 78.74168280973637, "f1": 81.77528052374723}


def squad(answers, version=None, impossible=None):
  """A SQuAD file's value: {id: list of answer texts}."""
  value = {"data": [{"paragraphs": [{"context": "c", "qas": [
      {"id": k, "question": "q", "answers": [
          {"text": t, "answer_start": 0} for t in texts]}
      for k, texts in answers.items()]}]}]}
  if version:
    value["version"] = version
  if impossible is not None:
    for qa in value["data"][0]["paragraphs"][0]["qas"]:
      qa["is_impossible"] = qa["id"] in impossible
  return value


def read(path):
  return json.loads(path.read_text(encoding="utf-8"))


def run(root, tmp_path, *arguments):
  """Runs the command line from a folder that is not the root."""
  return subprocess.run(
      [sys.executable, str(root / "utils" / "squad_score.py")]
      + [str(a) for a in arguments], cwd=str(tmp_path),
      stdout=subprocess.PIPE, stderr=subprocess.PIPE,
      universal_newlines=True)


# The official evaluators, on real predictions.


def test_known_scores_v1(shared_data):
  folder = shared_data / "squad"
  assert dict(squad_score.score(
      read(folder / "dev-v1.1.json"),
      read(folder / "predictions" / "dev-v1.1.bert-ensemble.json"))
             ) == V1_KNOWN


def test_known_scores_v2(root, shared_data, tmp_path):
  folder = shared_data / "squad"
  done = run(root, tmp_path, folder / "dev-v2.0-reconstructed.json",
             folder / "predictions" / "dev-v2.0.bert-single.json")
  assert done.returncode == 0 and done.stderr == ""
  assert done.stdout.count("\n") == 1
  scores = json.loads(done.stdout)
  assert {k: scores[k] for k in V2_KNOWN} == V2_KNOWN
  assert (scores["total"], scores["HasAns_total"],
          scores["NoAns_total"]) == (11873, 5928, 5945)
  assert scores["exact"] * 11873 == pytest.approx(
      scores["HasAns_exact"] * 5928 + scores["NoAns_exact"] * 5945)


# By hand.


@pytest.mark.parametrize("text, expected", [
    ("The  Cat, a-Hat!", "cat ahat"),
    ("an apple a day", "apple day"),
    ("theatre", "theatre"),
    # Punctuation goes first: what remains of "a." is an article, and "the-a"
    # is one word.
    ("a. b the-a", "b thea"),
    ("\u201cthe\u201d \u00c9t\u00e9\u00a0x", "\u201c \u201d \u00e9t\u00e9 x"),
    ("The", ""),
])
def test_normalize(text, expected):
  assert squad_score.normalize_answer(text) == expected


@pytest.mark.parametrize("prediction, truth, f1, exact", [
    ("the cat", "Cat.", 1, 1),
    ("cat sat", "cat", 2 * 0.5 * 1 / 1.5, 0),
    ("cat cat dog", "cat dog dog dog", 2 * (2 / 3) * 0.5 / (2 / 3 + 0.5), 0),
    ("dog", "cat", 0, 0),
    ("", "cat", 0, 0),
])
@pytest.mark.parametrize("version_2", [False, True])
def test_f1_and_exact(prediction, truth, f1, exact, version_2):
  assert squad_score.f1_score(prediction, truth, version_2) == f1
  assert squad_score.exact_score(prediction, truth) == exact


def test_f1_of_two_empty_texts():
  # Two normalised texts without a word are equal, yet share no word.
  assert squad_score.exact_score("the", "A") == 1
  assert squad_score.f1_score("the", "A") == 0
  assert squad_score.f1_score("the", "A", version_2=True) == 1


def test_v1_takes_the_best_truth_and_counts_what_is_missing(capsys):
  dataset = squad({"a": ["x y", "x"], "b": ["z"], "c": ["w"], "d": ["v"]})
  scores = squad_score.score(dataset, {"a": "x", "b": "z q", "d": "u",
                                       "other": "x"})
  assert dict(scores) == {"exact_match": 25.0,
                          "f1": 100.0 * (1 + 2 / 3) / 4}
  assert capsys.readouterr() == (
      "", "Unanswered question c will receive score 0.\n")
  assert squad_score.final_line(scores) == (
      "{\"exact_match\": 25.0, \"f1\": 41.666666666666664}")


V2_SET = squad({"has1": ["red car"], "has2": ["blue", "blue sky"], "no1": [],
                "no2": []}, "v2.0", {"no1", "no2"})
V2_ANSWERS = {"has1": "car", "has2": "blue sky", "no1": "", "no2": "green"}


def test_v2(capsys):
  scores = squad_score.score(V2_SET, V2_ANSWERS)
  f1 = 2 * 1 * 0.5 / 1.5
  assert list(scores.items()) == [
      ("exact", 50.0), ("f1", 100.0 * (f1 + 1 + 1) / 4), ("total", 4),
      ("HasAns_exact", 50.0), ("HasAns_f1", 100.0 * (f1 + 1) / 2),
      ("HasAns_total", 2), ("NoAns_exact", 50.0), ("NoAns_f1", 50.0),
      ("NoAns_total", 2)]
  assert squad_score.final_line(scores) == json.dumps(
      {"exact_match": 50.0, "f1": 100.0 * (f1 + 2) / 4})
  assert capsys.readouterr() == ("", "")


def test_v2_without_one_kind():
  scores = squad_score.score(squad({"a": ["x"]}, "v2.0"), {"a": "x"})
  assert "NoAns_total" not in scores and scores["HasAns_total"] == 1


def test_v2_leaves_out_what_is_missing(capsys):
  answers = {"has1": "car", "no1": ""}
  scores = squad_score.score(V2_SET, answers)
  assert (scores["exact"], scores["total"]) == (50.0, 2)
  assert scores["HasAns_total"] == scores["NoAns_total"] == 1
  assert capsys.readouterr().err == (
      "Missing prediction for has2\nMissing prediction for no2\n")


def test_v2_answers_without_a_word_are_none():
  scores = squad_score.score(squad({"a": ["the"], "b": ["x"]}, "v2.0"),
                             {"a": "", "b": "x"})
  assert scores["exact"] == scores["f1"] == 100.0


def test_best_threshold():
  # Always none: 2 of 4. Letting in, by odds: has2 (+1) = 3, no2 (-1) = 2,
  # has1 (+0 exact, +2/3 F1), no1 (empty, 0).
  odds = {"has1": 2.0, "has2": -3.0, "no1": 5.0, "no2": 0.5, "other": -9.0}
  scores = squad_score.score(V2_SET, V2_ANSWERS, odds)
  assert list(scores)[-4:] == ["best_exact", "best_exact_thresh", "best_f1",
                               "best_f1_thresh"]
  assert (scores["best_exact"], scores["best_exact_thresh"]) == (75.0, -3.0)
  assert (scores["best_f1"], scores["best_f1_thresh"]) == (75.0, -3.0)
  # Not better than none at all: threshold 0, as official.
  odds = {"has1": 3.0, "has2": 2.0, "no1": 1.0, "no2": 0.0}
  scores = squad_score.score(V2_SET, V2_ANSWERS, odds)
  assert (scores["best_exact"], scores["best_exact_thresh"]) == (50.0, 0.0)
  assert scores["best_f1_thresh"] == 3.0


def test_best_threshold_is_the_best_of_all():
  generator = random.Random(2)
  for _ in range(30):
    ids = [str(i) for i in range(25)]
    answerable = {k: generator.random() < 0.5 for k in ids}
    predictions = {k: generator.choice(["x", "y"]) for k in ids}
    scores = {k: generator.choice([0, 0.25, 1]) if answerable[k] else 0
              for k in ids}
    odds = {k: generator.uniform(-9, 9) for k in ids}
    best, threshold = squad_score.find_best_threshold(
        predictions, scores, odds, answerable)
    tried = [sum(squad_score.apply_threshold(
        scores, odds, answerable, t).values()) * 100 / 25
             for t in [-10] + sorted(odds.values())]
    assert best == pytest.approx(max(tried))
    if best != tried[0]:
      assert best == pytest.approx(sum(squad_score.apply_threshold(
          scores, odds, answerable, threshold).values()) * 4)


def test_threshold_on_the_odds():
  odds = {"has1": 2.0, "has2": 1.0, "no1": 0.0, "no2": 3.0}
  scores = squad_score.score(V2_SET, V2_ANSWERS, odds, na_prob_thresh=1.0)
  # has1 and no2 become empty: wrong and right.
  assert scores["exact"] == scores["f1"] == 75.0
  assert squad_score.score(V2_SET, V2_ANSWERS, odds)["exact"] == 50.0


@pytest.mark.parametrize("version, impossible, expected", [
    ("1.1", None, "1.1"), ("v2.0", None, "2.0"), ("2.0", None, "2.0"),
    (None, None, "1.1"), (None, (), "2.0"), ("mine", (), "2.0")])
def test_version(version, impossible, expected):
  dataset = squad({"a": ["x"]}, version, impossible)
  assert squad_score.detect_version(dataset) == expected
  scores = squad_score.score(dataset, {"a": "x"})
  assert ("exact" in scores) == (expected == "2.0")
  assert "exact_match" in squad_score.score(dataset, {"a": "x"},
                                            version="1.1")


def test_files_without_answers_are_not_scored():
  assert squad_score.score(squad({"a": []}), {"a": "x"}) is None
  dataset = squad({"a": ["x"]})
  del dataset["data"][0]["paragraphs"][0]["qas"][0]["answers"]
  assert squad_score.score(dataset, {"a": "x"}) is None


def changed(**changes):
  """A v1.1 file of three questions, the second of them changed."""
  dataset = squad({"a": ["x"], "b": ["y"], "c": ["z"]})
  dataset["data"][0]["paragraphs"][0]["qas"][1].update(changes)
  return dataset


@pytest.mark.parametrize("dataset, message", [
    ([], "my.json is not a SQuAD file"),
    (None, "my.json is not a SQuAD file"),
    ({"data": 3}, "my.json is not a SQuAD file"),
    ({"data": {"a": 1}}, "my.json is not a SQuAD file"),
    ({"data": [{"paragraphs": [{"qas": "abc"}]}]}, "my.json: .*id"),
    (changed(id=["b"]), "my.json: .*id is missing or not text"),
    (changed(id=7), "my.json: .*id is missing or not text"),
    (changed(answers=[{"text": 5}]), "my.json: question b: .*\"text\""),
    (changed(answers=[{"text": None}]), "my.json: question b: .*\"text\""),
    (changed(answers=["y"]), "my.json: question b: .*\"text\""),
    (changed(answers=[{"answer_start": 1}]), "my.json: question b"),
    (changed(answers=None), "my.json: question b"),
    (changed(answers={}), "my.json: question b"),
    (changed(answers=[]), "my.json: question b has no answer"),
])
def test_files_that_cannot_be_scored(dataset, message):
  for call in (lambda: squad_score.check(dataset, "my.json"),
               lambda: squad_score.score(dataset, {"a": "x"}, name="my.json")):
    with pytest.raises(UserError, match=message) as caught:
      call()
    assert "\n" not in str(caught.value)


def test_check():
  assert squad_score.check(squad({"a": ["x"]}), "n") is True
  assert squad_score.check(V2_SET, "n") is True
  assert squad_score.check(squad({"a": []}, "v2.0", {"a"}), "n") is True
  # Test files.
  assert squad_score.check(squad({"a": []}), "n") is False
  assert squad_score.check({"data": []}, "n") is False
  dataset = changed()
  del dataset["data"][0]["paragraphs"][0]["qas"][2]["answers"]
  assert squad_score.check(dataset, "n") is False


def test_threshold_line():
  odds = {"has1": 3.0, "has2": -2.5, "no1": 1.0, "no2": 0.0}
  scores = squad_score.score(V2_SET, V2_ANSWERS, odds)
  line = squad_score.threshold_line(scores)
  assert "\n" not in line and "--null_score_diff_threshold" in line
  assert "exact 75.00 at -2.5" in line and "f1 75.00 at -2.5" in line
  assert squad_score.threshold_line(squad_score.score(
      V2_SET, V2_ANSWERS)) is None
  assert squad_score.threshold_line({"exact_match": 1.0, "f1": 1.0}) is None


@pytest.mark.parametrize("dataset, predictions, odds, message", [
    (squad({"a": ["x"]}), ["x"], None, "predictions must be a JSON object"),
    (squad({"a": ["x"]}), {"a": None}, None, "question ids and texts"),
    (squad({"a": ["x"], "b": []}), {"a": "x", "b": "y"}, None,
     "question b has no answer"),
    (V2_SET, {"else": "x"}, None, "no question of the dataset has a pred"),
    (V2_SET, V2_ANSWERS, {"has1": 1.0}, "lack 3 questions, has2 the first"),
    (V2_SET, V2_ANSWERS, {"has1": "1"}, "null odds must be a JSON object"),
    (V2_SET, V2_ANSWERS, {"has1": 1.0, "has2": float("nan"), "no1": 0.0,
                          "no2": 0}, "null odds of question has2 .* NaN"),
])
def test_bad_input(dataset, predictions, odds, message):
  with pytest.raises(UserError, match=message):
    squad_score.score(dataset, predictions, odds)


# The command line.


def write(path, value):
  path.write_text(json.dumps(value))
  return path


def test_command_line(root, tmp_path):
  dataset = write(tmp_path / "data.json", V2_SET)
  answers = write(tmp_path / "answers.json", V2_ANSWERS)
  odds = write(tmp_path / "odds.json", {
      "has1": 2.0, "has2": 1.0, "no1": 0.0, "no2": 3.0})
  done = run(root, tmp_path, dataset, answers, "--na_prob_file", odds,
             "--out_file", tmp_path / "out.json")
  assert done.returncode == 0 and done.stderr == ""
  scores = json.loads(done.stdout)
  # The official default threshold is 1.
  assert scores["exact"] == 75.0 and scores["best_exact_thresh"] == 1.0
  assert read(tmp_path / "out.json") == scores
  done = run(root, tmp_path, dataset, answers, "--na_prob_file", odds,
             "--na_prob_thresh", "9")
  assert json.loads(done.stdout)["exact"] == 50.0


@pytest.mark.parametrize("content, message", [
    (None, "ERROR: dataset: cannot read"),
    ("{", "is not valid JSON"),
    ("[" * 100000, "is not valid JSON (too deeply nested)"),
    (json.dumps(squad({"a": []})), "has no answers to score against"),
], ids=["missing", "cut off", "deeply nested", "a test file"])
def test_command_line_bad_input(root, tmp_path, content, message):
  answers = write(tmp_path / "answers.json", {"a": "x"})
  if content:
    (tmp_path / "data.json").write_text(content)
  done = run(root, tmp_path, tmp_path / "data.json", answers)
  assert done.returncode == 1 and done.stdout == ""
  assert message in done.stderr and "data.json" in done.stderr
  assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("name, content, option", [
    ("answers.json", ["x"], None), ("answers.json", {"has1": 5}, None),
    ("odds.json", {"has1": float("nan")}, "--na_prob_file"),
    ("odds.json", 7, "--na_prob_file")])
def test_command_line_names_the_file_at_fault(root, tmp_path, name, content,
                                              option):
  dataset = write(tmp_path / "data.json", V2_SET)
  answers = write(tmp_path / "answers.json", V2_ANSWERS)
  wrong = write(tmp_path / name, content)
  done = run(root, tmp_path, dataset, answers,
             *([option, wrong] if option else []))
  assert done.returncode == 1 and done.stdout == ""
  assert name in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize("place", ["", "data.json/out.json"])
def test_command_line_cannot_write(root, tmp_path, place):
  dataset = write(tmp_path / "data.json", V2_SET)
  answers = write(tmp_path / "answers.json", V2_ANSWERS)
  done = run(root, tmp_path, dataset, answers, "--out_file",
             str(tmp_path / place))
  assert done.returncode == 1 and done.stdout == ""
  assert done.stderr.startswith("ERROR: --out_file: cannot write")
  assert done.stderr.count("\n") == 1
  assert sorted(p.name for p in tmp_path.iterdir()) == [
      "answers.json", "data.json"]
