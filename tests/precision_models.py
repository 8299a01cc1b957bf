"""Training steps of the real heads, for tests of precision and XLA."""

from typing import Any
from typing import NamedTuple

import numpy as np
import tensorflow.compat.v1 as tf

import modeling
import optimization
import run_pretraining
import run_squad

LARGE = dict(vocab_size=30522, hidden_size=1024, num_hidden_layers=24,
             num_attention_heads=16, intermediate_size=4096, type_vocab_size=2)
TINY = dict(vocab_size=50, hidden_size=16, num_hidden_layers=1,
            num_attention_heads=2, intermediate_size=32, type_vocab_size=2,
            max_position_embeddings=16)


class Step(NamedTuple):
  """A training step.

  Attributes:
    loss: float32 scalar tensor.
    grads: list of float32 tensors, gradients of the scaled loss.
    train_op: operation of one step of clipped gradient descent.
    features: dict of what it trains on, to be fed with something else.
  """
  loss: Any
  grads: Any
  train_op: Any
  features: Any


def features_of(task, config, batch, length, predictions, micro_batches):
  """Returns a dict of random features of "pretraining" or "squad"."""
  rng = np.random.RandomState(0)
  leading = [batch] if micro_batches == 1 else [micro_batches, batch]

  def below(bound, *shape):
    value = rng.randint(0, bound, leading + list(shape)).astype(np.int32)
    # A constant would be folded away with half of the forward pass.
    return tf.placeholder_with_default(value, value.shape)

  # The first half of each sequence is tokens, a part of the other padding.
  half = length // 2
  mask = np.arange(length) < half + rng.randint(0, half + 1, leading + [1])
  features = dict(
      input_ids=below(config.vocab_size, length),
      input_mask=tf.placeholder_with_default(mask.astype(np.int32),
                                             mask.shape),
      segment_ids=below(2, length))
  if task == "squad":
    return dict(features, start_positions=below(half),
                end_positions=below(half))
  return dict(
      features, masked_lm_positions=below(half, predictions),
      masked_lm_ids=below(config.vocab_size, predictions),
      masked_lm_weights=tf.cast(below(2, predictions), tf.float32),
      next_sentence_labels=below(2, 1))


def loss_sum(task, config, features, options):
  """Returns the sum of a batch's losses, a float32 scalar."""
  if task == "squad":
    return run_squad.span_loss_sum(
        *run_squad.logits_of(features, config, True, options),
        features=features)
  return tf.add_n([
      run_pretraining.weighted_sum(outputs)
      for outputs in run_pretraining.outputs_of(features, config, True,
                                                options)])


def build_step(task, config, batch=2, length=10, predictions=2,
               micro_batches=1, **options):
  """Builds a training step in the default graph, as a GPU or XLA runs it.

  Padding is removed, and no kernel of fused_ops is taken.

  Args:
    task: "pretraining" or "squad".
    config: modeling.BertConfig.
    batch: sequences of a micro-batch.
    length: word pieces of a sequence.
    predictions: masked positions of a sequence.
    micro_batches: above 1, all but the last run in a loop.
    **options: others of modeling.ModelOptions.
  """
  features = features_of(task, config, batch, length, predictions,
                         micro_batches)
  step = tf.train.get_or_create_global_step()
  scale = tf.placeholder_with_default(1024.0, [])
  now = tf.identity(step)
  layout = modeling.ModelOptions(**dict(dict(remove_padding=True), **options))

  def loss_of(number):
    micro = features if micro_batches == 1 else {
        name: value[number] for name, value in features.items()}
    key = modeling.DropoutKey(seed=1, step=now, micro_batch=number)
    return loss_sum(task, config, micro, layout._replace(
        dropout_key=key)) / batch, {}

  variables, window = optimization.window_gradients(
      loss_of, micro_batches, scale)
  norm = tf.sqrt(tf.add_n([tf.nn.l2_loss(grad) for grad in window.grads]))
  factor = 0.5 / (norm + scale)
  updates = [tf.assign_sub(variable, factor * grad).op
             for variable, grad in zip(variables, window.grads)]
  with tf.control_dependencies(updates):
    train_op = tf.assign_add(step, 1).op
  return Step(window.loss, window.grads, train_op, features)
