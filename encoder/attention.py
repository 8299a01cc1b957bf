"""Attention and the encoder's layers (Vaswani et al., 1706.03762).

Dimensions in comments: B batch, F and T lengths of the sequences that attention
goes from and to, N heads, D size of a head.
"""

import math
import typing

import tensorflow.compat.v1 as tf

from encoder import layers
from encoder.config import ModelOptions
from fused_ops import ops as kernels
from fused_ops import sequences as rows_of


def create_attention_mask_from_input_mask(from_tensor, to_mask):
  """Returns float [batch, from_seq, to_seq], `to_mask` for each position.

  Args:
    from_tensor: [batch, from_seq, ...], for its shape only.
    to_mask: int32 [batch, to_seq].
  """
  batch_size, from_length = layers.get_shape_list(from_tensor, [2, 3])[:2]
  ones = tf.ones([batch_size, from_length, 1], tf.float32)
  return ones * _key_mask(to_mask)


def _key_mask(to_mask):
  """Returns float [batch, 1, to_seq] from [batch, to_seq]; None from None."""
  if to_mask is None:
    return None
  layers.assert_rank(to_mask, 2)
  return tf.cast(tf.expand_dims(to_mask, 1), tf.float32)


def _mask_to_bias(attention_mask):
  """Returns [batch, 1, from_seq or 1, to_seq]: 0 to attend, -10000 not to."""
  if attention_mask is None:
    return None
  return (1.0 - tf.cast(tf.expand_dims(attention_mask, 1),
                        tf.float32)) * -10000.0


def _split_heads(matrix, batch_size, seq_length, heads, size):
  """Returns [B, N, F, D] from a matrix [B*F, N*D]."""
  tensor = tf.reshape(matrix, [batch_size, seq_length, heads, size])
  return tf.transpose(tensor, [0, 2, 1, 3])


def _attend(query, key, value, bias, dropout_prob, options):
  """Scaled dot-product attention (Vaswani et al., 1706.03762, section 3.2.1).

  Args:
    query: float [B, N, F, D].
    key: float [B, N, T, D].
    value: float [B, N, T, D].
    bias: float, broadcast to [B, N, F, T], added to the scores; or None.
    dropout_prob: float, for the probabilities.
    options: `ModelOptions`.

  Returns:
    float [B, F, N, D].
  """
  dtype = options.matmul_dtype
  # Scaling the query is scaling the scores, on a smaller tensor.
  scale = 1.0 / math.sqrt(float(query.shape.as_list()[-1]))
  scores = layers.multiply(query * scale, key, dtype, transpose_b=True)
  if bias is not None:
    scores += bias
  probabilities = layers.dropout(tf.nn.softmax(scores), dropout_prob,
                                 key=options.dropout_key)
  return tf.transpose(layers.multiply(probabilities, value, dtype),
                      [0, 2, 1, 3])


def _lengths(from_tensor, to_tensor, batch_size, from_seq_length,
             to_seq_length):
  """Returns (batch, from_seq, to_seq) of `attention_layer`."""
  from_shape = layers.get_shape_list(from_tensor, expected_rank=[2, 3])
  to_shape = layers.get_shape_list(to_tensor, expected_rank=[2, 3])
  if len(from_shape) != len(to_shape):
    raise ValueError(
        "The rank of `from_tensor` must match the rank of `to_tensor`.")
  if len(from_shape) == 3:
    return from_shape[0], from_shape[1], to_shape[1]
  if batch_size is None or from_seq_length is None or to_seq_length is None:
    raise ValueError("Rank 2 tensors need `batch_size`, `from_seq_length` and "
                     "`to_seq_length`.")
  return batch_size, from_seq_length, to_seq_length


