"""Compares the answers of two runs of SQuAD, such as one through a server.

  python benchmarks/compare_answers.py results/predicted results/served \
    [--tolerance 1e-4]

Each folder holds predictions.json and nbest_predictions.json. Prints how many
answers and n-best lists (texts and their order) are the same, and the largest
difference of a logit. Exits with 0 if every answer and list is the same and no
logit differs by more than the tolerance, else with 1.
"""

import argparse
import os
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

# pylint: disable=wrong-import-position
from utils import errors
from utils import files


def texts(answers):
  """Returns the texts of an n-best list, best first."""
  return [answer["text"] for answer in answers]


def logit_difference(first, second):
  """Returns the largest difference of a logit of two n-best lists.

  Place by place: where two answers have changed places, theirs are compared.
  """
  return max([abs(a[name] - b[name]) for a, b in zip(first, second)
              for name in ("start_logit", "end_logit")] or [0.0])


def compare(first, second):
  """Returns (report line, questions that differ, largest difference).

  Args:
    first: folder of a run.
    second: folder of the other.

  Raises:
    UserError: if a file cannot be read or the questions are not the same.
  """
  one, two = [
      [files.read_json(os.path.join(folder, name), name)
       for name in ("predictions.json", "nbest_predictions.json")]
      for folder in (first, second)]
  if list(one[0]) != list(two[0]):
    raise errors.UserError(
        "%s and %s answer other questions, or in another order: compare runs "
        "of one --predict_file" % (first, second))
  other_answers = [name for name in one[0] if one[0][name] != two[0][name]]
  other_lists = [name for name in one[1]
                 if texts(one[1][name]) != texts(two[1][name])]
  largest = max(logit_difference(one[1][name], two[1][name])
                for name in one[1])
  line = ("%d questions: %d other answers, %d other n-best lists, largest "
          "difference of a logit %.2g" % (
              len(one[0]), len(other_answers), len(other_lists), largest))
  return line, other_answers + other_lists, largest


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
    line, differing, largest = compare(options.first, options.second)
  except errors.UserError as error:
    print("compare_answers: %s" % error, file=sys.stderr)
    return 2
  print(line)
  return 1 if differing or largest > options.tolerance else 0


if __name__ == "__main__":
  sys.exit(main())
