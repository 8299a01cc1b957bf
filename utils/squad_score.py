"""Scores SQuAD answers, to the last digit as the official evaluators do.

    python utils/squad_score.py DATASET PREDICTIONS [--na_prob_file FILE]

prints the evaluator's JSON on one line: exact_match and f1 for v1.1; exact,
f1, total, the same for questions with and without answer and, given null
odds, the best thresholds for v2.0.
"""

import argparse
import collections
import json
import math
import os
import re
import string
import sys

if __name__ == "__main__":
  # Started as a program, from any folder, the root is not on the path.
  sys.path.insert(0, os.path.dirname(os.path.dirname(
      os.path.abspath(__file__))))

# pylint: disable=wrong-import-position
from utils import errors
from utils import files
from utils.errors import UserError

_ARTICLE = re.compile(r"\b(?:a|an|the)\b")
_PUNCTUATION = {ord(character): None for character in string.punctuation}


def normalize_answer(text):
  """Returns `text` in lower case without ASCII punctuation and articles.

  In this order, as official; runs of white space become one blank.
  """
  text = text.lower().translate(_PUNCTUATION)
  return " ".join(_ARTICLE.sub(" ", text).split())


def exact_score(prediction, truth):
  """Returns 1 if the normalised texts are equal, else 0."""
  return int(normalize_answer(prediction) == normalize_answer(truth))


def f1_score(prediction, truth, version_2=False):
  """Returns the harmonic mean of precision and recall over words.

  Args:
    prediction, truth: text.
    version_2: whether two texts without a word agree (1); v1.1 gives 0.
  """
  predicted = normalize_answer(prediction).split()
  true = normalize_answer(truth).split()
  if version_2 and not (predicted and true):
    return int(predicted == true)
  common = collections.Counter(predicted) & collections.Counter(true)
  same = sum(common.values())
  if same == 0:
    return 0
  precision = same / len(predicted)
  recall = same / len(true)
  return 2 * precision * recall / (precision + recall)


def _each_question(dataset):
  for article in dataset["data"]:
    for paragraph in article["paragraphs"]:
      for qa in paragraph["qas"]:
        yield qa


def _questions(dataset, name):
  """Returns [(id, list of answer texts)] of a parsed SQuAD file.

  The list is None for a question without "answers".

  Raises:
    UserError: if the file, or a question of it, is not of that form.
  """
  try:
    return [_question(qa, name) for qa in _each_question(dataset)]
  except (KeyError, TypeError) as error:
    raise UserError("%s is not a SQuAD file (at %s)" % (name, error))


def _question(qa, name):
  if not isinstance(qa, dict) or not isinstance(qa.get("id"), str):
    raise UserError("%s: a question's id is missing or not text: %.100r: mend "
                    "or remove it" % (name, qa))
  if "answers" not in qa:
    return qa["id"], None
  answers = qa["answers"]
  if not isinstance(answers, list) or not all(
      isinstance(answer, dict) and isinstance(answer.get("text"), str)
      for answer in answers):
    raise UserError("%s: question %s: its \"answers\" are not a list of "
                    "objects with a \"text\" each: mend or remove it"
                    % (name, qa["id"]))
  return qa["id"], [answer["text"] for answer in answers]


def check(dataset, name="the dataset", version=None):
  """Says whether a parsed SQuAD file has answers to score against.

  Test files come without "answers", or with none in any question.

  Args:
    dataset: the file's JSON value.
    name: what messages call it.
    version: "1.1" or "2.0"; None detects it.

  Raises:
    UserError: if it is not a SQuAD file, or cannot be scored.
  """
  questions = _questions(dataset, name)
  if any(truths is None for _, truths in questions):
    return False
  if not any(truths for _, truths in questions) and not any(
      qa.get("is_impossible") for qa in _each_question(dataset)):
    return False
  if (version or detect_version(dataset)) == "1.1":
    for qas_id, truths in questions:
      if not truths:
        raise UserError(
            "%s: question %s has no answer, as only SQuAD v2.0 may: mend it, "
            "or give the file \"version\": \"v2.0\"" % (name, qas_id))
  return True


def detect_version(dataset):
  """Returns "1.1" or "2.0" for a parsed SQuAD file.

  By its version field, or where that says neither by whether any question
  carries "is_impossible".
  """
  stated = str(dataset.get("version", "")).lower().lstrip("v")
  if stated.startswith("1"):
    return "1.1"
  if stated.startswith("2") or any(
      "is_impossible" in qa for qa in _each_question(dataset)):
    return "2.0"
  return "1.1"


def _warn(message):
  sys.stderr.write(message + "\n")


