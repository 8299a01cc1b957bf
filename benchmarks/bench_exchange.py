"""Share of a training step that ranks wait for the exchange of gradients.

  mpirun -np 2 python benchmarks/bench_exchange.py --bert_config CONFIG
  horovodrun -np 2 --gloo python benchmarks/bench_exchange.py ...

Two updates of the same model take turns, one that adds up the gradients of all
ranks and one that does not; both begin together on all ranks. The share is
1 - time without / time with. For comparison the same gradients are exchanged
with nothing else to do: what of that time is not in the share is hidden behind
the backward pass. Also prints the bytes of a step for BERT-base and -large.
"""

import argparse
import os
import pathlib
import statistics
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

# pylint: disable=wrong-import-position
from utils import stack
import numpy as np
import tensorflow.compat.v1 as tf

import modeling
import optimization
import run_pretraining
from utils import replica
from utils import session

CONFIGS = pathlib.Path(__file__).resolve().parent.parent / "scripts/configs"


def batch(config, size, length, predictions):
  """Returns constant features of random ids, [size, ...]."""
  random = np.random.RandomState(replica.rank())
  positions = np.sort([random.choice(np.arange(1, length), predictions, False)
                       for _ in range(size)])
  ids = random.randint(5, config.vocab_size, [size, length])
  return {name: tf.constant(value, tf.int32) for name, value in dict(
      input_ids=ids, input_mask=np.ones_like(ids),
      segment_ids=ids * 0, masked_lm_positions=positions,
      masked_lm_ids=np.take_along_axis(ids, positions, 1),
      next_sentence_labels=random.randint(0, 2, [size, 1])).items()}


def loss_of(config, features, k):
  """Returns the loss function of an update with k micro-batches."""
  def build(number):
    options = modeling.ModelOptions(dropout_key=modeling.DropoutKey(
        1, tf.train.get_or_create_global_step(), number))
    micro = dict(features, masked_lm_weights=tf.ones_like(
        features["masked_lm_ids"], tf.float32))
    mlm, nsp = run_pretraining.outputs_of(micro, config, True, options)
    return (tf.reduce_mean(mlm.losses) + tf.reduce_mean(nsp.losses)) / k, {}
  return build


def build(config, options):
  """Returns {name: operation} of what is timed."""
  features = batch(config, options.batch, options.length, options.predictions)
  work = {}
  for name, exchange in (("with", replica.exchange(options.allreduce_fp16)),
                         ("without", None)):
    with tf.variable_scope("", reuse=tf.AUTO_REUSE):
      work[name] = optimization.build_update(
          loss_of(config, features, options.accumulation), 1e-5, 1000, 10,
          num_accumulation_steps=options.accumulation,
          exchange=exchange).train_op
  # No constants, and their values are asked for: the framework leaves out the
  # exchange of what it can compute beforehand, or of what nobody reads.
  summed, _ = replica.exchange(options.allreduce_fp16)(
      [var.value() for var in tf.trainable_variables()], tf.zeros([2]))
  work["exchange alone"] = tf.add_n([tf.reshape(grad, [-1])[0]
                                     for grad in summed])
  return work


def seconds_of(run, operation, steps):
  """Returns the seconds a step, begun together on all ranks."""
  replica.gather(None)
  start = time.time()
  for _ in range(steps):
    run(operation)
  return (time.time() - start) / steps


def bytes_of(path):
  """Returns the bytes of one rank's float32 gradients for a config."""
  config = modeling.BertConfig.from_json_file(str(path))
  with tf.Graph().as_default():
    loss_of(config, batch(config, 1, 8, 2), 1)(tf.constant(0))
    return sum(4 * v.shape.num_elements() for v in tf.trainable_variables())


def main():
  parser = argparse.ArgumentParser(
      description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
  parser.add_argument("--bert_config", default=str(CONFIGS / "bert_base.json"))
  parser.add_argument("--layers", type=int, help="instead of the config's")
  parser.add_argument("--batch", type=int, default=8)
  parser.add_argument("--length", type=int, default=128)
  parser.add_argument("--predictions", type=int, default=20)
  parser.add_argument("--accumulation", type=int, default=1)
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument("--steps", type=int, default=2)
  parser.add_argument("--allreduce_fp16", action="store_true")
  options = parser.parse_args()
  stack.configure()
  replica.start(True)
  if replica.size() < 2:
    sys.exit("start it as at least two ranks: see the first lines of this file")
  config = modeling.BertConfig.from_json_file(options.bert_config)
  if options.layers:
    config.num_hidden_layers = options.layers
  session.keep_freed_memory()
  work = build(config, options)
  size = sum(4 * v.shape.num_elements() for v in tf.trainable_variables())
  threads = replica.thread_count()
  times = {name: [] for name in work}
  with tf.Session(config=tf.ConfigProto(
      intra_op_parallelism_threads=threads,
      inter_op_parallelism_threads=threads)) as running:
    running.run(tf.global_variables_initializer())
    for name, operation in work.items():
      running.run(operation)
    for _ in range(options.rounds):
      for name, operation in work.items():
        times[name].append(seconds_of(running.run, operation, options.steps))
  if replica.is_chief():
    report(times, size, options, threads)


def report(times, size, options, threads):
  """Prints the medians and what follows from them."""
  medians = {name: statistics.median(values) for name, values in times.items()}
  print("%s, %d ranks, %d threads each, batch %d x %d x %d micro-batches, "
        "%.0f MB of gradients%s" % (
            stack.NAME, replica.size(), threads, options.batch, options.length,
            options.accumulation, size / 1e6,
            " as float16" if options.allreduce_fp16 else ""))
  for name, values in times.items():
    print("%-15s median %.3f s a step (%.3f to %.3f)" % (
        name, medians[name], min(values), max(values)))
  waiting = medians["with"] - medians["without"]
  print("waiting for the exchange: %.1f %% of a step; %.0f %% of the exchange "
        "is hidden behind the backward pass" % (
            100 * waiting / medians["with"],
            100 * max(0, 1 - waiting / medians["exchange alone"])))
  for name in ("base", "large"):
    print("BERT-%s: %.0f MB of gradients a step and rank" % (
        name, bytes_of(CONFIGS / ("bert_%s.json" % name)) / 1e6))


if __name__ == "__main__":
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
  main()
