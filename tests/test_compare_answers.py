"""Comparing the answers of two runs."""

import json
import subprocess
import sys

import pytest

from benchmarks import compare_answers
from conftest import ROOT

pytestmark = pytest.mark.once


def write(folder, answers):
  """Writes a run with n-best lists of (text, start, end)."""
  folder.mkdir(exist_ok=True)
  lists = {name: [{"text": text, "start_logit": start, "end_logit": end}
                  for text, start, end in rows]
           for name, rows in answers.items()}
  (folder / "nbest_predictions.json").write_text(json.dumps(lists))
  (folder / "predictions.json").write_text(json.dumps(
      {name: rows[0]["text"] for name, rows in lists.items()}))
  return str(folder)


@pytest.fixture
def first(tmp_path):
  return write(tmp_path / "first", {
      "q1": [("a", 2.0, 3.0), ("b", 1.0, 1.0)], "q2": [("c", 0.5, 0.5)]})


@pytest.mark.parametrize("changed, line, status", [
    ({}, "0 other answers, 0 other n-best lists (0 by ties alone), largest "
     "difference of a logit 0\n", 0),
    ({"q2": [("c", 0.5, 0.50005)]}, "logit 5e-05", 0),
    ({"q2": [("c", 0.5, 0.6)]}, "logit 0.1", 1),
    ({"q1": [("a", 2.0, 3.0), ("d", 1.0, 1.0)]},
     "0 other answers, 1 other n-best lists (0 by ties alone)", 1),
    ({"q1": [("a", 2.0, 3.0), ("b", 1.0, 1.0), ("e", 0.00001, 2.0)]},
     "0 other answers, 1 other n-best lists (0 by ties alone)", 1),
    ({"q2": [("d", 0.5, 0.5)]}, "1 other answers, 1 other n-best lists", 1),
    ({"q2": [("c", 0.5, float("nan"))]}, "logit inf", 1),
    ({"q1": [("a", 2.0, 3.0), ("b", -float("inf"), 1.0)]}, "logit inf", 1)])
def test_what_differs_is_counted(tmp_path, capsys, first, changed, line,
                                 status):
  answers = {"q1": [("a", 2.0, 3.0), ("b", 1.0, 1.0)], "q2": [("c", 0.5, 0.5)]}
  answers.update(changed)
  second = write(tmp_path / "second", answers)
  assert compare_answers.main([first, second]) == status
  out = capsys.readouterr().out
  assert out.startswith("2 questions: ") and line in out


@pytest.mark.parametrize("score, status", [(2.00001, 0), (2.1, 1)])
def test_answers_that_change_places_are_a_tie_if_their_scores_are(
    tmp_path, capsys, score, status):
  one, other = ("b", 1.0, 1.0), ("e", 0.0, score)
  best = ("a", 2.0, 3.0)
  folders = [write(tmp_path / "one", {"q": [best, one, other]}),
             write(tmp_path / "two", {"q": [best, other, one]})]
  assert compare_answers.main(folders) == status
  assert ("1 other n-best lists (%d by ties alone)" % (not status)
         ) in capsys.readouterr().out


def test_two_logits_that_are_not_finite_differ(tmp_path, capsys):
  folders = [write(tmp_path / name, {"q": [("a", 1.0, float(value))]})
             for name, value in (("one", "nan"), ("two", "nan"))]
  assert compare_answers.main(folders) == 1
  assert "largest difference of a logit inf" in capsys.readouterr().out


ANSWER = {"text": "a", "start_logit": 1.0, "end_logit": 2.0}


@pytest.mark.parametrize("answers, lists, said", [
    ({}, {}, "predictions.json does not give a text"),
    ([], [], "predictions.json does not give a text"),
    (["q1", "q2"], {"q1": [ANSWER]}, "predictions.json does not give a text"),
    ({"q1": 3}, {"q1": [ANSWER]}, "predictions.json does not give a text"),
    ({"q1": "a"}, [[ANSWER]], "nbest_predictions.json does not give a list"),
    ({"q1": "a"}, {"q1": [{"text": "a", "start_logit": 1.0}]},
     "nbest_predictions.json does not give a list"),
    ({"q1": "a"}, {"q1": [dict(ANSWER, end_logit=None)]},
     "nbest_predictions.json does not give a list"),
    ({"q1": "a", "q2": "a"}, {"q1": [ANSWER]}, "they are not of one run")])
def test_what_is_no_run_is_refused(tmp_path, capsys, answers, lists, said):
  (tmp_path / "predictions.json").write_text(json.dumps(answers))
  (tmp_path / "nbest_predictions.json").write_text(json.dumps(lists))
  assert compare_answers.main([str(tmp_path), str(tmp_path)]) == 2
  err = capsys.readouterr().err
  assert said in err and err.count("\n") == 1 and str(tmp_path) in err


def test_other_questions_are_no_comparison(tmp_path, first):
  second = write(tmp_path / "second", {"q1": [("a", 2.0, 3.0)]})
  result = subprocess.run(
      [sys.executable, str(ROOT / "benchmarks" / "compare_answers.py"), first,
       second], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
  assert result.returncode == 2
  assert result.stderr.decode().count("\n") == 1
  assert b"answer other questions" in result.stderr
