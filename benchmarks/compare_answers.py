"""Compares the answers of two runs of SQuAD, such as one through a server.

  python benchmarks/compare_answers.py results/predicted results/served \
    [--tolerance 1e-4]

Each folder holds predictions.json and nbest_predictions.json. Prints how many
answers and n-best lists (texts and their order) differ, how many of these lists
have the same texts and differ by ties alone, and the largest difference of a
logit. A tie is answers that have changed places and whose scores (the sum of
two logits) are as near as two logits' tolerance. A logit that is not finite
differs from any other, infinitely. Exits with 0 if answers and lists are the
same but for ties and no logit differs by more than the tolerance, else with 1;
with 2 if the folders hold nothing that can be compared.
"""

import argparse
import math
import os
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

# pylint: disable=wrong-import-position
from utils import errors
from utils import files

LOGITS = ("start_logit", "end_logit")


def texts(answers):
  """Returns the texts of an n-best list, best first."""
  return [answer["text"] for answer in answers]


def logit_difference(first, second):
  """Returns the largest difference of a logit of two n-best lists.

  Of the same answer in both, whatever its place: a text stands once in a list.
  Infinite where a list, its other answers too, has one that is not finite.
  """
  if not all(math.isfinite(answer[name]) for answer in first + second
             for name in LOGITS):
    return math.inf
  others = {answer["text"]: answer for answer in second}
  return max([abs(answer[name] - others[answer["text"]][name])
              for answer in first if answer["text"] in others
              for name in LOGITS] or [0.0])


def differs_by_ties(first, second, tolerance):
  """Says whether lists of the same texts differ where scores do not."""
  scores = [[sum(answer[name] for name in LOGITS) for answer in answers]
            for answers in (first, second)]
  return (sorted(texts(first)) == sorted(texts(second))
          and all(abs(a - b) <= 2 * tolerance for a, b in zip(*scores)))


def _is_number(value):
  return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_list(answers):
  """Says whether this is an n-best list."""
  return isinstance(answers, list) and all(
      isinstance(answer, dict) and isinstance(answer.get("text"), str)
      and all(_is_number(answer.get(name)) for name in LOGITS)
      for answer in answers)


def read(folder):
  """Returns ({question: answer}, {question: n-best list}) of a run.

  Raises:
    UserError: if its files cannot be read, or are not those of one run.
  """
  result = []
  for name, is_value, kind in (
      ("predictions.json", lambda answer: isinstance(answer, str), "a text"),
      ("nbest_predictions.json", _is_list, "a list of texts and logits")):
    path = os.path.join(folder, name)
    result.append(files.read_json(path, name))
    if not (isinstance(result[-1], dict) and result[-1]
            and all(map(is_value, result[-1].values()))):
      raise errors.UserError("%s does not give %s for each of its questions: "
                             "name the folder of a run" % (path, kind))
  if set(result[0]) != set(result[1]):
    raise errors.UserError("%s: predictions.json and nbest_predictions.json "
                           "answer other questions: they are not of one run"
                           % folder)
  return result


def compare(first, second, tolerance):
  """Returns (report line, whether the runs are the same but for ties).

  Args:
    first: folder of a run.
    second: folder of the other.
    tolerance: float, of a logit.

  Raises:
    UserError: as `read` does, or if the questions are not the same.
  """
  one, two = read(first), read(second)
  if list(one[0]) != list(two[0]):
    raise errors.UserError(
        "%s and %s answer other questions, or in another order: compare runs "
        "of one --predict_file" % (first, second))
  other_answers = sum(one[0][name] != two[0][name] for name in one[0])
  other_lists = [name for name in one[1]
                 if texts(one[1][name]) != texts(two[1][name])]
  ties = sum(differs_by_ties(one[1][name], two[1][name], tolerance)
             for name in other_lists)
  largest = max(logit_difference(one[1][name], two[1][name])
                for name in one[1])
  line = ("%d questions: %d other answers, %d other n-best lists (%d by ties "
          "alone), largest difference of a logit %.2g" % (
              len(one[0]), other_answers, len(other_lists), ties, largest))
  return line, (not other_answers and ties == len(other_lists)
                and largest <= tolerance)


def main(arguments=None):
  """Returns the exit status."""
  parser = argparse.ArgumentParser(
      description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("first", help="folder of a run")
  parser.add_argument("second", help="folder of the other")
  parser.add_argument("--tolerance", type=float, default=1e-4,
                      help="of a logit (default %(default)s)")
  options = parser.parse_args(arguments)
  try:
    line, same = compare(options.first, options.second, options.tolerance)
  except errors.UserError as error:
    print("compare_answers: %s" % error, file=sys.stderr)
    return 2
  print(line)
  return 0 if same else 1


if __name__ == "__main__":
  sys.exit(main())
