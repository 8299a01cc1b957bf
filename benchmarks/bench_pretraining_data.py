"""Times create_pretraining_data.py against Google's script, on one core.

    python benchmarks/bench_pretraining_data.py BOOK... --vocab VOCAB
        [--rounds 3] [--dupe_factor 5] [--max_seq_length 128] [--cores_alone]

Splits the books into one sentence a line, a chapter a document, then runs
Google's script (PyPI bert-tensorflow) and this one in turn, each in a process
of its own. Prints instances, CPU seconds of the work alone (imports left
out, which favours Google's: TensorFlow takes seconds) and of the whole
process, their medians and the ratios. Then the same text in eight files, by
the clock: one process, two, and two commands of one process each at once, both
of which do all of the work. The last tells how much two cores of this machine
do for programs that share nothing: on a virtual machine often less than twice.
"""

import argparse
import collections
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

# pylint: disable=wrong-import-position
from utils import records

ONE, TWO, APART = "one process", "two processes", "two alone at once"

# Both print the CPU seconds of their main function on the last line.
GOOGLE = """
import sys, time
from absl import flags
import bert.create_pretraining_data as script
flags.FLAGS(sys.argv)
start = time.process_time()
script.main(None)
print(time.process_time() - start)
"""
OURS = """
import sys, time
from absl import flags
import create_pretraining_data as script
script.define_flags()
flags.FLAGS(sys.argv)
start = time.process_time()
script.main(None)
print(time.process_time() - start)
"""


def write_sentences(books, path):
  """Writes `books` to `path`: a sentence a line, blank lines in between."""
  with open(path, "w", encoding="utf-8") as out:
    for book in books:
      with open(book, encoding="utf-8") as stream:
        chapters = re.split(r"\n(?:\s*\n){3,}", stream.read())
      for chapter in chapters:
        text = " ".join(chapter.split())
        if text:
          out.write(re.sub(r"([.!?][\"\u201d\u2019]?) ", r"\1\n", text))
          out.write("\n\n")


def run(code, arguments):
  """Returns (CPU seconds of the work, CPU seconds of the process)."""
  before = resource.getrusage(resource.RUSAGE_CHILDREN)
  output = subprocess.check_output(
      [sys.executable, "-c", code] + arguments, cwd=ROOT,
      stderr=subprocess.DEVNULL)
  after = resource.getrusage(resource.RUSAGE_CHILDREN)
  whole = (after.ru_utime + after.ru_stime
           - before.ru_utime - before.ru_stime)
  return float(output.decode().split()[-1]), whole


def flags_of(options, source, output):
  """Returns the flags that both scripts take."""
  return ["--input_file=" + source, "--output_file=" + output,
          "--vocab_file=" + os.path.abspath(options.vocab),
          "--dupe_factor=%d" % options.dupe_factor,
          "--max_seq_length=%d" % options.max_seq_length,
          "--do_lower_case=true"]


def measure(options, text, folder):
  """Returns {name: (instances, [work seconds], [process seconds])}."""
  times = {"Google": ([], []), "this": ([], [])}
  counts = {}
  for _ in range(options.rounds):
    for name, code, extra in (
        ("Google", GOOGLE, []), ("this", OURS, ["--num_workers=1"])):
      output = os.path.join(folder, name + ".tfrecord")
      work, whole = run(code, flags_of(options, text, output) + extra)
      times[name][0].append(work)
      times[name][1].append(whole)
      counts[name] = records.count_records(output)
  return {name: (counts[name],) + times[name] for name in times}


def measure_cores(options, text, folder):
  """Returns {way: [seconds by the clock]} for the text in eight files."""
  with open(text, encoding="utf-8") as stream:
    documents = stream.read().strip().split("\n\n")
  for part in range(8):
    with open(os.path.join(folder, "part%d.txt" % part), "w",
              encoding="utf-8") as out:
      out.write("\n\n".join(documents[part::8]) + "\n\n")
  seconds = collections.defaultdict(list)
  for turn in range(options.rounds):
    for label, workers, commands in ((ONE, 1, 1), (TWO, 2, 1), (APART, 1, 2)):
      running = []
      start = time.time()
      for command in range(commands):
        output = os.path.join(folder, "%d-%s-%d" % (turn, label, command))
        os.mkdir(output)
        running.append(subprocess.Popen(
            [sys.executable, os.path.join(ROOT, "create_pretraining_data.py"),
             "--num_workers=%d" % workers]
            + flags_of(options, os.path.join(folder, "part*.txt"), output),
            stderr=subprocess.DEVNULL))
      if any(process.wait() for process in running):
        sys.exit("create_pretraining_data.py failed")
      seconds[label].append(time.time() - start)
  return seconds


def median_ratio(seconds, times):
  """Returns how much more a second `times` do than one process does."""
  return statistics.median(
      one / other for one, other in zip(seconds[ONE], times))


def main():
  """Command line."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("books", nargs="+", help="UTF-8 text files")
  parser.add_argument("--vocab", required=True, help="uncased vocabulary")
  parser.add_argument("--rounds", type=int, default=3)
  parser.add_argument("--cores_alone", action="store_true",
                      help="leave Google's script out")
  parser.add_argument("--dupe_factor", type=int, default=5)
  parser.add_argument("--max_seq_length", type=int, default=128)
  options = parser.parse_args()
  with tempfile.TemporaryDirectory() as folder:
    text = os.path.join(folder, "text.txt")
    write_sentences(options.books, text)
    print("%.2f MB of text, %d copies, length %d" % (
        os.path.getsize(text) / 1e6, options.dupe_factor,
        options.max_seq_length))
    results = {}
    if not options.cores_alone:
      results = measure(options, text, folder)
    seconds = measure_cores(options, text, folder)
  for name, (count, work, whole) in results.items():
    print("%-7s %6d instances, work %s s (%.0f instances/s), process %s s" % (
        name, count, " ".join("%.2f" % s for s in work),
        count / statistics.median(work), " ".join("%.2f" % s for s in whole)))
  for label, place in (("work alone", 1), ("whole process", 2)):
    if results:
      print("%-13s %.1f times as fast" % (
          label, statistics.median(results["Google"][place])
          / statistics.median(results["this"][place])))
  for label, times in seconds.items():
    print("%-20s %s s" % (label, " ".join("%.2f" % t for t in times)))
  print("two processes %.2f times as fast as one; two cores do %.2f times as "
        "much as one" % (median_ratio(seconds, seconds[TWO]),
                         2 * median_ratio(seconds, seconds[APART])))


if __name__ == "__main__":
  main()