def attention_layer(from_tensor,
                    to_tensor,
                    attention_mask=None,
                    num_attention_heads=1,
                    size_per_head=512,
                    query_act=None,
                    key_act=None,
                    value_act=None,
                    attention_probs_dropout_prob=0.0,
                    initializer_range=0.02,
                    batch_size=None,
                    from_seq_length=None,
                    to_seq_length=None,
                    *,
                    options=None):
  """Multi-head attention from `from_tensor` to `to_tensor`.

  Args:
    from_tensor: float [batch, from_seq, width] or [batch * from_seq, width].
    to_tensor: the same with to_seq; the same rank.
    attention_mask: [batch, from_seq or 1, to_seq], 1 to attend and 0 not to.
    num_attention_heads: int.
    size_per_head: int.
    query_act: activation of the query, or None.
    key_act: activation of the key, or None.
    value_act: activation of the value, or None.
    attention_probs_dropout_prob: float.
    initializer_range: float.
    batch_size: int or scalar tensor, needed by matrices.
    from_seq_length: the same.
    to_seq_length: the same.
    options: `ModelOptions`.

  Returns:
    float [batch, from_seq, heads, size_per_head].

  Raises:
    ValueError: if the ranks differ, or matrices come without their lengths.
  """
  batch, from_length, to_length = _lengths(
      from_tensor, to_tensor, batch_size, from_seq_length, to_seq_length)
  options = options or ModelOptions()
  heads = []
  for tensor, length, activation, name in (
      (from_tensor, from_length, query_act, "query"),
      (to_tensor, to_length, key_act, "key"),
      (to_tensor, to_length, value_act, "value")):
    matrix = layers.dense(
        layers.reshape_to_matrix(tensor), num_attention_heads * size_per_head,
        layers.create_initializer(initializer_range), activation, name,
        matmul_dtype=options.matmul_dtype)
    heads.append(_split_heads(matrix, batch, length, num_attention_heads,
                              size_per_head))
  return _attend(*heads, bias=_mask_to_bias(attention_mask),
                 dropout_prob=attention_probs_dropout_prob, options=options)


class Layer(typing.NamedTuple):
  """What all layers of an encoder have in common.

  Attributes:
    heads: int, divides the width.
    intermediate_size: int, width inside the feed-forward part.
    activation: function of a tensor, or None.
    hidden_dropout_prob: float.
    attention_probs_dropout_prob: float.
    initializer_range: float.
    options: `ModelOptions`.
  """
  heads: int
  intermediate_size: int
  activation: typing.Any
  hidden_dropout_prob: float
  attention_probs_dropout_prob: float
  initializer_range: float
  options: ModelOptions

  @property
  def initializer(self):
    """A new initializer of kernels."""
    return layers.create_initializer(self.initializer_range)


def transformer_model(input_tensor,
                      attention_mask=None,
                      hidden_size=768,
                      num_hidden_layers=12,
                      num_attention_heads=12,
                      intermediate_size=3072,
                      intermediate_act_fn=layers.gelu,
                      hidden_dropout_prob=0.1,
                      attention_probs_dropout_prob=0.1,
                      initializer_range=0.02,
                      do_return_all_layers=False,
                      *,
                      options=None):
  """The encoder's layers (Vaswani et al., 1706.03762, section 3.1).

  Args:
    input_tensor: float [batch, seq, hidden_size].
    attention_mask: [batch, seq or 1, seq], 1 to attend and 0 not to, or None.
    hidden_size: int.
    num_hidden_layers: int.
    num_attention_heads: int, divides `hidden_size`.
    intermediate_size: int.
    intermediate_act_fn: function of a tensor, or None.
    hidden_dropout_prob: float.
    attention_probs_dropout_prob: float.
    initializer_range: float.
    do_return_all_layers: bool, all layers or the last.
    options: `ModelOptions`.

  Returns:
    float [batch, seq, hidden_size], or a list of one for each layer.

  Raises:
    ValueError: if the sizes do not fit each other or the input.
  """
  shape = layers.get_shape_list(input_tensor, expected_rank=3)
  if shape[2] != hidden_size:
    raise ValueError("The width of the input tensor (%d) != hidden size (%d)"
                     % (shape[2], hidden_size))
  layer = Layer(num_attention_heads, intermediate_size, intermediate_act_fn,
                hidden_dropout_prob, attention_probs_dropout_prob,
                initializer_range, options or ModelOptions())
  outputs = [tf.reshape(output, shape) for output in encode(
      layers.reshape_to_matrix(input_tensor),
      rows_of.of_positions(shape[0], shape[1]), num_hidden_layers, layer,
      attention_mask)]
  return outputs if do_return_all_layers else outputs[-1]


