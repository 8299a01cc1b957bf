"""BERT's configuration and encoder (Devlin et al., arXiv 1810.04805).

The names, arguments and results are those of Google's published `modeling`,
the variables those of its published checkpoints. Two things differ inside:

* Between the embeddings and the heads a matrix [tokens, hidden] travels. Only
  attention knows which rows form a sequence, so that padding needs no rows
  (`ModelOptions.remove_padding`).
* Dropout can be keyed (`DropoutKey`): the masks of a step are then a pure
  function of the key, so that a resumed run repeats them.

What the graph is made of lies in `encoder`; its public names are here.
"""

import collections
import copy
import re

import tensorflow.compat.v1 as tf

# pylint: disable=unused-import
from encoder.attention import attention_layer
from encoder.attention import create_attention_mask_from_input_mask
from encoder.attention import encode
from encoder.attention import Layer
from encoder.attention import transformer_model
from encoder.config import BertConfig
from encoder.config import DropoutKey
from encoder.config import ModelOptions
from encoder.layers import assert_rank
from encoder.layers import create_initializer
from encoder.layers import dense
from encoder.layers import dropout
from encoder.layers import gelu
from encoder.layers import gelu_exact
from encoder.layers import get_activation
from encoder.layers import get_shape_list
from encoder.layers import layer_norm
from encoder.layers import layer_norm_and_dropout
from encoder.layers import reshape_from_matrix
from encoder.layers import reshape_to_matrix
from fused_ops import sequences as rows_of


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
    if options.remove_padding and input_mask is not None:
      self.sequences = rows_of.of_tokens(
          batch_size,
          _checked_length(seq_length, config.max_position_embeddings),
          input_mask, options.row_buckets)
    else:
      self.sequences = rows_of.of_positions(batch_size, seq_length, input_mask)
    with tf.variable_scope(scope, default_name="bert"):
      self._build_embeddings(config, input_ids, token_type_ids,
                             use_one_hot_embeddings, options)
      with tf.variable_scope("encoder"):
        self._layers = encode(
            self._embeddings, self.sequences, config.num_hidden_layers, Layer(
                config.num_attention_heads, config.intermediate_size,
                get_activation(config.hidden_act), config.hidden_dropout_prob,
                config.attention_probs_dropout_prob, config.initializer_range,
                options))
      with tf.variable_scope("pooler"):
        self.pooled_output = dense(
            self.vectors_at(tf.zeros([batch_size, 1], tf.int32)),
            config.hidden_size, create_initializer(config.initializer_range),
            tf.tanh, matmul_dtype=options.matmul_dtype)

  def _build_embeddings(self, config, input_ids, token_type_ids,
                        use_one_hot_embeddings, options):
    """Makes what the first layer is given, and the word table."""
    positions = rows_of.positions(self.sequences)
    if positions is not None:  # the tokens of all sequences, as one
      input_ids, token_type_ids, positions = [
          tf.expand_dims(rows, 0) for rows in (
              rows_of.pack(self.sequences, input_ids),
              rows_of.pack(self.sequences, token_type_ids), positions)]
    with tf.variable_scope("embeddings"):
      words, self.embedding_table = embedding_lookup(
          input_ids=input_ids,
          vocab_size=config.vocab_size,
          embedding_size=config.hidden_size,
          initializer_range=config.initializer_range,
          word_embedding_name="word_embeddings",
          use_one_hot_embeddings=use_one_hot_embeddings)
      embeddings = embedding_postprocessor(
          input_tensor=words,
          use_token_type=True,
          token_type_ids=token_type_ids,
          token_type_vocab_size=config.type_vocab_size,
          token_type_embedding_name="token_type_embeddings",
          use_position_embeddings=True,
          position_embedding_name="position_embeddings",
          initializer_range=config.initializer_range,
          max_position_embeddings=config.max_position_embeddings,
          dropout_prob=config.hidden_dropout_prob,
          positions=positions,
          rows=self.sequences.count,
          options=options)
    self._words = words
    self._embeddings = reshape_to_matrix(embeddings)

  @property
  def token_output(self):
    """float32 [tokens, hidden], the last layer; see `sequences` for the rows.

    With padding removed the heads should take it: `get_sequence_output` moves
    all rows back to their places.
    """
    return self._layers[-1]

  def vectors_at(self, positions):
    """Returns rows of the last layer, float32 [batch * k, hidden].

    Args:
      positions: int32 [batch, k], of tokens.
    """
    offsets = tf.expand_dims(
        tf.range(self.sequences.batch) * self.sequences.length, 1)
    rows = rows_of.rows_at(self.sequences,
                           tf.reshape(positions + offsets, [-1]))
    return rows_of.take(self.token_output, rows)

  def get_pooled_output(self):
    """Returns float32 [batch, hidden], the pooler's view of token 0."""
    return self.pooled_output

  def get_sequence_output(self):
    """Returns float32 [batch, seq, hidden], the last layer."""
    return rows_of.pad(self.sequences, self.token_output)

  def get_all_encoder_layers(self):
    """Returns a list of float32 [batch, seq, hidden], first layer first."""
    return [rows_of.pad(self.sequences, rows) for rows in self._layers]

  def get_word_embedding_output(self):
    """Returns float32 [batch, seq, hidden], rows of the word table only."""
    return rows_of.pad(self.sequences, reshape_to_matrix(self._words))

  def get_embedding_output(self):
    """Returns float32 [batch, seq, hidden], what the first layer is given."""
    return rows_of.pad(self.sequences, self._embeddings)

  def get_embedding_table(self):
    """Returns the variable [vocab, hidden] of word embeddings."""
    return self.embedding_table


def _step_read_once(options):
  """Returns options whose step, if a variable, was read into one tensor."""
  options = options or ModelOptions()
  key = options.dropout_key
  if key is None:
    return options
  step = tf.cast(tf.convert_to_tensor(key.step), tf.int64)
  return options._replace(dropout_key=key._replace(step=step))


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
                            positions=None,
                            rows=None,
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
    positions: int32 [batch, seq], below `max_position_embeddings`; 0 to seq - 1
      in each sequence when None.
    rows: see `dropout`.
    options: `ModelOptions`.

  Returns:
    float [batch, seq, width].

  Raises:
    ValueError: if `token_type_ids` is missing, or seq, where it is static,
      exceeds `max_position_embeddings`.
  """
  shape = get_shape_list(input_tensor, expected_rank=3)
  output = input_tensor
  if use_token_type:
    if token_type_ids is None:
      raise ValueError("`token_type_ids` must be specified if "
                       "`use_token_type` is True.")
    table = tf.get_variable(
        token_type_embedding_name, [token_type_vocab_size, shape[2]],
        initializer=create_initializer(initializer_range))
    output += tf.reshape(_rows_of_short_table(table, token_type_ids), shape)
  if use_position_embeddings:
    table = tf.get_variable(
        position_embedding_name, [max_position_embeddings, shape[2]],
        initializer=create_initializer(initializer_range))
    if positions is None:
      length = _checked_length(shape[1], max_position_embeddings)
      output += tf.slice(table, [0, 0], [length, -1])
    else:
      output += tf.gather(table, positions)
  key = options.dropout_key if options else None
  return layer_norm_and_dropout(output, dropout_prob, key=key, rows=rows)


def _rows_of_short_table(table, ids):
  """Returns the rows [tokens, width] of a table of a few.

  This product and its gradient are cheaper than a gather and a scatter of as
  many rows as tokens.
  """
  return tf.matmul(tf.one_hot(tf.reshape(ids, [-1]), depth=table.shape[0]),
                   table)


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


# Checkpoints ----------------------------------------------------------------


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
