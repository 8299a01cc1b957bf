"""The encoder's numbers: numpy in float64, finite differences, Google's code."""

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

import bert_oracle
import modeling
from utils import stack

stack.configure()

TINY = dict(vocab_size=13, hidden_size=8, num_hidden_layers=2,
            num_attention_heads=2, intermediate_size=12, type_vocab_size=3,
            max_position_embeddings=9)
SMALL = dict(vocab_size=50, hidden_size=24, num_hidden_layers=3,
             num_attention_heads=4, intermediate_size=36, type_vocab_size=2,
             max_position_embeddings=20)


def _config(sizes, **more):
  return modeling.BertConfig(**dict(sizes, **more))


def _outputs(module, config, inputs, weights=None, dynamic=False, **more):
  """Returns ([embeddings, layers…, pooled] as arrays, weights)."""
  with tf.Graph().as_default(), tf.Session() as session:
    shape = [None, None] if dynamic else inputs[0].shape
    places = [tf.placeholder(tf.int32, shape) for _ in inputs]
    model = module.BertModel(config, False, *places, **more)
    if weights is None:
      weights = bert_oracle.random_weights(tf.trainable_variables())
    bert_oracle.assign(session, weights)
    return session.run(
        [model.get_embedding_output()] + model.get_all_encoder_layers() +
        [model.get_pooled_output(), model.get_sequence_output()],
        dict(zip(places, inputs))), weights


@pytest.mark.parametrize("hidden_act", ["gelu", "gelu_exact", "relu"])
@pytest.mark.parametrize("dynamic", [False, True])
def test_forward_pass_equals_numpy(hidden_act, dynamic):
  config = _config(SMALL, hidden_act=hidden_act)
  inputs = bert_oracle.random_inputs(config, 3, 11)
  outputs, weights = _outputs(modeling, config, inputs, dynamic=dynamic)
  wide = {name: value.astype(np.float64) for name, value in weights.items()}
  embeddings, layers, pooled = bert_oracle.Oracle(config, wide).forward(*inputs)
  expected = [embeddings] + layers + [pooled, layers[-1]]
  assert len(outputs) == len(expected) == 6
  for actual, value in zip(outputs, expected):
    assert bert_oracle.relative_error(actual, value) < 1e-5


def test_one_hot_lookup_gives_the_same():
  config = _config(SMALL)
  inputs = bert_oracle.random_inputs(config, 2, 5)
  gathered, weights = _outputs(modeling, config, inputs)
  one_hot, _ = _outputs(modeling, config, inputs, weights,
                        use_one_hot_embeddings=True)
  for actual, value in zip(one_hot, gathered):
    np.testing.assert_allclose(actual, value, rtol=0, atol=1e-6)


@pytest.mark.parametrize("sizes", [TINY, SMALL])
def test_google_code_gives_the_same(sizes):
  google = bert_oracle.google_modeling()
  inputs = bert_oracle.random_inputs(_config(sizes), 4, 9, seed=3)
  expected, weights = _outputs(google, google.BertConfig(**sizes), inputs)
  actual, own_weights = _outputs(modeling, _config(sizes), inputs)
  # The same names in the same order draw the same random weights.
  assert list(own_weights) == list(weights)
  for name, value in weights.items():
    np.testing.assert_array_equal(own_weights[name], value)
  for ours, theirs in zip(actual, expected):
    assert bert_oracle.relative_error(ours, theirs) < 1e-5


def test_google_gradients_are_the_same():
  google = bert_oracle.google_modeling()
  ids, mask, kinds = bert_oracle.random_inputs(_config(TINY), 3, 7, seed=4)
  results = []
  for module in (google, modeling):
    with tf.Graph().as_default(), tf.Session() as session:
      model = module.BertModel(
          module.BertConfig(**TINY), False, tf.constant(ids),
          tf.constant(mask), tf.constant(kinds))
      loss = tf.reduce_sum(tf.sin(model.get_sequence_output()))
      loss += tf.reduce_sum(tf.sin(model.get_pooled_output()))
      variables = tf.trainable_variables()
      grads = [tf.convert_to_tensor(grad)
               for grad in tf.gradients(loss, variables)]
      bert_oracle.assign(session, bert_oracle.random_weights(variables))
      results.append(session.run(grads))
  largest = max(np.abs(grad).max() for grad in results[0])
  for theirs, ours in zip(*results):
    assert np.abs(theirs - ours).max() < 1e-5 * largest


def _graph_gradients(config, inputs, of_sequence, of_pooled):
  """Returns ({name: weight}, {name: gradient}) of the test loss."""
  with tf.Graph().as_default(), tf.Session() as session:
    model = modeling.BertModel(config, True, *[tf.constant(x) for x in inputs])
    loss = (tf.reduce_sum(model.get_sequence_output() * of_sequence) +
            tf.reduce_sum(model.get_pooled_output() * of_pooled))
    variables = tf.trainable_variables()
    grads = [tf.convert_to_tensor(grad)
             for grad in tf.gradients(loss, variables)]
    weights = bert_oracle.random_weights(variables)
    bert_oracle.assign(session, weights)
    names = [var.op.name for var in variables]
    return weights, dict(zip(names, session.run(grads)))


@pytest.mark.parametrize("hidden_act", ["gelu", "gelu_exact"])
def test_gradients_equal_finite_differences(hidden_act):
  config = _config(TINY, hidden_act=hidden_act, hidden_dropout_prob=0.0,
                   attention_probs_dropout_prob=0.0)
  inputs = bert_oracle.random_inputs(config, 2, 5)
  random = np.random.RandomState(1)
  of_sequence = random.normal(size=(2, 5, 8)).astype(np.float32)
  of_pooled = random.normal(size=(2, 8)).astype(np.float32)
  weights, grads = _graph_gradients(config, inputs, of_sequence, of_pooled)
  wide = {name: value.astype(np.float64) for name, value in weights.items()}

  def loss():
    _, layers, pooled = bert_oracle.Oracle(config, wide).forward(*inputs)
    return (layers[-1] * of_sequence).sum() + (pooled * of_pooled).sum()

  largest = max(np.abs(grad).max() for grad in grads.values())
  assert len(grads) == 39 and largest > 0.1
  for name, grad in grads.items():
    # Those that matter most, and some at random.
    places = list(np.argsort(-np.abs(grad), axis=None)[:2])
    places += list(random.randint(0, grad.size, 3))
    for place in places:
      value = wide[name].flat[place]
      wide[name].flat[place] = value + 1e-5
      above = loss()
      wide[name].flat[place] = value - 1e-5
      below = loss()
      wide[name].flat[place] = value
      difference = abs((above - below) / 2e-5 - grad.flat[place])
      assert difference < 1e-5 * largest, (name, place)
