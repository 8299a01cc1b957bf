"""What describes a model: `modeling.BertConfig` and `modeling.ModelOptions`."""

import copy
import json
import typing

import tensorflow.compat.v1 as tf

from encoder import layers
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
    remove_padding: bool, whether to compute on the tokens of `input_mask`
      alone. Tokens get what they get with padding; padding is 0 where a getter
      returns it. A sequence without any token is 0 as well.
    row_buckets: int, for XLA: to how many different numbers of tokens they are
      rounded up; None for what there is.
    fused_ops: bool, whether to take the kernels of `fused_ops`.
  """
  dropout_key: typing.Optional[DropoutKey] = None
  matmul_dtype: typing.Optional[tf.DType] = None
  remove_padding: bool = False
  row_buckets: typing.Optional[int] = None
  fused_ops: bool = False


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
      layers.get_activation(self.hidden_act)
    except ValueError as error:
      return str(error)
    return None

  def to_dict(self):
    """Returns the config as a dict that shares nothing with it."""
    return copy.deepcopy(self.__dict__)

  def to_json_string(self):
    """Returns the config as JSON, keys sorted, with a newline at the end."""
    return json.dumps(self.to_dict(), indent=2, sort_keys=True) + "\n"
