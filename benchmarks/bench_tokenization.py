"""Times WordPiece against Hugging Face's Rust tokenizer, on one core.

    python benchmarks/bench_tokenization.py TEXT... --vocab VOCAB [--rounds 5]

For tokens and for ids, given line by line and file by file, each round runs
BertWordPieceTokenizer (one thread), then this tokenizer cold (new, its cache
empty) and warm (the same again). Prints the medians in MB/s and the ratios.
CPU seconds are counted, so that a busy machine does not tilt the balance.
"""

import argparse
import collections
import os
import statistics
import sys
import time

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["RAYON_NUM_THREADS"] = "1"
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

# pylint: disable=wrong-import-position
import tokenization
import tokenizers


def seconds_of(function, texts):
  """Returns the CPU seconds of calling `function` for each text."""
  start = time.process_time()
  for text in texts:
    function(text)
  return time.process_time() - start


def one_round(rust, vocab_file, kind, texts):
  """Returns CPU seconds {name: seconds} for one kind of output.

  Args:
    rust: BertWordPieceTokenizer.
    vocab_file: path.
    kind: "tokens" or "ids".
    texts: list of str.
  """
  def rust_call(text):
    return getattr(rust.encode(text, add_special_tokens=False), kind)

  ours = tokenization.FullTokenizer(vocab_file)
  call = ours.tokenize if kind == "tokens" else ours.tokenize_to_ids
  return collections.OrderedDict([
      ("rust", seconds_of(rust_call, texts)),
      ("cold", seconds_of(call, texts)),
      ("warm", seconds_of(call, texts))])


def report(label, megabytes, rounds):
  """Prints one line of medians and ratios."""
  median = {name: statistics.median(r[name] for r in rounds)
            for name in rounds[0]}
  print("%-20s Rust %5.2f MB/s  cold %5.2f (%.2f x)  warm %5.2f (%.2f x)" % (
      label, megabytes / median["rust"],
      megabytes / median["cold"], median["rust"] / median["cold"],
      megabytes / median["warm"], median["rust"] / median["warm"]))


def main():
  """Command line."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("texts", nargs="+", help="UTF-8 text files")
  parser.add_argument("--vocab", required=True, help="uncased vocabulary")
  parser.add_argument("--rounds", type=int, default=5)
  options = parser.parse_args()
  books = []
  for path in options.texts:
    with open(path, encoding="utf-8") as stream:
      books.append(stream.read())
  megabytes = sum(len(book.encode("utf-8")) for book in books) / 1e6
  units = [("line by line", [line for b in books for line in b.split("\n")]),
           ("file by file", books)]
  rust = tokenizers.BertWordPieceTokenizer(options.vocab, lowercase=True)
  print("%.1f MB in %d files, %d rounds, medians of CPU seconds"
        % (megabytes, len(books), options.rounds))
  for unit, texts in units:
    for kind in ("tokens", "ids"):
      rounds = [one_round(rust, options.vocab, kind, texts)
                for _ in range(options.rounds)]
      report("%s, %s" % (kind, unit), megabytes, rounds)


if __name__ == "__main__":
  main()
