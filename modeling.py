"""BERT's configuration and encoder (Devlin et al., arXiv 1810.04805).

The names, arguments and results are those of Google's published `modeling`,
the variables those of its published checkpoints. Two things differ inside:

* Between the embeddings and the heads a matrix [tokens, hidden] travels. Only
  attention knows which rows form a sequence (`_split_heads`).
* Dropout can be keyed (`DropoutKey`): the masks of a step are then a pure
  function of the key, so that a resumed run repeats them.

Dimensions in comments: B batch, F and T lengths of the sequences that attention
goes from and to, N heads, D size of a head, H hidden size.
"""

import collections
import copy
import hashlib
import json
import math
import re
import typing

import tensorflow.compat.v1 as tf

from utils.errors import UserError

# What `BertConfig.from_json_file` cannot do without or must find positive.
_POSITIVE = ("vocab_size", "hidden_size", "num_hidden_layers",
             "num_attention_heads", "intermediate_size",
             "max_position_embeddings", "type_vocab_size")
_RATES = ("hidden_dropout_prob", "attention_probs_dropout_prob")


class DropoutKey(typing.NamedTuple):
  """What the dropout masks of one forward pass depend on, with their place.

  Attributes:
    seed: int, the run's seed.
    step: int or scalar integer tensor or variable, the optimizer step.
    micro_batch: int or scalar integer tensor below 2**20, the part of the
      step's batch.
    rank: int, the process among those that train together.
  """
  seed: int
  step: typing.Any
  micro_batch: typing.Any = 0
  rank: int = 0


class ModelOptions(typing.NamedTuple):
  """What is new beside the reference; the default is the reference.

  Attributes:
    dropout_key: `DropoutKey`, or None for masks that follow the graph's seed.
    matmul_dtype: tf.bfloat16 to multiply the encoder's matrices in; None for
      that of the tensors. All else stays as it is.
  """
  dropout_key: typing.Optional[DropoutKey] = None
  matmul_dtype: typing.Optional[tf.DType] = None


class BertConfig(object):
  """Sizes and rates of a `BertModel`."""

  def __init__(self,
               vocab_size,
               hidden_size=768,
               num_hidden_layers=12,
               num_attention_heads=12,
               intermediate_size=3072,
               hidden_act="gelu",
               hidden_dropout_prob=0.1,
               attention_probs_dropout_prob=0.1,
               max_position_embeddings=512,
               type_vocab_size=16,
               initializer_range=0.02):
    """Keeps the arguments as attributes of the same names.

    Args:
      vocab_size: int, rows of the word embedding table.
      hidden_size: int, width of the encoder.
      num_hidden_layers: int.
      num_attention_heads: int, divides `hidden_size`.
      intermediate_size: int, width inside the feed-forward part.
      hidden_act: name for `get_activation`, or a function of a tensor.
      hidden_dropout_prob: float in [0, 1), for all but attention.
      attention_probs_dropout_prob: float in [0, 1).
      max_position_embeddings: int, the longest sequence.
      type_vocab_size: int, number of segment kinds.
      initializer_range: float, standard deviation of initial weights.
    """
    self.vocab_size = vocab_size
    self.hidden_size = hidden_size
    self.num_hidden_layers = num_hidden_layers
    self.num_attention_heads = num_attention_heads
    self.hidden_act = hidden_act
    self.intermediate_size = intermediate_size
    self.hidden_dropout_prob = hidden_dropout_prob
    self.attention_probs_dropout_prob = attention_probs_dropout_prob
    self.max_position_embeddings = max_position_embeddings
    self.type_vocab_size = type_vocab_size
    self.initializer_range = initializer_range

  @classmethod
  def from_dict(cls, json_object):
    """Returns a config from a dict; unknown keys are kept as attributes."""
    config = cls(vocab_size=None)
    config.__dict__.update(json_object)
    return config

  @classmethod
  def from_json_file(cls, json_file):
    """Returns the config in a JSON file (any path that gfile knows).

    Raises:
      UserError: if the file is missing, is no JSON object, or its values
        cannot make a model.
    """
    try:
      with tf.gfile.GFile(json_file, "r") as reader:
        values = json.loads(reader.read())
    except (tf.errors.OpError, UnicodeDecodeError) as error:
      raise UserError("bert_config_file: cannot read %s (%s)"
                      % (json_file, type(error).__name__))
    except ValueError as error:
      raise UserError("bert_config_file: %s is not valid JSON (%s)"
                      % (json_file, error))
    if not isinstance(values, dict):
      raise UserError("bert_config_file: %s does not hold a JSON object"
                      % json_file)
    config = cls.from_dict(values)
    fault = config.fault()
    if fault:
      raise UserError("bert_config_file: %s: %s" % (json_file, fault))
    return config

  def fault(self):
    """Returns what makes this config unusable, as text, or None."""
    for name in _POSITIVE:
      value = getattr(self, name)
      if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        return "%s must be a positive whole number, not %r" % (name, value)
    for name in _RATES:
      value = getattr(self, name)
      if not isinstance(value, (int, float)) or not 0 <= value < 1:
        return "%s must be a number in [0, 1), not %r" % (name, value)
    if self.hidden_size % self.num_attention_heads:
      return ("hidden_size %d is not a multiple of num_attention_heads %d"
              % (self.hidden_size, self.num_attention_heads))
    try:
      get_activation(self.hidden_act)
    except ValueError as error:
      return str(error)
    return None

  def to_dict(self):
    """Returns the config as a dict that shares nothing with it."""
    return copy.deepcopy(self.__dict__)

  def to_json_string(self):
    """Returns the config as JSON, keys sorted, with a newline at the end."""
    return json.dumps(self.to_dict(), indent=2, sort_keys=True) + "\n"


