"""What layers are made of: shapes, activations, dense, layer norm, dropout."""

import hashlib
import math

import tensorflow.compat.v1 as tf

from fused_ops import ops as kernels

# Shapes ----------------------------------------------------------------------


def get_shape_list(tensor, expected_rank=None, name=None):
  """Returns the shape as a list: ints where static, else scalar tensors.

  Args:
    tensor: tensor of known rank.
    expected_rank: int or list of ints to check the rank against, or None.
    name: the tensor's name in the message.

  Raises:
    ValueError: if the rank is not expected.
  """
  if expected_rank is not None:
    assert_rank(tensor, expected_rank, name)
  shape = tensor.shape.as_list()
  if None in shape:
    dynamic = tf.shape(tensor)
    shape = [dynamic[i] if size is None else size
             for i, size in enumerate(shape)]
  return shape


def reshape_to_matrix(input_tensor):
  """Returns [rows, width] from [..., width]; ValueError below rank 2."""
  rank = input_tensor.shape.ndims
  if rank < 2:
    raise ValueError("Input tensor must have at least rank 2. Shape = %s"
                     % input_tensor.shape)
  if rank == 2:
    return input_tensor
  return tf.reshape(input_tensor, [-1, input_tensor.shape.as_list()[-1]])


def reshape_from_matrix(output_tensor, orig_shape_list):
  """Returns [rows, width] in the outer shape that it had before."""
  if len(orig_shape_list) == 2:
    return output_tensor
  width = get_shape_list(output_tensor)[-1]
  return tf.reshape(output_tensor, list(orig_shape_list[:-1]) + [width])


def assert_rank(tensor, expected_rank, name=None):
  """Raises ValueError unless the tensor's rank is one of the expected.

  Args:
    tensor: tensor.
    expected_rank: int or list of ints.
    name: the tensor's name in the message.
  """
  expected = ([expected_rank] if isinstance(expected_rank, int)
              else list(expected_rank))
  if tensor.shape.ndims not in expected:
    raise ValueError(
        "For the tensor `%s` in scope `%s`, the actual rank `%s` (shape = %s) "
        "is not equal to the expected rank `%s`"
        % (name or tensor.name, tf.get_variable_scope().name,
           tensor.shape.ndims, tensor.shape, expected_rank))


# Activations ----------------------------------------------------------------


def gelu(x):
  """Gaussian error linear unit, the published (tanh) form.

  Hendrycks and Gimpel, arXiv 1606.08415, section 2:
  0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))). Since
  0.5 (1 + tanh(z)) = sigmoid(2 z), it is written as x sigmoid(x (a + b x^2)),
  which goes over memory half as often, both ways.
  """
  scale = 2.0 * math.sqrt(2.0 / math.pi)
  return x * tf.sigmoid(x * (scale + (0.044715 * scale) * tf.square(x)))


def gelu_exact(x):
  """Gaussian error linear unit, x Phi(x) = 0.5 x (1 + erf(x / sqrt(2)))."""
  return (0.5 * x) * (1.0 + tf.erf(x * math.sqrt(0.5)))


def get_activation(activation_string):
  """Returns the function that a name stands for.

  Args:
    activation_string: "gelu", "gelu_exact", "relu", "tanh" or "linear" in any
      case, or None, or a function, which is returned as it is.

  Returns:
    A function of a tensor; None for "linear", "" and None.

  Raises:
    ValueError: for any other name.
  """
  if not isinstance(activation_string, str):
    return activation_string
  known = {"": None, "linear": None, "relu": tf.nn.relu, "gelu": gelu,
           "gelu_exact": gelu_exact, "tanh": tf.tanh}
  name = activation_string.lower()
  if name not in known:
    raise ValueError("Unsupported activation: %s" % name)
  return known[name]


# Building blocks ------------------------------------------------------------


def create_initializer(initializer_range=0.02):
  """Returns a truncated normal initializer of that standard deviation."""
  return tf.truncated_normal_initializer(stddev=initializer_range)


def multiply(a, b, dtype, transpose_b=False):
  """Returns the product of matrices (or of stacks of them).

  Args:
    a: float tensor.
    b: float tensor.
    dtype: what to multiply in, or None; the product has the type of `a`.
    transpose_b: bool.
  """
  if dtype is None:
    return tf.matmul(a, b, transpose_b=transpose_b)
  product = tf.matmul(tf.cast(a, dtype), tf.cast(b, dtype),
                      transpose_b=transpose_b)
  return tf.cast(product, a.dtype)


def dense(input_matrix, units, initializer, activation=None, name="dense", *,
          matmul_dtype=None):
  """Returns activation(input_matrix * kernel + bias), [rows, units].

  Args:
    input_matrix: float [rows, width].
    units: int.
    initializer: of the kernel; the bias starts at zero.
    activation: function of a tensor, or None.
    name: variable scope of `kernel` [width, units] and `bias` [units].
    matmul_dtype: see `ModelOptions`.
  """
  product, bias = product_and_bias(input_matrix, units, initializer, name,
                                    matmul_dtype)
  output = tf.nn.bias_add(product, bias)
  return output if activation is None else activation(output)