def _mean(values, total):
  """Returns 100 * sum / total, summed in order as the evaluators do."""
  result = 0
  for value in values:
    result += value
  return 100.0 * result / total


def score_v1(questions, predictions):
  """Scores SQuAD v1.1: each answer against the best of the true ones.

  Args:
    questions: list of (id, list of answer texts, at least one).
    predictions: {id: text}. A question without one scores 0, with a line.

  Returns:
    OrderedDict of "exact_match" and "f1", per cent.
  """
  exact, f1 = [], []
  for qas_id, truths in questions:
    if qas_id not in predictions:
      _warn("Unanswered question %s will receive score 0." % qas_id)
      continue
    answer = predictions[qas_id]
    exact.append(max(exact_score(answer, truth) for truth in truths))
    f1.append(max(f1_score(answer, truth) for truth in truths))
  return collections.OrderedDict([
      ("exact_match", _mean(exact, len(questions))),
      ("f1", _mean(f1, len(questions)))])


def raw_scores_v2(questions, predictions):
  """Returns {id: exact}, {id: f1} of the SQuAD v2.0 questions predicted.

  A question without a prediction is left out, with a line. The only right
  answer to an impossible question is the empty text.
  """
  exact, f1 = collections.OrderedDict(), collections.OrderedDict()
  for qas_id, truths in questions:
    if qas_id not in predictions:
      _warn("Missing prediction for %s" % qas_id)
      continue
    truths = [t for t in truths if normalize_answer(t)] or [""]
    answer = predictions[qas_id]
    exact[qas_id] = max(exact_score(answer, t) for t in truths)
    f1[qas_id] = max(f1_score(answer, t, version_2=True) for t in truths)
  return exact, f1


def apply_threshold(scores, null_odds, answerable, threshold):
  """Returns `scores` as if every answer with larger odds were empty.

  Args:
    scores: {id: score in 0..1}.
    null_odds: {id: float}.
    answerable: {id: bool}, whether the question has an answer.
    threshold: float.
  """
  return collections.OrderedDict(
      (k, float(not answerable[k]) if null_odds[k] > threshold else value)
      for k, value in scores.items())


def find_best_threshold(predictions, scores, null_odds, answerable):
  """Finds the threshold on the odds with the best mean score.

  Starts from no answer to any question, and lets in the predictions one by
  one, smallest odds first.

  Args:
    predictions: {id: text}.
    scores: {id: score in 0..1} of those predictions.
    null_odds: {id: float}.
    answerable: {id: bool} of all questions.

  Returns:
    (mean score in per cent, threshold).
  """
  current = best = sum(not value for value in answerable.values())
  threshold = 0.0
  for qas_id in sorted(null_odds, key=null_odds.get):
    if qas_id not in scores:
      continue
    if answerable[qas_id]:
      current += scores[qas_id]
    elif predictions[qas_id]:
      current -= 1
    if current > best:
      best, threshold = current, null_odds[qas_id]
  return 100.0 * best / len(scores), threshold


def _summary(prefix, exact, f1, ids):
  if not ids:
    return []
  return [(prefix + "exact", _mean((exact[k] for k in ids), len(ids))),
          (prefix + "f1", _mean((f1[k] for k in ids), len(ids))),
          (prefix + "total", len(ids))]


def score_v2(questions, predictions, null_odds=None, na_prob_thresh=None):
  """Scores SQuAD v2.0.

  Args:
    questions: list of (id, list of answer texts; none if impossible).
    predictions: {id: text}, "" for no answer. Those of some questions may
      be missing; the official evaluator then fails on the sums of HasAns or
      NoAns, here they are over what is there.
    null_odds: {id: float} or None: adds the best thresholds.
    na_prob_thresh: float; answers with larger odds count as empty. None
      takes the predictions as they are.

  Returns:
    OrderedDict with the official keys, in their order.

  Raises:
    UserError: if nothing is predicted, or odds are missing.
  """
  answerable = collections.OrderedDict(
      (qas_id, bool(truths)) for qas_id, truths in questions)
  raw_exact, raw_f1 = raw_scores_v2(questions, predictions)
  if not raw_exact:
    raise UserError("no question of the dataset has a prediction: are these "
                    "the predictions of another dataset?")
  exact, f1 = raw_exact, raw_f1
  if null_odds is not None:
    lacking = [k for k in raw_exact if k not in null_odds]
    if lacking:
      raise UserError("the null odds lack %d questions, %s the first"
                      % (len(lacking), lacking[0]))
    if na_prob_thresh is not None:
      exact, f1 = (apply_threshold(s, null_odds, answerable, na_prob_thresh)
                   for s in (raw_exact, raw_f1))
  result = collections.OrderedDict(_summary("", exact, f1, list(exact)))
  result.update(_summary("HasAns_", exact, f1,
                         [k for k in exact if answerable[k]]))
  result.update(_summary("NoAns_", exact, f1,
                         [k for k in exact if not answerable[k]]))
  if null_odds is not None:
    for name, raw in (("exact", raw_exact), ("f1", raw_f1)):
      best, threshold = find_best_threshold(
          predictions, raw, null_odds, answerable)
      result["best_" + name] = best
      result["best_%s_thresh" % name] = threshold
  return result


