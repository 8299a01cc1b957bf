"""Google's own code (`bert-tensorflow` 1.0.4), as its users run it."""

import bert_oracle
import tensorflow.compat.v1 as tf

from benchmarks.peers import tf_graph


def _model_fn(runner, sizes):
  """Returns the model function of Google's "run_squad" or "run_pretraining"."""
  module = bert_oracle.google_runner(runner)
  config = bert_oracle.google_modeling().BertConfig.from_dict(sizes.config())
  return module.model_fn_builder(
      config, init_checkpoint=None, learning_rate=5e-5, num_train_steps=1000,
      num_warmup_steps=100, use_tpu=False, use_one_hot_embeddings=False)


def build(section, sizes, threads):
  """Returns the `tf_graph.Graph` of a section's work."""
  tf.logging.set_verbosity(tf.logging.ERROR)
  tf.disable_v2_behavior()
  predicts = section == "predict"
  mode = (tf.estimator.ModeKeys.PREDICT if predicts
          else tf.estimator.ModeKeys.TRAIN)
  model_fn = _model_fn(
      "run_pretraining" if section == "pretrain" else "run_squad", sizes)

  def make(features):
    spec = model_fn(features, None, mode, {})
    fetches = spec.predictions if predicts else dict(loss=spec.loss,
                                                     train_op=spec.train_op)
    return fetches, tf_graph.session_config(threads)

  shapes = (tf_graph.pretraining_shapes(sizes) if section == "pretrain" else
            tf_graph.squad_shapes(sizes.batch, sizes.length, not predicts))
  return tf_graph.Graph(shapes, make)
