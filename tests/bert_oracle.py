"""BERT's forward pass in plain numpy, float64: what the graph is held to.

Written from the papers, sequence by sequence and head by head, so that it
shares no trick with the graph. Also: random weights, and Google's own module.
"""

import importlib
import math
import sys
import types
import unittest
from unittest import mock

import numpy as np
import tensorflow.compat.v1 as tf


def tanh_gelu(x):
  return 0.5 * x * (1 + np.tanh(
      math.sqrt(2 / math.pi) * (x + 0.044715 * x ** 3)))


def exact_gelu(x):
  return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


ACTIVATIONS = {"gelu": tanh_gelu, "gelu_exact": exact_gelu,
               "relu": lambda x: np.maximum(x, 0), "tanh": np.tanh}


def softmax(x):
  e = np.exp(x - x.max(axis=-1, keepdims=True))
  return e / e.sum(axis=-1, keepdims=True)


def layer_norm(x, gamma, beta):
  mean = x.mean(axis=-1, keepdims=True)
  variance = ((x - mean) ** 2).mean(axis=-1, keepdims=True)
  return gamma * (x - mean) / np.sqrt(variance + 1e-12) + beta


class Oracle(object):
  """The encoder of one config over weights {published name: float64 array}."""

  def __init__(self, config, weights):
    self._config = config
    self._weights = weights

  def _dense(self, x, name):
    return (x.dot(self._weights[name + "/kernel"]) +
            self._weights[name + "/bias"])

  def _norm(self, x, scope):
    return layer_norm(x, self._weights[scope + "/LayerNorm/gamma"],
                      self._weights[scope + "/LayerNorm/beta"])

  def _attention(self, x, mask, scope):
    query, key, value = (self._dense(x, "%s/self/%s" % (scope, name))
                         for name in ("query", "key", "value"))
    size = self._config.hidden_size // self._config.num_attention_heads
    heads = []
    for head in range(self._config.num_attention_heads):
      part = slice(head * size, (head + 1) * size)
      scores = query[:, part].dot(key[:, part].T) / math.sqrt(size)
      scores += (1 - mask)[None, :] * -10000.0
      heads.append(softmax(scores).dot(value[:, part]))
    output = self._dense(np.concatenate(heads, axis=1), scope + "/output/dense")
    return self._norm(output + x, scope + "/output")

  def _sequence(self, ids, mask, kinds):
    """Returns [embeddings, layer 0, layer 1, …], each [seq, hidden]."""
    root = "bert/embeddings"
    x = (self._weights[root + "/word_embeddings"][ids] +
         self._weights[root + "/token_type_embeddings"][kinds] +
         self._weights[root + "/position_embeddings"][:len(ids)])
    outputs = [self._norm(x, root)]
    for layer in range(self._config.num_hidden_layers):
      scope = "bert/encoder/layer_%d" % layer
      x = self._attention(outputs[-1], mask, scope + "/attention")
      inner = ACTIVATIONS[self._config.hidden_act](
          self._dense(x, scope + "/intermediate/dense"))
      output = self._dense(inner, scope + "/output/dense")
      outputs.append(self._norm(output + x, scope + "/output"))
    return outputs

  def forward(self, ids, mask, kinds):
    """Returns (embeddings, list of layers, pooled) for [batch, seq] inputs."""
    rows = [self._sequence(*row) for row in zip(ids, mask, kinds)]
    layers = [np.stack(layer) for layer in zip(*rows)]
    pooled = np.tanh(self._dense(layers[-1][:, 0], "bert/pooler/dense"))
    return layers[0], layers[1:], pooled


def random_weights(variables, seed=0):
  """Returns {name: float32 array}, wide enough that all parts matter."""
  random = np.random.RandomState(seed)
  return {var.op.name: (random.normal(size=var.shape.as_list()) * 0.3 +
                        (1.0 if var.op.name.endswith("gamma") else 0.0)
                        ).astype(np.float32)
          for var in variables}


def assign(session, weights):
  """Gives the graph's trainable variables these values."""
  variables = tf.trainable_variables()
  session.run([var.initializer for var in variables],
              {var.initializer.inputs[1]: weights[var.op.name]
               for var in variables})


def random_inputs(config, batch_size, seq_length, seed=0):
  """Returns ids, mask (each row of its own length) and kinds as int32."""
  random = np.random.RandomState(seed)
  shape = [batch_size, seq_length]
  ids = random.randint(0, config.vocab_size, shape).astype(np.int32)
  kinds = random.randint(0, config.type_vocab_size, shape).astype(np.int32)
  lengths = random.randint(1, seq_length + 1, batch_size)
  mask = (np.arange(seq_length)[None] < lengths[:, None]).astype(np.int32)
  return ids, mask, kinds


def relative_error(actual, expected):
  """Returns the largest difference over the largest expected value."""
  actual = np.asarray(actual, np.float64)
  assert actual.shape == np.shape(expected), (actual.shape, np.shape(expected))
  return np.abs(actual - expected).max() / np.abs(expected).max()


def _contrib_layer_norm(inputs, begin_norm_axis, begin_params_axis, scope):
  """What Google's module needs of tf.contrib, which TensorFlow 2 lacks."""
  assert begin_norm_axis == begin_params_axis == -1
  width = inputs.shape.as_list()[-1]
  with tf.variable_scope(scope, default_name="LayerNorm"):
    beta = tf.get_variable("beta", [width], initializer=tf.zeros_initializer())
    gamma = tf.get_variable("gamma", [width],
                            initializer=tf.ones_initializer())
  mean, variance = tf.nn.moments(inputs, [-1], keep_dims=True)
  return tf.nn.batch_normalization(inputs, mean, variance, beta, gamma, 1e-12)


def google_modeling():
  """Returns Google's own `modeling`, on either stack."""
  if tf.__version__.startswith("2."):
    contrib = types.ModuleType("tensorflow.contrib")
    contrib.layers = types.ModuleType("tensorflow.contrib.layers")
    contrib.layers.layer_norm = _contrib_layer_norm
    sys.modules["tensorflow.contrib"] = contrib
    sys.modules["tensorflow.contrib.layers"] = contrib.layers
  from bert import modeling  # pylint: disable=import-outside-toplevel
  return modeling


def google_runner(name):
  """Returns Google's own "run_pretraining" or "run_squad", on either stack.

  Its flags, which have the names of ours, are not declared.
  """
  google_modeling()
  nothing = {kind: mock.DEFAULT for kind in (
      "DEFINE_string", "DEFINE_bool", "DEFINE_integer", "DEFINE_float")}
  with mock.patch.multiple(tf.flags, **nothing):
    return importlib.import_module("bert." + name)


def run_googles_tests(test_case, count):
  """Runs a class of Google's unit tests; `count` of them must not skip."""
  # They were written for reference variables: one counts unreachable
  # operations.
  tf.disable_resource_variables()
  try:
    result = unittest.TestResult()
    unittest.defaultTestLoader.loadTestsFromTestCase(test_case).run(result)
  finally:
    tf.enable_resource_variables()
  assert not result.errors and not result.failures, (
      result.errors + result.failures)
  assert result.testsRun - len(result.skipped) == count
