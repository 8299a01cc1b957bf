"""Times SQuAD features and answers against Google's code, in turn.

    python benchmarks/bench_squad_features.py DATASET VOCAB [--rounds 3]

Reads the questions, makes their features (384/128/64, nothing cached) and,
from seeded logits, the answer files, each round first with Google's code
(PyPI bert-tensorflow) and then with this one; prints the seconds, their
medians and the ratio. One process, one thread; a round takes Google's code a
minute or two on the 10,570 questions of the v1.1 dev set, and `--questions N`
takes only the first N of them.
"""

import argparse
import gc
import os
import statistics
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path[:0] = [ROOT, os.path.join(ROOT, "tests")]

# pylint: disable=wrong-import-position
import numpy as np
import squad_oracle
import tokenization
from utils import squad_answers
from utils import squad_data

LENGTHS = (384, 128, 64)


def google_features(google, options):
  """Returns (examples, features) of Google's code."""
  run_squad, published_tokenization = google
  tokenizer = published_tokenization.FullTokenizer(options.vocab)
  examples = run_squad.read_squad_examples(options.dataset, False)
  examples = examples[:options.questions]
  features = []
  run_squad.convert_examples_to_features(
      examples, tokenizer, *LENGTHS, is_training=False,
      output_fn=features.append)
  return examples, features


def our_features(options):
  """Returns (examples, features, tokenizer) of this code."""
  tokenizer = tokenization.FullTokenizer(options.vocab)
  examples = squad_data.read_examples(options.dataset, False, False)
  examples = examples[:options.questions]
  settings = squad_data.FeatureSettings(*LENGTHS, do_lower_case=True,
                                        vocab_sha256="")
  return examples, squad_data.featurize(
      examples, tokenizer, settings, False), tokenizer


def model_like_logits(features):
  """Returns float32 [2, n, seq]: high at a few places of the paragraph."""
  generator = np.random.RandomState(0)
  logits = generator.randn(2, *features.input_ids.shape) - 6
  for i in range(len(features)):
    first, last = features.query_length[i] + 2, features.length[i] - 2
    starts = generator.randint(first, last + 1, size=6)
    ends = np.minimum(starts + generator.randint(0, 5, size=6), last)
    logits[0, i, starts] += generator.rand(6) * 12
    logits[1, i, ends] += generator.rand(6) * 12
  return logits.astype(np.float32)


def google_answers(google, examples, features, logits, folder):
  """Writes Google's answer files."""
  run_squad = google[0]
  results = [run_squad.RawResult(f.unique_id, start.tolist(), end.tolist())
             for f, start, end in zip(features, *logits)]
  run_squad.write_predictions(
      examples, features, results, 20, 30, True,
      *[os.path.join(folder, name) for name in ("p", "n", "o")])


def our_answers(examples, features, tokenizer, logits, folder):
  """Writes this code's answer files."""
  squad_answers.write_answers(folder, *squad_answers.predict_answers(
      examples, features, logits[0], logits[1],
      squad_answers.AnswerSettings(), tokenizer))


def timed(times, function, *arguments):
  """Appends the seconds of a call to `times`; returns its value."""
  start = time.perf_counter()
  value = function(*arguments)
  times.append(time.perf_counter() - start)
  return value


def measure(google, options, folder):
  """Returns {stage: (Google's seconds, our seconds)}, lists over rounds."""
  times = {"features": ([], []), "answers": ([], [])}
  logits = model_like_logits(our_features(options)[1])
  for _ in range(options.rounds):
    made = timed(times["features"][0], google_features, google, options)
    timed(times["answers"][0], google_answers, google, *made, logits, folder)
    # Millions of live objects would slow down what comes next.
    del made
    gc.collect()
    made = timed(times["features"][1], our_features, options)
    timed(times["answers"][1], our_answers, *made, logits, folder)
  return times


def main():
  """Command line."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("dataset", help="SQuAD JSON file, e.g. dev-v1.1.json")
  parser.add_argument("vocab", help="uncased vocabulary")
  parser.add_argument("--rounds", type=int, default=3)
  parser.add_argument("--questions", type=int, help="only the first N")
  options = parser.parse_args()
  with tempfile.TemporaryDirectory() as folder:
    times = measure(squad_oracle.load(), options, folder)
  for stage, (theirs, ours) in times.items():
    for name, seconds in (("Google", theirs), ("this", ours)):
      print("%-8s %-6s %s  median %.2f s" % (
          stage, name, " ".join("%.2f" % s for s in seconds),
          statistics.median(seconds)))
    print("%-8s %.1f times as fast" % (
        stage, statistics.median(theirs) / statistics.median(ours)))


if __name__ == "__main__":
  main()
