"""What the pre-training benchmark computes on, and with what it compares.

  python benchmarks/pretraining_work.py records --bert_config_file FILE \
      --length N --sequences N --output FILE
  python benchmarks/pretraining_work.py products --bert_config_file FILE \
      --length N --batch N [--precision fp16]

`records` writes TFRecords of full, made-up sequences. `products` times the
matrix products of the dense layers of a step, forward and backward, by
themselves on this device, and prints {"products_seconds", "products_flops"}.
scripts/benchmark_pretraining.sh calls both; they take seconds.
"""

import argparse
import json
import pathlib
import sys

sys.path[:0] = [str(pathlib.Path(__file__).resolve().parent.parent)]

# pylint: disable=wrong-import-position
# Before TensorFlow, which it keeps quiet.
from utils import stack
import tensorflow.compat.v1 as tf

from benchmarks.peers import tf_graph
from benchmarks.peers import work
import modeling
from utils import errors
from utils import files
from utils import precision
from utils import records
from utils.errors import UserError

_DTYPES = {"fp32": tf.float32, "fp16": tf.float16, "bf16": tf.bfloat16}


def sizes_of(path, batch, length):
  """Returns the `work.Sizes` of a model's configuration file."""
  config = modeling.BertConfig.from_json_file(
      files.require_file(path, "bert_config_file"))
  if config.intermediate_size != 4 * config.hidden_size:
    raise UserError("--bert_config_file: %s has an intermediate_size that is "
                    "not 4 x hidden_size: its products are not known" % path)
  if length > config.max_position_embeddings:
    raise UserError("--length=%d is over the model's %d positions"
                    % (length, config.max_position_embeddings))
  return work.Sizes(layers=config.num_hidden_layers, hidden=config.hidden_size,
                    vocab=config.vocab_size, batch=batch, length=length)


def write_records(sizes, path):
  """Writes a batch of full sequences to a TFRecord file."""
  columns = {name: values.tolist()
             for name, values in work.pretraining_batch(sizes, 1).items()}
  with files.writing(path, "output"):
    records.write_records(path, (
        records.encode_features({
            name: values[i] for name, values in columns.items()})
        for i in range(sizes.batch)))


def products(sizes, name):
  """Returns the dict to print; see above.

  Args:
    sizes: `work.Sizes`.
    name: "fp32", "fp16" or "bf16"; what this hardware lacks runs in fp32.
  """
  computes = precision.settle(name == "fp16", name == "bf16", False).computes
  layers = work.products_of_pretraining(sizes)
  return dict(
      products_seconds=tf_graph.products_seconds(
          layers, _DTYPES[computes], tf.ConfigProto()),
      products_flops=work.flops_of(layers))


def _run(options):
  count = options.sequences if options.what == "records" else options.batch
  sizes = sizes_of(options.bert_config_file, count, options.length)
  if options.what == "records":
    write_records(sizes, options.output)
    return
  stack.configure()
  print(json.dumps(products(sizes, options.precision)))


def _count(text):
  number = int(text)
  if number < 1:
    raise argparse.ArgumentTypeError("%s is not above 0" % text)
  return number


def main(argv=None):
  """Command line."""
  parser = argparse.ArgumentParser(
      description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  commands = parser.add_subparsers(dest="what")
  commands.required = True
  for what in ("records", "products"):
    command = commands.add_parser(what)
    command.add_argument("--bert_config_file", required=True)
    command.add_argument("--length", type=_count, required=True)
    if what == "records":
      command.add_argument("--sequences", type=_count, required=True)
      command.add_argument("--output", required=True)
    else:
      command.add_argument("--batch", type=_count, required=True)
      command.add_argument("--precision", choices=sorted(_DTYPES),
                           default="fp32")
  errors.guard(_run, parser.parse_args(argv))


if __name__ == "__main__":
  main()
