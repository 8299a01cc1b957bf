"""Times the preparation of text, stage by stage, and its memory.

    python benchmarks/bench_pipeline.py BOOK... --vocab VOCAB
        [--megabytes 10 100 1000] [--num_workers 1] [--lengths 128:20]

Makes folders of books of each size by repeating BOOK with altered words (each
copy spells a part of its words in a way of its own, so the vocabulary grows as
that of a real corpus does), then runs the programs of the stages one after the
other, each as a process of its own. Prints for each the seconds, MB of cleaned
text a second and the peak memory of its largest process; then, from the last
size, the time that the 25 GB of Wikipedia and books would take on many cores if
each did as much as one does here: an extrapolation.
"""

import argparse
import collections
import glob
import os
import random
import re
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

CORPUS_MB = 25000
CORES = (40, 128)

Stage = collections.namedtuple("Stage", "name seconds peak_mb output_mb")


def write_books(books, megabytes, folder):
  """Writes copies of `books` until `megabytes` are in `folder`."""
  chance = random.Random(megabytes)
  texts = []
  for book in books:
    with open(book, encoding="utf-8-sig") as stream:
      texts.append(stream.read())
  written = copy = 0
  while written < megabytes * 1e6:
    for number, text in enumerate(texts):
      if copy:
        # All words that begin so, in one book: a name that is its own.
        start = "".join(chance.choice("abcdefghijklmnoprstw") for _ in "ab")
        text = re.sub(r"\b%s(\w*)" % start, "%s%dx\\1" % (start, copy), text)
      path = os.path.join(folder, "%05d-%03d.txt" % (copy, number))
      with open(path, "w", encoding="utf-8") as stream:
        written += stream.write(text)
      if written >= megabytes * 1e6:
        break
    copy += 1


def size_of(pattern):
  return sum(map(os.path.getsize, glob.glob(pattern))) / 1e6


def run(name, program, flags, output):
  """Runs a program of the suite; returns its Stage."""
  start = time.time()
  process = subprocess.Popen(
      [sys.executable, os.path.join(ROOT, program)] + flags,
      stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
  errors = process.stderr.read()
  _, status, usage = os.wait4(process.pid, 0)
  process.returncode = status
  if status:
    sys.exit("%s failed:\n%s" % (name, errors.decode()))
  return Stage(name, time.time() - start, usage.ru_maxrss / 1024.0,
               size_of(output))


def measure(options, megabytes, folder):
  """Returns the Stages of one size."""
  raw, work = (os.path.join(folder, name) for name in ("books", "corpus"))
  os.mkdir(raw)
  write_books(options.books, megabytes, raw)
  workers = "--num_workers=%d" % options.num_workers
  single = os.path.join(work, "single", "b.txt")
  shards = max(2, megabytes // 10)
  stages = [
      run("clean", "data/clean_text.py", [
          "--kind=books", "--input=" + raw, "--output_dir=" + work + "/clean",
          "--name=b", workers], work + "/clean/*.txt"),
      run("segment", "data/segment.py", [
          "--input=" + work + "/clean/b-*.txt", "--output=" + single, workers],
          single),
      run("shard", "data/shard.py", [
          "--input=" + single, "--output_dir=" + work + "/shards", "--name=b",
          "--num_training_shards=%d" % shards, "--test_fraction=0.01"],
          work + "/shards/*.txt")]
  for length in options.lengths:
    seq, predictions = length.split(":")
    records = work + "/records" + seq
    os.mkdir(records)
    stages.append(run("records " + seq, "create_pretraining_data.py", [
        "--input_file=" + work + "/shards/*.txt", "--output_file=" + records,
        "--vocab_file=" + os.path.abspath(options.vocab),
        "--max_seq_length=" + seq, "--max_predictions_per_seq=" + predictions,
        "--dupe_factor=%d" % options.dupe_factor, workers],
                      records + "/*.tfrecord"))
    stages.append(run("check " + seq, "data/check_records.py", [
        records, "--output_dir=" + records, workers],
                      records + "/*.tfrecord"))
  return stages


def report(megabytes, stages):
  """Prints the Stages of one size."""
  text = stages[0].output_mb
  print("\n%d MB of books, %.0f MB of text" % (megabytes, text))
  print("%-12s %9s %9s %9s %10s" % ("stage", "seconds", "MB/s", "peak MB",
                                    "output MB"))
  for stage in stages:
    print("%-12s %9.1f %9.2f %9.0f %10.0f" % (
        stage.name, stage.seconds, text / stage.seconds, stage.peak_mb,
        stage.output_mb))
  total = sum(stage.seconds for stage in stages)
  print("%-12s %9.1f %9.2f" % ("all", total, text / total), flush=True)
  return text / total


def main():
  """Command line."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("books", nargs="+", help="UTF-8 text files")
  parser.add_argument("--vocab", required=True)
  parser.add_argument("--megabytes", type=int, nargs="+",
                      default=[10, 100, 1000])
  parser.add_argument("--num_workers", type=int, default=1)
  parser.add_argument("--dupe_factor", type=int, default=5)
  parser.add_argument("--lengths", nargs="+", default=["128:20", "512:80"])
  options = parser.parse_args()
  for megabytes in options.megabytes:
    with tempfile.TemporaryDirectory() as folder:
      rate = report(megabytes, measure(options, megabytes, folder))
  print("\nExtrapolated to %d GB, if each core did as much as one here:"
        % (CORPUS_MB // 1000))
  for cores in CORES:
    print("  %3d cores: %.0f minutes" % (
        cores, CORPUS_MB / (rate / options.num_workers) / cores / 60))


if __name__ == "__main__":
  main()
