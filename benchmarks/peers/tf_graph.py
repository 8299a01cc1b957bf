"""A TensorFlow graph that takes steps: timed, profiled, its products alone."""

import re
import statistics
import time

import tensorflow.compat.v1 as tf

from benchmarks.peers import work

# Distinct matrices of one shape: as in a model, the next one is not in a cache.
_MATRICES = 4
_OWN_ATTENTION = ("BertAttention", "BertAttentionGrad")
_OWN_OPTIMIZER = ("BertAdam", "BertLamb", "BertGlobalNorm")


def session_config(threads):
  """Returns the tf.ConfigProto of users who set threads alone."""
  return tf.ConfigProto(intra_op_parallelism_threads=threads,
                        inter_op_parallelism_threads=threads)


def squad_shapes(batch, length, is_training):
  """Returns {name: shape} of a SQuAD batch; None is any size."""
  shapes = {name: [batch, length]
            for name in ("input_ids", "input_mask", "segment_ids")}
  shapes["unique_ids"] = [batch]
  if is_training:
    shapes.update(start_positions=[batch], end_positions=[batch])
  return shapes


def pretraining_shapes(sizes):
  """Returns {name: shape} of a pre-training batch."""
  return {name: list(value.shape)
          for name, value in work.pretraining_batch(sizes, 0).items()}


class Graph(object):
  """A graph with its session.

  Args:
    shapes: {name: shape} of a batch.
    make: function of {name: tensor} that returns (what a step fetches, the
      tf.ConfigProto).
  """

  def __init__(self, shapes, make):
    with tf.Graph().as_default() as graph:
      tf.set_random_seed(1)
      self._inputs = {
          name: tf.placeholder(tf.float32 if name.endswith("_weights")
                               else tf.int32, shape)
          for name, shape in shapes.items()}
      self._fetches, self._config = make(self._inputs)
      self._session = tf.Session(graph=graph, config=self._config)
      self._session.run(tf.global_variables_initializer())

  def _feed(self, batch):
    return {tensor: batch[name] for name, tensor in self._inputs.items()}

  def step(self, batch):
    """Runs one step; returns the loss, or None where there is none."""
    values = self._session.run(self._fetches, self._feed(batch))
    return float(values["loss"]) if "loss" in values else None

  def profile(self, batch):
    """Returns {kind of work: share of the time of all operations}."""
    found = tf.RunMetadata()
    self._session.run(
        self._fetches, self._feed(batch),
        options=tf.RunOptions(trace_level=tf.RunOptions.FULL_TRACE),
        run_metadata=found)
    seconds = {}
    for device in found.step_stats.dev_stats:
      for node in device.node_stats:
        kind = kind_of(node.node_name, _operation_of(node.timeline_label))
        seconds[kind] = seconds.get(kind, 0) + max(
            0, node.op_end_rel_micros - node.op_start_rel_micros)
    total = sum(seconds.values())
    return {kind: value / total for kind, value in seconds.items()}

  def products_seconds(self, products, bf16):
    """Times matrix products alone, under the step's own session settings.

    Args:
      products: list of `work.products_of_pretraining`.
      bf16: bool, whether to multiply bfloat16 matrices.

    Returns:
      {"seconds": those of all products of a step, forward and backward}.
    """
    return dict(seconds=products_seconds(
        products, tf.bfloat16 if bf16 else tf.float32, self._config))


def products_seconds(products, dtype, config):
  """Returns the seconds of a step's matrix products, forward and backward.

  Args:
    products: list of `work.products_of_pretraining`.
    dtype: of the matrices.
    config: tf.ConfigProto of the session.
  """
  return sum(_product_seconds(product, dtype, config) for product in products)


def _product_seconds(product, dtype, config):
  count, number = product[0], min(product[0], _MATRICES)
  with tf.Graph().as_default() as graph:
    every = products_graph(product[1:], number, dtype)
    with tf.Session(graph=graph, config=config) as session:
      session.run(tf.global_variables_initializer())
      times = []
      for _ in range(4):
        begin = time.perf_counter()
        session.run(every)
        times.append(time.perf_counter() - begin)
  return statistics.median(times[1:]) * count / number


def products_graph(shape, number, dtype):
  """Adds dense layers' products, forward and backward, one after the other.

  Args:
    shape: (rows, inner, columns).
    number: int, layers, each with matrices of its own.
    dtype: of the matrices.

  Returns:
    List of all operations, each to be run by name: of one that only others wait
    for, and nobody reads, the framework's optimizer makes a no-op.
  """
  rows, inner, columns = shape
  every = []
  for _ in range(number):
    x, w, dy = (_matrix(sizes, dtype) for sizes in (
        [rows, inner], [inner, columns], [rows, columns]))
    for a, b, options in ((x, w, {}), (dy, w, dict(transpose_b=True)),
                          (x, dy, dict(transpose_a=True))):
      with tf.control_dependencies(every[-1:]):
        every.append(tf.matmul(a, b, **options).op)
  return every


def _matrix(shape, dtype):
  """Returns a variable: constants would be multiplied before the step."""
  return tf.Variable(lambda: tf.cast(tf.random_uniform(shape, -1, 1), dtype),
                     dtype=dtype, use_resource=True)


def _operation_of(label):
  """Returns the operation's type from a trace's "name = Type(inputs)"."""
  found = re.match(r".* = (\w+)\(", label)
  return found.group(1) if found else label


def kind_of(name, operation):
  """Returns which kind of work a graph's operation is.

  By its type, and by its name, which has the scopes of both codes' models; what
  lies outside of the model and its gradients is the optimizer (and the loss).
  """
  if "FromDataset" in operation or "Iterator" in operation:
    return "input"
  if operation in _OWN_OPTIMIZER:
    return "optimizer"
  in_attention = re.search(
      r"attention/self(?!\w|/(query|key|value)(_\d+)?/)", name)
  if operation in _OWN_ATTENTION or in_attention:
    return "attention"
  if "MatMul" in operation or operation == "Einsum":
    return "matrix products"
  if operation.startswith("Bert") or re.search(
      r"(^|/)(bert|gradients|cls|loss)(_\d+)?/", name):
    return "element-wise"
  return "optimizer"
