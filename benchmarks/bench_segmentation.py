"""Times segmentation against NLTK, and sharding, on one core.

    NLTK_DATA=... python benchmarks/bench_segmentation.py TEXT... [--rounds 5]

Each round runs NLTK's PunktSentenceTokenizer and this project's Segmenter, new
and with nothing kept, in turn on the same texts, a file as one document. Their
sentences have to be equal. Then whole programs: `data/segment.py` with one
worker and `data/shard.py`, on 10 and 100 MB (`--megabytes`) of the same texts,
whose words are altered in each repetition. Prints medians in MB/s, the ratio
and peak memory. CPU seconds are counted, so that a busy machine does not tilt
the balance; for the programs also those on the clock.
"""

import argparse
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

# pylint: disable=wrong-import-position
from data import punkt_model
from data.punkt_segmenter import Segmenter
from nltk.tokenize import punkt

# Runs a program; prints its CPU seconds and the peak memory, in KB, of the
# largest of its processes.
_MEASURED = """
import resource, subprocess, sys
subprocess.check_call([sys.executable] + sys.argv[1:],
                      stderr=subprocess.DEVNULL)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(used.ru_utime + used.ru_stime, used.ru_maxrss)
"""


def seconds_of(function, texts):
  """Returns the CPU seconds of calling `function` for each, and results."""
  start = time.process_time()
  results = [function(text) for text in texts]
  return time.process_time() - start, results


def compare(texts, parameters, rounds):
  """Prints the speed of NLTK and of ours, and whether they agree."""
  megabytes = sum(len(text.encode("utf-8")) for text in texts) / 1e6
  times = {"nltk": [], "ours": []}
  for _ in range(rounds):
    theirs = punkt.PunktSentenceTokenizer(parameters)
    ours = Segmenter(parameters)
    seconds, expected = seconds_of(theirs.tokenize, texts)
    times["nltk"].append(seconds)
    seconds, found = seconds_of(ours.sentences, texts)
    times["ours"].append(seconds)
    if found != expected:
      sys.exit("the sentences are not NLTK's")
  nltk, ours = (statistics.median(times[name]) for name in ("nltk", "ours"))
  print("%.1f MB, %d sentences, the same by both: NLTK %.2f MB/s, ours %.2f "
        "MB/s a core (%.2f x, %d rounds)"
        % (megabytes, sum(map(len, found)), megabytes / nltk,
           megabytes / ours, nltk / ours, rounds))


def enlarge(texts, megabytes, path):
  """Writes so many MB: chapters, one document a line, with altered words."""
  chance = random.Random(1)
  written = 0
  with open(path, "w", encoding="utf-8") as out:
    while written < 1e6 * megabytes:
      for text in texts:
        # Some words get letters that they have nowhere else.
        text = re.sub(r"\b[a-z]{5,}\b", lambda match: (
            match.group() if chance.random() < 0.9
            else match.group() + chance.choice("aeiou")), text)
        for start in range(0, len(text), 5000):
          document = text[start:start + 5000].strip()
          written += out.write(document + "\n")
          if written >= 1e6 * megabytes:
            return


def measure(what, megabytes, arguments):
  """Runs a program of data/ and prints its speed and peak memory."""
  start = time.time()
  seconds, memory = subprocess.check_output(
      [sys.executable, "-c", _MEASURED] + arguments, cwd=ROOT).split()
  print("%6.1f MB: %s %.1f MB/s a core, %.1f MB/s on the clock, start and "
        "all included, %.0f MB of memory"
        % (megabytes, what, megabytes / float(seconds),
           megabytes / (time.time() - start), int(memory) / 1024))


def programs(texts, megabytes, folder):
  """Runs both programs on a text of some size."""
  source = os.path.join(folder, "text.txt")
  enlarge(texts, megabytes, source)
  size = os.path.getsize(source) / 1e6
  segmented = os.path.join(folder, "text.segmented.nltk.txt")
  measure("segment.py", size, ["data/segment.py", "--input", source,
                               "--output", segmented, "--num_workers", "1"])
  measure("shard.py, 256 shards,", size,
          ["data/shard.py", "--input", segmented, "--output_dir", folder,
           "--test_fraction", "0.05", "--num_training_shards", "256"])


def main():
  """Command line."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("texts", nargs="+", help="UTF-8 text files")
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument("--megabytes", type=float, nargs="*", default=[10, 100])
  options = parser.parse_args()
  model, _ = punkt_model.published()
  if not model:
    sys.exit("NLTK's English Punkt model is not installed: see NLTK_DATA")
  texts = []
  for path in options.texts:
    with open(path, encoding="utf-8-sig") as stream:
      texts.append(" ".join(stream.read().split()))
  compare(texts, punkt_model.parameters_of(model), options.rounds)
  for megabytes in options.megabytes:
    with tempfile.TemporaryDirectory() as folder:
      programs(texts, megabytes, folder)


if __name__ == "__main__":
  main()