class BertModel(object):
  """The encoder with its pooler.

  ```python
  model = BertModel(config=BertConfig(vocab_size=30522), is_training=False,
                    input_ids=tf.constant([[101, 7592, 102]]))
  vectors = model.get_sequence_output()  # [1, 3, 768]
  ```
  """

  def __init__(self,
               config,
               is_training,
               input_ids,
               input_mask=None,
               token_type_ids=None,
               use_one_hot_embeddings=False,
               scope=None,
               *,
               options=None):
    """Builds the graph.

    Args:
      config: `BertConfig`.
      is_training: bool, whether dropout is on.
      input_ids: int32 [batch, seq], either dimension may be dynamic.
      input_mask: int32 [batch, seq], 1 for tokens, 0 for padding; all ones
        when None.
      token_type_ids: int32 [batch, seq]; all zeros when None.
      use_one_hot_embeddings: bool, whether to look words up by a product with
        one-hot rows instead of a gather.
      scope: variable scope, "bert" by default.
      options: `ModelOptions`.

    Raises:
      ValueError: if the config or a shape does not fit.
    """
    config = copy.deepcopy(config)
    if not is_training:
      config.hidden_dropout_prob = 0.0
      config.attention_probs_dropout_prob = 0.0
    options = _step_read_once(options)

    batch_size, seq_length = get_shape_list(input_ids, expected_rank=2)
    if token_type_ids is None:
      token_type_ids = tf.zeros([batch_size, seq_length], tf.int32)

    with tf.variable_scope(scope, default_name="bert"):
      self._build_embeddings(config, input_ids, token_type_ids,
                             use_one_hot_embeddings, options)
      with tf.variable_scope("encoder"):
        self.all_encoder_layers = transformer_model(
            input_tensor=self.embedding_output,
            attention_mask=_key_mask(input_mask),
            hidden_size=config.hidden_size,
            num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=config.num_attention_heads,
            intermediate_size=config.intermediate_size,
            intermediate_act_fn=get_activation(config.hidden_act),
            hidden_dropout_prob=config.hidden_dropout_prob,
            attention_probs_dropout_prob=config.attention_probs_dropout_prob,
            initializer_range=config.initializer_range,
            do_return_all_layers=True,
            options=options)
      self.sequence_output = self.all_encoder_layers[-1]
      with tf.variable_scope("pooler"):
        self.pooled_output = dense(
            self.sequence_output[:, 0, :], config.hidden_size,
            create_initializer(config.initializer_range), tf.tanh,
            matmul_dtype=options.matmul_dtype)

  def _build_embeddings(self, config, input_ids, token_type_ids,
                        use_one_hot_embeddings, options):
    with tf.variable_scope("embeddings"):
      self.word_embedding_output, self.embedding_table = embedding_lookup(
          input_ids=input_ids,
          vocab_size=config.vocab_size,
          embedding_size=config.hidden_size,
          initializer_range=config.initializer_range,
          word_embedding_name="word_embeddings",
          use_one_hot_embeddings=use_one_hot_embeddings)
      self.embedding_output = embedding_postprocessor(
          input_tensor=self.word_embedding_output,
          use_token_type=True,
          token_type_ids=token_type_ids,
          token_type_vocab_size=config.type_vocab_size,
          token_type_embedding_name="token_type_embeddings",
          use_position_embeddings=True,
          position_embedding_name="position_embeddings",
          initializer_range=config.initializer_range,
          max_position_embeddings=config.max_position_embeddings,
          dropout_prob=config.hidden_dropout_prob,
          options=options)

  def get_pooled_output(self):
    """Returns float32 [batch, hidden], the pooler's view of token 0."""
    return self.pooled_output

  def get_sequence_output(self):
    """Returns float32 [batch, seq, hidden], the last layer."""
    return self.sequence_output

  def get_all_encoder_layers(self):
    """Returns a list of float32 [batch, seq, hidden], first layer first."""
    return self.all_encoder_layers

  def get_word_embedding_output(self):
    """Returns float32 [batch, seq, hidden], rows of the word table only."""
    return self.word_embedding_output

  def get_embedding_output(self):
    """Returns float32 [batch, seq, hidden], what the first layer is given."""
    return self.embedding_output

  def get_embedding_table(self):
    """Returns the variable [vocab, hidden] of word embeddings."""
    return self.embedding_table


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


