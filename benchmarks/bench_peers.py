"""This suite beside Google's code and PyTorch: time, memory, what is reached.

  python benchmarks/bench_peers.py --features FILE
      [--train_file JSON --predict_file JSON --vocab_file FILE]
      [--only step,predict,pretrain,memory,fit] [--rounds 5] [--profile]

Sections:
  step      SQuAD fine-tuning on real features
  predict   SQuAD prediction on real features, sorted by length
  pretrain  pre-training on full sequences; its matrix products by themselves
  memory    peak memory of fine-tuning, a fresh process each
  fit       step time over batch and length: a + b tokens + c sum of length^2

Each contender has a process of its own, with the same number of threads. In
each round they run in turn, one at a time, on the same batches: one step that
is not timed, then --steps that are. The table has the medians over the rounds,
but for a pair of which one groups its batches by length, so that its rounds
differ in work: there all sentences over the seconds of all rounds. --output has
every single time, beside it the table and what the processes said.

FILE holds the features of both SQuAD files. It is made, by this suite's own
code, where the other three are given, and read where they are not.

The contenders' environments: `bash scripts/setup.sh --stack tf1 --with_tests`,
the same for tf2, and `bash benchmarks/peers.sh`. Those that cannot run here
are left out with a line. BERT-base on two cores takes about 20 minutes for
`step`, ten each for the others; `--layers 2 --rounds 2` shows it in a few.
"""

import argparse
import json
import os
import pathlib
import sys

sys.path[:0] = [str(pathlib.Path(__file__).resolve().parent.parent)]

# pylint: disable=wrong-import-position
from benchmarks.peers import contenders
from benchmarks.peers import processes
from benchmarks.peers import sections
from benchmarks.peers import work
import tokenization
from utils import benchmarks
from utils import errors
from utils import files
from utils import squad_data
from utils.errors import UserError

KINDS = ("matrix products", "attention", "element-wise", "optimizer", "input")
PRETRAINING_LENGTH = 128


def _positive(text):
  number = int(text)
  if number < 1:
    raise argparse.ArgumentTypeError("%s is not above 0" % text)
  return number


def _names(known):
  def parse(text):
    names = text.split(",")
    for name in names:
      if name not in known:
        raise argparse.ArgumentTypeError(
            "no %r: known are %s" % (name, ", ".join(known)))
    return names
  return parse


def _cpus(text):
  cpus = [int(part) for part in text.split(",")]
  missing = set(cpus) - os.sched_getaffinity(0)
  if missing:
    raise argparse.ArgumentTypeError("there is no CPU %d" % min(missing))
  return cpus


