"""This suite: its runners' own model functions, settings and input."""

import itertools
import json
import os
import time

from absl import flags

# Before TensorFlow, which it keeps quiet.
from utils import stack
import tensorflow.compat.v1 as tf

from benchmarks.peers import tf_graph
import modeling
import run_pretraining
import run_squad
from utils import input_pipeline
from utils import order
from utils import squad_task
from utils import stopping
from utils import training
from utils.errors import UserError

_INPUT_BATCHES = 200


def _settings(runner, kind, contender, sizes, folder):
  """Returns a runner's NamedTuple: its flags' defaults, and the contender's."""
  runner.define_flags()
  flags.FLAGS(["bench_peers", "--output_dir=" + folder,
               "--train_batch_size=%d" % sizes.batch,
               "--max_seq_length=%d" % sizes.length] + list(contender.flags))
  values = flags.FLAGS.flag_values_dict()
  return kind(**{name: values[name] for name in kind._fields})


def _config_of(sizes, folder):
  path = os.path.join(folder, "bert_config.json")
  with open(path, "w") as stream:
    json.dump(sizes.config(), stream)
  return modeling.BertConfig.from_json_file(path)


def _prediction(features, params):
  start, end = run_squad.logits_of(
      features, params["bert_config"], False,
      training.inference_options(params))
  return dict(unique_ids=features["unique_ids"], start_logits=start,
              end_logits=end)


class Own(tf_graph.Graph):
  """One of this suite's graphs, and its input."""

  def input_seconds(self, features, sizes):
    """Returns the seconds that the runner's input takes for a batch, alone."""
    source = input_pipeline.Source(lambda: (
        squad_task.batch_of(features, rows, True) for rows in
        order.index_batches(len(features), 1, sizes.batch, 0)))
    with tf.Graph().as_default() as graph:
      iterator = tf.data.make_initializable_iterator(run_squad.input_fn(
          source, sizes.batch, sizes.length, True))
      batch = iterator.get_next()
      with tf.Session(graph=graph, config=self._config) as session:
        session.run(iterator.initializer)
        # What was made ahead does not count.
        for _ in range(2 * input_pipeline.PREFETCH):
          session.run(batch)
        begin = time.perf_counter()
        for _ in range(_INPUT_BATCHES):
          session.run(batch)
        return (time.perf_counter() - begin) / _INPUT_BATCHES


def build(section, contender, sizes, threads, folder):
  """Returns the `Own` graph of a section's work."""
  stack.configure()
  pretrains, predicts = section == "pretrain", section == "predict"
  runner, kind = ((run_pretraining, run_pretraining.PretrainingConfig)
                  if pretrains else (run_squad, run_squad.SquadConfig))
  config = _settings(runner, kind, contender, sizes, folder)
  run = training.Run(config, 1000, 100, stopping.StopRequest(folder))
  estimator = training.estimator(
      config, _config_of(sizes, folder), runner.model_fn, run=run,
      checkpoint=None)
  params = estimator.params
  if contender.bf16 and params["precision"].computes != "bf16":
    raise UserError("this CPU has no bfloat16 products")

  def make(features):
    if predicts:
      fetches = _prediction(features, params)
    else:
      spec = runner.model_fn(features, None, tf.estimator.ModeKeys.TRAIN,
                             params)
      fetches = dict(loss=spec.loss, train_op=spec.train_op)
    settings = estimator.config.session_config
    settings.intra_op_parallelism_threads = threads
    settings.inter_op_parallelism_threads = threads
    return fetches, settings

  if pretrains:
    return Own(tf_graph.pretraining_shapes(sizes), make)
  any_size = section == "fit"
  return Own(tf_graph.squad_shapes(
      None if any_size else sizes.batch, None if any_size else sizes.length,
      not predicts), make)
