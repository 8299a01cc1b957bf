"""A fixed part of a SQuAD file: questions that fit into one short window.

  python benchmarks/squad_part.py --squad_file FILE --vocab_file FILE \
    --max_seq_length 128 --questions 2000 --output FILE

Takes every n-th of the questions that fit with their whole paragraph, so that a
trial on a few cores computes on little but answers. The same arguments give the
same questions.
"""

import argparse
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

# pylint: disable=wrong-import-position
import tokenization
from utils import errors
from utils import files
from utils import squad_data
from utils.errors import UserError


def fitting(dataset, tokenizer, length):
  """Returns the ids of the questions whose window is at most `length`."""
  found = []
  for article in dataset["data"]:
    for paragraph in article["paragraphs"]:
      room = length - 3 - len(tokenizer.tokenize(paragraph["context"]))
      found += [qa["id"] for qa in paragraph["qas"]
                if len(tokenizer.tokenize(qa["question"])) <= room]
  return found


def only(dataset, chosen):
  """Returns the dataset with the chosen questions alone."""
  articles = []
  for article in dataset["data"]:
    paragraphs = []
    for paragraph in article["paragraphs"]:
      questions = [qa for qa in paragraph["qas"] if qa["id"] in chosen]
      if questions:
        paragraphs.append(dict(paragraph, qas=questions))
    if paragraphs:
      articles.append(dict(article, paragraphs=paragraphs))
  return dict(dataset, data=articles)


def main():
  parser = argparse.ArgumentParser(
      description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--squad_file", required=True)
  parser.add_argument("--vocab_file", required=True)
  parser.add_argument("--max_seq_length", type=int, default=128)
  parser.add_argument("--questions", type=int, required=True)
  parser.add_argument("--output", required=True)
  options = parser.parse_args()
  squad_data.read_squad(options.squad_file)  # refuses what is none
  dataset = files.read_json(options.squad_file, "--squad_file")
  found = fitting(dataset, tokenization.FullTokenizer(
      files.require_file(options.vocab_file, "vocab_file")),
                  options.max_seq_length)
  count = min(options.questions, len(found))
  if count < 1:
    raise UserError("--questions=%d of the %d that fit into --max_seq_length="
                    "%d: none is left" % (options.questions, len(found),
                                          options.max_seq_length))
  chosen = {found[i * len(found) // count] for i in range(count)}
  files.write_json(options.output, only(dataset, chosen))
  print("%s: %d questions of %d that fit" % (
      options.output, len(chosen), len(found)))


if __name__ == "__main__":
  errors.guard(main)