def encode(matrix, sequences, count, layer, attention_mask=None):
  """Returns the output of each layer, a list of float [tokens, hidden].

  Args:
    matrix: float [tokens, hidden], the input of the first layer.
    sequences: `Sequences` of its rows.
    count: int, the number of layers.
    layer: `Layer`.
    attention_mask: see `transformer_model`; None for that of `sequences`.

  Raises:
    ValueError: if the number of heads does not divide the width.
  """
  hidden_size = matrix.shape.as_list()[1]
  if hidden_size % layer.heads != 0:
    raise ValueError("The hidden size (%d) is not a multiple of the number of "
                     "attention heads (%d)" % (hidden_size, layer.heads))
  if sequences.packed and not sequences.rounded:
    sequences = rows_of.shortened(sequences)
  if attention_mask is None:
    attention_mask = _key_mask(sequences.mask)
  # Made once, it serves all layers.
  bias = _mask_to_bias(attention_mask)
  outputs = []
  for index in range(count):
    with tf.variable_scope("layer_%d" % index):
      with tf.variable_scope("attention"):
        with tf.variable_scope("self"):
          context = _self_attention(matrix, sequences, bias, layer)
        with tf.variable_scope("output"):
          attended = _add_and_norm(context, matrix, sequences, layer)
      with tf.variable_scope("intermediate"):
        inner = _intermediate(attended, layer)
      with tf.variable_scope("output"):
        matrix = _add_and_norm(inner, attended, sequences, layer)
    outputs.append(matrix)
  return outputs


def _self_attention(matrix, sequences, bias, layer):
  """Returns float [tokens, hidden], the heads side by side.

  Args:
    matrix: float [tokens, hidden].
    sequences: `Sequences` of its rows.
    bias: see `_attend`.
    layer: `Layer`.
  """
  width = matrix.shape.as_list()[1]
  options = layer.options
  projected = [
      layers.dense(matrix, width, layer.initializer, None, name,
                   matmul_dtype=options.matmul_dtype)
      for name in ("query", "key", "value")]
  if options.fused_ops and sequences.packed and not sequences.rounded:
    return kernels.attention(
        *projected, starts=sequences.starts, heads=layer.heads,
        rate=layer.attention_probs_dropout_prob,
        seed=layers.kernel_seed(options.dropout_key, "dropout"))
  heads = [_split_heads(rows_of.pad(sequences, rows), sequences.batch,
                        sequences.length, layer.heads, width // layer.heads)
           for rows in projected]
  context = _attend(*heads, bias=bias,
                    dropout_prob=layer.attention_probs_dropout_prob,
                    options=options)
  return tf.reshape(rows_of.pack(sequences, context), [-1, width])


def _add_and_norm(matrix, residual, sequences, layer):
  """Returns layer_norm(dropout(dense(matrix)) + residual)."""
  width = residual.shape.as_list()[1]
  rate, options = layer.hidden_dropout_prob, layer.options
  if options.fused_ops:
    return layers.dense_dropout_add_norm(matrix, residual, layer.initializer,
                                         rate, options)
  output = layers.dense(matrix, width, layer.initializer,
                        matmul_dtype=options.matmul_dtype)
  output = layers.dropout(output, rate, key=options.dropout_key,
                          rows=sequences.count)
  return layers.layer_norm(output + residual)


def _intermediate(matrix, layer):
  """Returns activation(dense(matrix)), [tokens, intermediate_size]."""
  if (layer.options.fused_ops
      and layer.activation in (layers.gelu, layers.gelu_exact)):
    return layers.dense_gelu(matrix, layer.intermediate_size,
                             layer.initializer,
                             layer.activation is layers.gelu_exact,
                             layer.options.matmul_dtype)
  return layers.dense(matrix, layer.intermediate_size, layer.initializer,
                      layer.activation,
                      matmul_dtype=layer.options.matmul_dtype)