def _parser():
  parser = argparse.ArgumentParser(
      description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  add = parser.add_argument
  add("--features", default="results/bench_peers/features.npz",
      help="both files' features, .npz (default %(default)s)")
  for name in ("train_file", "predict_file", "vocab_file"):
    add("--" + name)
  add("--output", default="results/bench_peers/rounds.jsonl",
      help="raw rounds (default %(default)s); .md beside it is the table")
  add("--only", type=_names(list(sections.MEASURES)), help="sections, commas "
      "between", default=list(sections.MEASURES))
  add("--contenders", type=_names(list(contenders.CONTENDERS)),
      help="names, commas between: " + ", ".join(contenders.CONTENDERS))
  for name, default, text in (
      ("rounds", 5, "timed rounds"), ("steps", 2, "steps a round"),
      ("predict_steps", 6, "batches a round of `predict`"),
      ("memory_steps", 5, "steps of `memory`"), ("threads", 2, "of each"),
      ("layers", 12, "of the model"), ("hidden", 768, "its width"),
      ("batch", 8, "sequences"), ("length", 384, "positions (SQuAD)"),
      ("stride", 128, "doc_stride (SQuAD)"),
      ("most_tokens", 16384, "of a step of `fit`")):
    add("--" + name, type=_positive, default=default,
        help=text + " (default %(default)s)")
  add("--cpus", type=_cpus, default=[], help="pins all contenders: 0,1")
  add("--profile", action="store_true",
      help="also shares of operations, TensorFlow's contenders")
  for environment, option in processes.OPTIONS.items():
    add("--" + option, help="interpreter of %s" % environment)
  return parser


def _make_features(options):
  """Makes --features from the two SQuAD files."""
  vocab = tokenization.load_vocab(
      files.require_file(options.vocab_file, "vocab_file"))
  for token in ("[CLS]", "[SEP]", "[UNK]"):
    if token not in vocab:
      raise UserError("--vocab_file: %s has no token %s: use the vocabulary of "
                      "the model" % (options.vocab_file, token))
  settings = squad_data.FeatureSettings(
      max_seq_length=options.length, doc_stride=options.stride,
      max_query_length=min(64, options.length // 2), do_lower_case=True,
      vocab_sha256="")
  tokenizer = tokenization.FullTokenizer(options.vocab_file, True)

  def featurized(flag, is_training):
    path = files.require_file(getattr(options, flag), flag)
    return squad_data.load_or_make(
        path, tokenizer, settings, is_training=is_training,
        version_2_with_negative=False, cache_dir=None)[1]

  work.save_features(options.features, featurized("train_file", True),
                     featurized("predict_file", False), len(vocab))


def _features(options):
  """Returns what --features holds, made if it is to be."""
  given = [name for name in ("train_file", "predict_file", "vocab_file")
           if getattr(options, name)]
  if given:
    _make_features(options)
  else:
    files.require_file(options.features, "features")
  parts, vocab_size = work.load_features(options.features)
  length = parts["train"].input_ids.shape[1]
  if length != options.length:
    raise UserError("--length=%d, but --features %s has sequences of %d"
                    % (options.length, options.features, length))
  return parts, vocab_size


def _sizes(options, section, vocab_size):
  return work.Sizes(
      layers=options.layers, hidden=options.hidden, vocab=vocab_size,
      batch=options.batch, length=min(options.length, PRETRAINING_LENGTH)
      if section == "pretrain" else options.length)


def _header(options, parts):
  """Returns {name: text} of what the figures were measured on."""
  return dict(
      benchmarks.machine(), threads=options.threads, layers=options.layers,
      hidden=options.hidden, rounds=options.rounds, **{
          "tokens_" + part: round(float(features.length.mean()), 1)
          for part, features in parts.items()})


def _measure(options, parts, vocab_size, stream, logs):
  """Returns the report as Markdown; writes raw rows to a stream."""
  def record(**row):
    stream.write(json.dumps(row) + "\n")
    stream.flush()

  header = _header(options, parts)
  record(**header)
  rows, profiles = [], []
  for section in options.only:
    sizes = _sizes(options, section, vocab_size)
    bench = sections.Bench(section, options, sizes, record, logs)
    sections.MEASURES[section](bench, options)
    rows += sections.rows_of(bench, sizes)
    profiles += sections.profile_rows(bench, KINDS)
  tables = [", ".join("%s: %s" % pair for pair in header.items()),
            benchmarks.markdown_table(sections.COLUMNS, rows)]
  if profiles:
    tables.append(benchmarks.markdown_table(
        ["Section", "Version"] + list(KINDS), profiles))
  return "\n\n".join(tables) + "\n"


def main():
  """Command line."""
  options = _parser().parse_args()
  parts, vocab_size = _features(options)
  stem = os.path.splitext(options.output)[0]
  logs = files.require_output_dir(stem + "_logs", "output")
  partial = options.output + ".partial"
  with files.writing(options.output, "output"):
    # Rows are kept as they come: hours of a killed run are not lost.
    with open(partial, "w") as stream:
      report = _measure(options, parts, vocab_size, stream, logs)
    os.replace(partial, options.output)
    with files.atomic_write(stem + ".md") as stream:
      stream.write(report)
  print(report, end="")


if __name__ == "__main__":
  errors.guard(main)