def _check_mapping(value, kinds, what):
  if not isinstance(value, dict) or not all(
      isinstance(v, kinds) and not isinstance(v, bool)
      for v in value.values()):
    raise UserError("%s must be a JSON object of question ids and %s"
                    % (what, "texts" if kinds is str else "numbers"))
  for qas_id, number in value.items():
    if isinstance(number, float) and math.isnan(number):
      raise UserError("%s of question %s is NaN: predict again"
                      % (what, qas_id))


def score(dataset, predictions, null_odds=None, version=None,
          na_prob_thresh=None, name="the dataset"):
  """Scores predictions against a parsed SQuAD file.

  Args:
    dataset: the file's JSON value.
    predictions: {id: text}.
    null_odds: {id: float} or None; used for v2.0 alone.
    version: "1.1" or "2.0"; None detects it.
    na_prob_thresh: see `score_v2`.
    name: what messages call the dataset.

  Returns:
    OrderedDict of the official evaluator's keys, or None if the file has no
    answers (a test file).

  Raises:
    UserError: if one of the inputs is not what it should be.
  """
  if not check(dataset, name, version):
    return None
  _check_mapping(predictions, str, "the predictions")
  questions = _questions(dataset, name)
  if (version or detect_version(dataset)) == "1.1":
    return score_v1(questions, predictions)
  if null_odds is not None:
    _check_mapping(null_odds, (int, float), "the null odds")
  return score_v2(questions, predictions, null_odds, na_prob_thresh)


def threshold_line(scores):
  """Returns a log line on the best v2.0 thresholds; None if there are none.

  Args:
    scores: what `score` returned.
  """
  if "best_exact" not in scores:
    return None
  return ("best null thresholds: exact %.2f at %s, f1 %.2f at %s (see "
          "--null_score_diff_threshold)" % tuple(
              scores[name] for name in (
                  "best_exact", "best_exact_thresh", "best_f1",
                  "best_f1_thresh")))


def final_line(scores):
  """Returns the one line that ends a run: exact_match and f1 as JSON."""
  exact = scores["exact"] if "exact" in scores else scores["exact_match"]
  return json.dumps(collections.OrderedDict([
      ("exact_match", exact), ("f1", scores["f1"])]))


def _parse_arguments(argv):
  parser = argparse.ArgumentParser(
      description="Scores SQuAD v1.1 or v2.0 predictions as the official "
                  "evaluators do and prints their JSON on one line.")
  parser.add_argument("dataset", help="SQuAD JSON file with answers")
  parser.add_argument("predictions", help="JSON object {id: answer}")
  parser.add_argument("--na_prob_file", "--na-prob-file", "-n",
                      help="JSON object {id: odds of no answer} (v2.0)")
  parser.add_argument("--na_prob_thresh", "--na-prob-thresh", "-t",
                      type=float, default=1.0,
                      help="with --na_prob_file: answers with larger odds "
                           "count as empty (1.0)")
  parser.add_argument("--version", choices=["1.1", "2.0"],
                      help="what the dataset is, if it does not say")
  parser.add_argument("--out_file", "--out-file", "-o",
                      help="also write the JSON to this file")
  return parser.parse_args(argv)


def main(argv=None):
  """Command line; see the module's docstring."""
  options = _parse_arguments(argv)
  dataset = files.read_json(options.dataset, "dataset")
  predictions = files.read_json(options.predictions, "predictions")
  _check_mapping(predictions, str, "predictions: " + options.predictions)
  null_odds = None
  if options.na_prob_file:
    null_odds = files.read_json(options.na_prob_file, "--na_prob_file")
    _check_mapping(null_odds, (int, float),
                   "--na_prob_file: " + options.na_prob_file)
  scores = score(dataset, predictions, null_odds, options.version,
                 options.na_prob_thresh, options.dataset)
  if scores is None:
    raise UserError("%s has no answers to score against" % options.dataset)
  if options.out_file:
    with files.writing(options.out_file, "out_file"):
      files.write_json(options.out_file, scores)
  print(json.dumps(scores))


if __name__ == "__main__":
  errors.guard(main)
