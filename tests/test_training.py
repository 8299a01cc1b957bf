"""What a training graph is made of: means over a window, keys of dropout."""

import types

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

import modeling
import optimization
import run_pretraining
from utils import precision
from utils import replica
from utils import session as sessions
from utils import stack
from utils import training

stack.configure()


def params(k):
  return dict(precision=precision.settle(False, False, False), fused_ops=True,
              config=types.SimpleNamespace(num_accumulation_steps=k, seed=5,
                                           remove_padding=True))


def test_parts_are_exact_means_over_the_window():
  """Two micro-batches with sums 1 and 2 of weight 4 in all; 6 of 3."""
  features = {"x": tf.constant([[1.0], [2.0]])}

  def totals_of(micro, options):
    return {"a": tf.reduce_sum(micro["x"]), "b": tf.constant(3.0)}

  loss_of = training.loss_function(params(2), features, totals_of,
                                   {"a": tf.constant(4.0), "b": 3})
  with tf.Session() as session:
    loss, parts = session.run(loss_of(tf.constant(1)))
    assert parts == {"a": 0.5, "b": 1.0} and loss == 1.5
    assert session.run(loss_of(tf.constant(0))[1]["a"]) == 0.25


def test_dropout_is_keyed_by_seed_step_micro_batch_and_rank(monkeypatch):
  monkeypatch.setattr(replica, "rank", lambda: 3)
  seen = []

  def totals_of(micro, options):
    seen.append(options.dropout_key)
    return {"a": tf.reduce_sum(micro["x"])}

  with tf.Graph().as_default(), tf.Session() as session:
    step = tf.train.get_or_create_global_step()
    loss_of = training.loss_function(
        params(2), {"x": tf.constant([[1.0], [2.0]])}, totals_of, {"a": 1})
    number = tf.constant(1)
    loss_of(number)
    session.run(tf.global_variables_initializer())
    session.run(step.assign(17))
    key, = seen
    assert key.seed == 5 and key.rank == 3 and key.micro_batch is number
    assert session.run(key.step) == 17


def test_a_window_without_predictions_is_finite():
  features = {"masked_lm_weights": tf.zeros([2, 4]),
              "next_sentence_labels": tf.zeros([2, 1], tf.int32)}
  weights = run_pretraining.loss_weights(features)
  loss_of = training.loss_function(
      params(1), features, lambda micro, options: {
          "mlm_loss": tf.constant(0.0), "nsp_loss": tf.constant(3.0)}, weights)
  with tf.Session() as session:
    loss, parts = session.run(loss_of(tf.constant(0)))
  assert parts == {"mlm_loss": 0.0, "nsp_loss": 1.5} and loss == 1.5


def test_the_constant_of_the_masked_lm_counts_once_for_all_ranks(monkeypatch):
  features = {"masked_lm_weights": tf.ones([2, 4]),
              "next_sentence_labels": tf.zeros([2, 1], tf.int32)}
  with tf.Session() as session:
    found = []
    for chief in (True, False):
      monkeypatch.setattr(replica, "is_chief", lambda chief=chief: chief)
      found.append(session.run(
          run_pretraining.loss_weights(features)["mlm_loss"]))
  assert found == [np.float32(8 + 1e-5), 8.0]


def test_first_weights_follow_seed_and_name_alone():
  """Whatever else is in the graph, and whichever micro-batch makes them."""
  def made(seed, others):
    with tf.Graph().as_default(), tf.Session() as session:
      for _ in range(others):
        tf.constant(0.0)
      with tf.variable_scope("", custom_getter=training._seeded(seed)):  # pylint: disable=protected-access
        initializer = tf.truncated_normal_initializer(stddev=0.02)
        one, other = [tf.get_variable(name, [50], initializer=initializer)
                      for name in ("one", "other")]
        zeros = tf.get_variable("z", [3], initializer=tf.zeros_initializer())
      tf.set_random_seed(seed)
      session.run(tf.global_variables_initializer())
      return session.run([one, other, zeros])

  one, other, zeros = made(1, 0)
  assert np.array_equal(made(1, 7)[0], one)
  assert not np.array_equal(made(2, 0)[0], one)
  assert not np.array_equal(one, other) and not zeros.any()
  assert 0.01 < one.std() < 0.02 and np.abs(one).max() <= 0.04


def test_update_of_a_loss_function_reports_its_parts():
  features = {"x": tf.constant([[3.0], [5.0]])}
  loss_of = training.loss_function(
      params(2), features, lambda micro, options: {"a": tf.reduce_sum(
          micro["x"]) * tf.get_variable("w", initializer=1.0)}, {"a": 8})
  with tf.variable_scope("reported", reuse=tf.AUTO_REUSE):
    _, window = optimization.window_gradients(loss_of, 2)
  with tf.Session() as session:
    session.run(tf.global_variables_initializer())
    assert session.run([window.loss, window.sums["a"]]) == [1.0, 1.0]


def sums_in_order_of_arrival(session_config):
  """Returns how many an update of a model with a large vocabulary has."""
  config = modeling.BertConfig(
      vocab_size=30522, hidden_size=256, num_hidden_layers=1,
      num_attention_heads=4, intermediate_size=1024,
      max_position_embeddings=512)

  def loss_of(number):
    features = {name: tf.ones([2, length], tf.int32) for name, length in (
        ("input_ids", 32), ("input_mask", 32), ("segment_ids", 32),
        ("masked_lm_positions", 4), ("masked_lm_ids", 4),
        ("next_sentence_labels", 1))}
    features["masked_lm_weights"] = tf.ones([2, 4])
    mlm, nsp = run_pretraining.outputs_of(
        features, config, True, modeling.ModelOptions(
            dropout_key=modeling.DropoutKey(
                1, tf.train.get_or_create_global_step(), number)))
    return tf.reduce_sum(mlm.losses) + tf.reduce_sum(nsp.losses), {}

  with tf.Graph().as_default(), tf.Session(config=session_config) as session:
    update = optimization.build_update(
        loss_of, 0.0, 10, 1, num_accumulation_steps=2, optimizer_type="lamb")
    session.run(tf.global_variables_initializer())
    metadata = tf.RunMetadata()
    session.run(update.train_op, run_metadata=metadata, options=tf.RunOptions(
        output_partition_graphs=True))
  return sum(node.op == "TemporaryVariable"
             for graph in metadata.partition_graphs for node in graph.node)


@pytest.fixture
def session_config(tmp_path):
  return sessions.run_config(
      str(tmp_path), 1, 1, params(1)["precision"]).session_config


def test_memory_optimizer_is_off(session_config):
  rewrites = session_config.graph_options.rewrite_options
  assert rewrites.memory_optimization == rewrites.NO_MEM_OPT


@pytest.mark.slow
def test_no_sum_depends_on_the_order_in_which_its_terms_arrive(session_config):
  """So does that of the embeddings, with the framework's own settings."""
  assert sums_in_order_of_arrival(tf.ConfigProto())
  assert not sums_in_order_of_arrival(session_config)