def _multiply(a, b, dtype, transpose_b=False):
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
  width = input_matrix.shape.as_list()[-1]
  with tf.variable_scope(name):
    kernel = tf.get_variable("kernel", [width, units], initializer=initializer)
    bias = tf.get_variable("bias", [units],
                           initializer=tf.zeros_initializer())
    output = tf.nn.bias_add(_multiply(input_matrix, kernel, matmul_dtype), bias)
  return output if activation is None else activation(output)


def layer_norm(input_tensor, name=None):
  """Normalizes the last dimension, epsilon 1e-12 (Ba et al., 1607.06450).

  Args:
    input_tensor: float tensor; its last dimension is static.
    name: variable scope of `beta` and `gamma`, "LayerNorm" by default.

  Returns:
    Tensor of the same shape: gamma * (x - mean) / sqrt(variance + 1e-12) +
    beta, with the biased variance.
  """
  width = input_tensor.shape.as_list()[-1]
  with tf.variable_scope(name, default_name="LayerNorm"):
    beta = tf.get_variable("beta", [width],
                           initializer=tf.zeros_initializer())
    gamma = tf.get_variable("gamma", [width],
                            initializer=tf.ones_initializer())
    centered = input_tensor - tf.reduce_mean(input_tensor, -1, keepdims=True)
    variance = tf.reduce_mean(tf.square(centered), -1, keepdims=True)
    return centered * tf.rsqrt(variance + 1e-12) * gamma + beta


def layer_norm_and_dropout(input_tensor, dropout_prob, name=None, *, key=None):
  """Returns dropout(layer_norm(input_tensor))."""
  return dropout(layer_norm(input_tensor, name), dropout_prob, key=key)


def _step_read_once(options):
  """Returns options whose step, if a variable, was read into one tensor."""
  options = options or ModelOptions()
  key = options.dropout_key
  if key is None:
    return options
  step = tf.cast(tf.convert_to_tensor(key.step), tf.int64)
  return options._replace(dropout_key=key._replace(step=step))


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


def dropout(input_tensor, dropout_prob, *, key=None, name="dropout"):
  """Zeroes each value with a probability and scales the others up.

  Args:
    input_tensor: float tensor.
    dropout_prob: float in [0, 1), the probability of zero (not of keeping);
      0 or None returns the input.
    key: `DropoutKey` or None; see `ModelOptions`.
    name: tells apart the masks of one variable scope.

  Returns:
    Tensor of the same shape; the expectation of each value is the input's.
  """
  if not dropout_prob:
    return input_tensor
  if key is None:
    return tf.nn.dropout(input_tensor, rate=dropout_prob)
  # The older operation: the newer one's numbers are others under XLA.
  uniform = tf.raw_ops.StatelessRandomUniform(
      shape=tf.shape(input_tensor), seed=_mask_seed(key, name))
  mask = tf.cast(uniform >= dropout_prob, input_tensor.dtype)
  return input_tensor * (mask * (1.0 / (1.0 - dropout_prob)))


# Embeddings -----------------------------------------------------------------


def embedding_lookup(input_ids,
                     vocab_size,
                     embedding_size=128,
                     initializer_range=0.02,
                     word_embedding_name="word_embeddings",
                     use_one_hot_embeddings=False):
  """Looks up the word embeddings.

  Args:
    input_ids: int32 [batch, seq] or [batch, seq, inputs].
    vocab_size: int.
    embedding_size: int.
    initializer_range: float.
    word_embedding_name: name of the table's variable.
    use_one_hot_embeddings: bool, product with one-hot rows or gather.

  Returns:
    (float [batch, seq, inputs * embedding_size], table [vocab_size,
    embedding_size]).
  """
  shape = get_shape_list(input_ids)
  inputs = 1 if len(shape) == 2 else shape[-1]
  table = tf.get_variable(
      word_embedding_name, [vocab_size, embedding_size],
      initializer=create_initializer(initializer_range))
  flat_ids = tf.reshape(input_ids, [-1])
  if use_one_hot_embeddings:
    output = tf.matmul(tf.one_hot(flat_ids, depth=vocab_size), table)
  else:
    output = tf.nn.embedding_lookup(table, flat_ids)
  return tf.reshape(output, shape[:2] + [inputs * embedding_size]), table