def product_and_bias(input_matrix, units, initializer, name, matmul_dtype):
  """Returns (input_matrix * kernel, bias) of `dense`."""
  width = input_matrix.shape.as_list()[-1]
  with tf.variable_scope(name):
    kernel = tf.get_variable("kernel", [width, units], initializer=initializer)
    bias = tf.get_variable("bias", [units],
                           initializer=tf.zeros_initializer())
    return multiply(input_matrix, kernel, matmul_dtype), bias


def dense_gelu(matrix, units, initializer, exact, matmul_dtype):
  """Returns gelu(dense(matrix)) by a kernel."""
  product, bias = product_and_bias(matrix, units, initializer, "dense",
                                    matmul_dtype)
  return kernels.bias_gelu(product, bias, exact)


def dense_dropout_add_norm(matrix, residual, initializer, rate, options):
  """Returns layer_norm(dropout(dense(matrix)) + residual) by a kernel."""
  width = residual.shape.as_list()[1]
  product, bias = product_and_bias(matrix, width, initializer, "dense",
                                    options.matmul_dtype)
  with tf.variable_scope(None, default_name="LayerNorm"):
    beta, gamma = _norm_variables(width)
  return kernels.dropout_add_norm(
      product, bias, residual, gamma, beta, rate,
      kernel_seed(options.dropout_key, "dropout"))


def kernel_seed(key, name):
  """Returns int64 [2], the seed of a kernel's mask, on the host.

  There the kernels of GPUs ask for it, too.
  """
  with tf.device("/CPU:0"):
    if key is None:
      return tf.random_uniform([2], maxval=tf.int64.max, dtype=tf.int64)
    return _mask_seed(key, name)


def layer_norm(input_tensor, name=None):
  """Normalizes the last dimension, epsilon 1e-12 (Ba et al., 1607.06450).

  Args:
    input_tensor: float tensor; its last dimension is static.
    name: variable scope of `beta` and `gamma`, "LayerNorm" by default.

  Returns:
    Tensor of the same shape: gamma * (x - mean) / sqrt(variance + 1e-12) +
    beta, with the biased variance.
  """
  with tf.variable_scope(name, default_name="LayerNorm"):
    beta, gamma = _norm_variables(input_tensor.shape.as_list()[-1])
    centered = input_tensor - tf.reduce_mean(input_tensor, -1, keepdims=True)
    variance = tf.reduce_mean(tf.square(centered), -1, keepdims=True)
    return centered * tf.rsqrt(variance + 1e-12) * gamma + beta


def _norm_variables(width):
  """Returns (beta, gamma), float [width] each."""
  return (tf.get_variable("beta", [width], initializer=tf.zeros_initializer()),
          tf.get_variable("gamma", [width], initializer=tf.ones_initializer()))


def layer_norm_and_dropout(input_tensor, dropout_prob, name=None, *, key=None,
                           rows=None):
  """Returns dropout(layer_norm(input_tensor))."""
  return dropout(layer_norm(input_tensor, name), dropout_prob, key=key,
                 rows=rows)


def _mask_seed(key, name):
  """Returns int64 [2], the seed of one dropout mask.

  The first number stands for (seed, rank, place), the second for (step,
  micro-batch). The place is the path of the variable scope and `name`: it
  does not depend on what else is in the graph, nor on Python's own hash.
  """
  place = "%s/%s" % (tf.get_variable_scope().name, name)
  text = "%d %d %s" % (key.seed, key.rank, place)
  digest = hashlib.sha256(text.encode("utf-8")).digest()
  static = int.from_bytes(digest[:8], "little") >> 1
  moving = (tf.cast(key.step, tf.int64) * (1 << 20) +
            tf.cast(key.micro_batch, tf.int64))
  return tf.stack([tf.constant(static, tf.int64), moving])


def dropout(input_tensor, dropout_prob, *, key=None, name="dropout",
            rows=None):
  """Zeroes each value with a probability and scales the others up.

  Args:
    input_tensor: float tensor.
    dropout_prob: float in [0, 1), the probability of zero (not of keeping);
      0 or None returns the input.
    key: `DropoutKey` or None; see `ModelOptions`.
    name: tells apart the masks of one variable scope.
    rows: int32 scalar tensor, the one size that is dynamic (see `count` of
      `Sequences`); None to ask the tensor.

  Returns:
    Tensor of the same shape; the expectation of each value is the input's.
  """
  if not dropout_prob:
    return input_tensor
  if key is None:
    return tf.nn.dropout(input_tensor, rate=dropout_prob)
  shape = tf.shape(input_tensor) if rows is None else tf.stack(
      [rows if size is None else size for size in input_tensor.shape.as_list()])
  # The older operation: the newer one's numbers are others under XLA.
  uniform = tf.raw_ops.StatelessRandomUniform(
      shape=shape, seed=_mask_seed(key, name))
  mask = tf.cast(uniform >= dropout_prob, input_tensor.dtype)
  return input_tensor * (mask * (1.0 / (1.0 - dropout_prob)))