def embedding_postprocessor(input_tensor,
                            use_token_type=False,
                            token_type_ids=None,
                            token_type_vocab_size=16,
                            token_type_embedding_name="token_type_embeddings",
                            use_position_embeddings=True,
                            position_embedding_name="position_embeddings",
                            initializer_range=0.02,
                            max_position_embeddings=512,
                            dropout_prob=0.1,
                            *,
                            options=None):
  """Adds segment and position embeddings; layer norm; dropout.

  Args:
    input_tensor: float [batch, seq, width].
    use_token_type: bool, whether to add segment embeddings.
    token_type_ids: int32 [batch, seq], needed by `use_token_type`.
    token_type_vocab_size: int.
    token_type_embedding_name: name of that table's variable.
    use_position_embeddings: bool.
    position_embedding_name: name of that table's variable.
    initializer_range: float.
    max_position_embeddings: int, rows of the position table.
    dropout_prob: float.
    options: `ModelOptions`.

  Returns:
    float [batch, seq, width].

  Raises:
    ValueError: if `token_type_ids` is missing, or seq, where it is static,
      exceeds `max_position_embeddings`.
  """
  shape = get_shape_list(input_tensor, expected_rank=3)
  width = shape[2]
  output = input_tensor
  if use_token_type:
    if token_type_ids is None:
      raise ValueError("`token_type_ids` must be specified if "
                       "`use_token_type` is True.")
    table = tf.get_variable(
        token_type_embedding_name, [token_type_vocab_size, width],
        initializer=create_initializer(initializer_range))
    # The table has a few rows: this product and its gradient are cheaper than
    # a gather and a scatter of as many rows as tokens.
    one_hot = tf.one_hot(tf.reshape(token_type_ids, [-1]),
                         depth=token_type_vocab_size)
    output += tf.reshape(tf.matmul(one_hot, table), shape)
  if use_position_embeddings:
    table = tf.get_variable(
        position_embedding_name, [max_position_embeddings, width],
        initializer=create_initializer(initializer_range))
    length = _checked_length(shape[1], max_position_embeddings)
    output += tf.slice(table, [0, 0], [length, -1])
  key = options.dropout_key if options else None
  return layer_norm_and_dropout(output, dropout_prob, key=key)


def _checked_length(seq_length, limit):
  """Returns `seq_length`, an int or a tensor, that must not exceed `limit`."""
  if isinstance(seq_length, int):
    if seq_length > limit:
      raise ValueError("The sequence length %d exceeds the model's %d position "
                       "embeddings" % (seq_length, limit))
    return seq_length
  check = tf.assert_less_equal(
      seq_length, limit, message="sequence longer than position embeddings")
  with tf.control_dependencies([check]):
    return tf.identity(seq_length)


# Encoder --------------------------------------------------------------------


def create_attention_mask_from_input_mask(from_tensor, to_mask):
  """Returns float [batch, from_seq, to_seq], `to_mask` for each position.

  Args:
    from_tensor: [batch, from_seq, ...], for its shape only.
    to_mask: int32 [batch, to_seq].
  """
  batch_size, from_length = get_shape_list(from_tensor, [2, 3])[:2]
  ones = tf.ones([batch_size, from_length, 1], tf.float32)
  return ones * _key_mask(to_mask)


def _key_mask(to_mask):
  """Returns float [batch, 1, to_seq] from [batch, to_seq]; None from None."""
  if to_mask is None:
    return None
  assert_rank(to_mask, 2)
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

  The one place to put a fused kernel.

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
  scores = _multiply(query * scale, key, dtype, transpose_b=True)
  if bias is not None:
    scores += bias
  probabilities = dropout(tf.nn.softmax(scores), dropout_prob,
                          key=options.dropout_key)
  return tf.transpose(_multiply(probabilities, value, dtype), [0, 2, 1, 3])


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
                    attention_bias=None,
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
    attention_bias: instead of a mask, what to add to the scores: float,
      broadcast to [batch, heads, from_seq, to_seq]. Made once, it serves all
      layers.
    options: `ModelOptions`.

  Returns:
    float [batch, from_seq, heads, size_per_head].

  Raises:
    ValueError: if the ranks differ, or matrices come without their lengths.
  """
  from_shape = get_shape_list(from_tensor, expected_rank=[2, 3])
  to_shape = get_shape_list(to_tensor, expected_rank=[2, 3])
  if len(from_shape) != len(to_shape):
    raise ValueError(
        "The rank of `from_tensor` must match the rank of `to_tensor`.")
  if len(from_shape) == 3:
    batch_size, from_seq_length = from_shape[:2]
    to_seq_length = to_shape[1]
  elif batch_size is None or from_seq_length is None or to_seq_length is None:
    raise ValueError("Rank 2 tensors need `batch_size`, `from_seq_length` and "
                     "`to_seq_length`.")
  options = options or ModelOptions()

  def project(tensor, length, activation, name):
    matrix = dense(reshape_to_matrix(tensor),
                   num_attention_heads * size_per_head,
                   create_initializer(initializer_range), activation, name,
                   matmul_dtype=options.matmul_dtype)
    return _split_heads(matrix, batch_size, length, num_attention_heads,
                        size_per_head)

  query = project(from_tensor, from_seq_length, query_act, "query")
  key = project(to_tensor, to_seq_length, key_act, "key")
  value = project(to_tensor, to_seq_length, value_act, "value")
  if attention_bias is None:
    attention_bias = _mask_to_bias(attention_mask)
  return _attend(query, key, value, attention_bias,
                 attention_probs_dropout_prob, options)


def transformer_model(input_tensor,
                      attention_mask=None,
                      hidden_size=768,
                      num_hidden_layers=12,
                      num_attention_heads=12,
                      intermediate_size=3072,
                      intermediate_act_fn=gelu,
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
  if hidden_size % num_attention_heads != 0:
    raise ValueError("The hidden size (%d) is not a multiple of the number of "
                     "attention heads (%d)"
                     % (hidden_size, num_attention_heads))
  shape = get_shape_list(input_tensor, expected_rank=3)
  if shape[2] != hidden_size:
    raise ValueError("The width of the input tensor (%d) != hidden size (%d)"
                     % (shape[2], hidden_size))
  initializer = create_initializer(initializer_range)
  options = options or ModelOptions()
  bias = _mask_to_bias(attention_mask)

  def attention(matrix):
    context = attention_layer(
        matrix, matrix,
        num_attention_heads=num_attention_heads,
        size_per_head=hidden_size // num_attention_heads,
        attention_probs_dropout_prob=attention_probs_dropout_prob,
        initializer_range=initializer_range,
        batch_size=shape[0], from_seq_length=shape[1], to_seq_length=shape[1],
        attention_bias=bias, options=options)
    return tf.reshape(context, [-1, hidden_size])

  def add_and_norm(matrix, residual):
    output = dense(matrix, hidden_size, initializer,
                   matmul_dtype=options.matmul_dtype)
    output = dropout(output, hidden_dropout_prob, key=options.dropout_key)
    return layer_norm(output + residual)

  matrix = reshape_to_matrix(input_tensor)
  layers = []
  for index in range(num_hidden_layers):
    with tf.variable_scope("layer_%d" % index):
      with tf.variable_scope("attention"):
        with tf.variable_scope("self"):
          context = attention(matrix)
        with tf.variable_scope("output"):
          attended = add_and_norm(context, matrix)
      with tf.variable_scope("intermediate"):
        inner = dense(attended, intermediate_size, initializer,
                      intermediate_act_fn, matmul_dtype=options.matmul_dtype)
      with tf.variable_scope("output"):
        matrix = add_and_norm(inner, attended)
    layers.append(matrix)
  if not do_return_all_layers:
    return tf.reshape(matrix, shape)
  return [tf.reshape(layer, shape) for layer in layers]


# Checkpoints and shapes -----------------------------------------------------


def get_assignment_map_from_checkpoint(tvars, init_checkpoint):
  """Finds the variables that both the model and a checkpoint have.

  Args:
    tvars: list of variables.
    init_checkpoint: prefix of a checkpoint.

  Returns:
    (OrderedDict from name to name for `tf.train.init_from_checkpoint`, dict
    whose keys are those names with and without ":0").
  """
  model_names = set(re.sub(r":\d+$", "", var.name) for var in tvars)
  assignment_map = collections.OrderedDict()
  initialized = {}
  for name, _ in tf.train.list_variables(init_checkpoint):
    if name in model_names:
      assignment_map[name] = name
      initialized[name] = 1
      initialized[name + ":0"] = 1
  return assignment_map, initialized


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
