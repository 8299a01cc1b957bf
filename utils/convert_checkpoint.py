"""Turns Hugging Face BERT weights into a TF1 checkpoint, and back.

  python utils/convert_checkpoint.py --to=tf --input=HF_FOLDER --output_dir=DIR
  python utils/convert_checkpoint.py --to=safetensors --input=CHECKPOINT \
      --output_dir=DIR

HF_FOLDER holds config.json, *.safetensors and vocab.txt or tokenizer.json;
CHECKPOINT is a prefix or a folder with bert_config.json and vocab.txt beside
it. DIR then holds what the other side wants: bert_model.ckpt.*,
bert_config.json, vocab.txt; or model.safetensors, config.json, vocab.txt. The
numbers are the same bits (16-bit ones are widened to float32). Heads (masked
LM, next sentence, question answering) go along where they are present; tensors
that have no counterpart are listed. Tensors, config and vocabulary that do not
belong together are refused.
"""

import glob
import os
import re
import sys

if __name__ == "__main__":
  # Python put the folder of this file here; modules are named from the root.
  sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

# pylint: disable=wrong-import-position
from absl import flags
import numpy as np
import safetensors
import safetensors.numpy

# Before TensorFlow, which it keeps quiet.
from utils import stack
import tensorflow.compat.v1 as tf

import modeling
import tokenization
from utils import checkpoints
from utils import errors
from utils import files
from utils import logs
from utils.errors import UserError
from utils.logs import LOGGER

FLAGS = flags.FLAGS

CHECKPOINT_NAME = "bert_model.ckpt"

# One size or rate, the same name on both sides.
_CONFIG_KEYS = (
    "attention_probs_dropout_prob", "hidden_act", "hidden_dropout_prob",
    "hidden_size", "initializer_range", "intermediate_size",
    "max_position_embeddings", "num_attention_heads", "num_hidden_layers",
    "type_vocab_size", "vocab_size")
# Hugging Face calls the erf form "gelu"; Google's code calls the tanh form so.
_ACT_TO_TF = {"gelu": "gelu_exact", "gelu_new": "gelu",
              "gelu_pytorch_tanh": "gelu", "relu": "relu"}
_ACT_TO_HF = {"gelu_exact": "gelu", "gelu": "gelu_new", "relu": "relu"}

# Modules: TF name, Hugging Face name.
_NORM, _DENSE = "norm", "dense"
_EMBEDDINGS = ("word_embeddings", "position_embeddings",
               "token_type_embeddings")
_LAYER_MODULES = (
    ("attention/self/query", _DENSE), ("attention/self/key", _DENSE),
    ("attention/self/value", _DENSE), ("attention/output/dense", _DENSE),
    ("attention/output/LayerNorm", _NORM), ("intermediate/dense", _DENSE),
    ("output/dense", _DENSE), ("output/LayerNorm", _NORM))
_HEADS = (
    ("cls/predictions/output_bias", "cls.predictions.bias", False),
    ("cls/seq_relationship/output_weights", "cls.seq_relationship.weight",
     False),
    ("cls/seq_relationship/output_bias", "cls.seq_relationship.bias", False),
    ("cls/squad/output_weights", "qa_outputs.weight", False),
    ("cls/squad/output_bias", "qa_outputs.bias", False))
# Whole or not there at all; but for these two, which must be there.
_ENCODER = ("bert/embeddings", "bert/encoder")
# Buffers.
_IGNORED_HF = re.compile(r"(^|\.)position_ids$|(^|\.)token_type_ids$")
# The same memory under a second name: copy, original, what messages call it.
_COPIES_HF = (
    ("cls.predictions.decoder.weight", "embeddings.word_embeddings.weight",
     "the word embeddings"),
    ("cls.predictions.decoder.bias", "cls.predictions.bias",
     "cls.predictions.bias"))
_IGNORED_TF = re.compile(r"/adam_[mv]$|^global_step$|^records_consumed$")


def _module(tf_name, hf_name, kind):
  """Returns the (tf, hf, transposed) rows of a dense layer or layer norm."""
  if kind == _NORM:
    return [(tf_name + "/gamma", hf_name + ".weight", False),
            (tf_name + "/beta", hf_name + ".bias", False)]
  return [(tf_name + "/kernel", hf_name + ".weight", True),
          (tf_name + "/bias", hf_name + ".bias", False)]


def name_table(num_layers):
  """Returns rows (TF name, Hugging Face name, whether it is transposed).

  Hugging Face's names are without the "bert." that models with heads have.
  """
  rows = [("bert/embeddings/" + name, "embeddings.%s.weight" % name, False)
          for name in _EMBEDDINGS]
  rows += _module("bert/embeddings/LayerNorm", "embeddings.LayerNorm", _NORM)
  for layer in range(num_layers):
    for name, kind in _LAYER_MODULES:
      rows += _module("bert/encoder/layer_%d/%s" % (layer, name),
                      "encoder.layer.%d.%s" % (layer, name.replace("/", ".")),
                      kind)
  rows += _module("bert/pooler/dense", "pooler.dense", _DENSE)
  rows += _module("cls/predictions/transform/dense",
                  "cls.predictions.transform.dense", _DENSE)
  rows += _module("cls/predictions/transform/LayerNorm",
                  "cls.predictions.transform.LayerNorm", _NORM)
  return rows + list(_HEADS)


def shape_of(name, config):
  """Returns the shape (list of int) of the TF variable `name`.

  Args:
    name: one of `name_table`'s TF names.
    config: dict of sizes.
  """
  hidden, inner = config["hidden_size"], config["intermediate_size"]
  kind = name.rsplit("/", 1)[-1]
  if name == "cls/predictions/output_bias":
    return [config["vocab_size"]]
  if "/intermediate/" in name:
    return [hidden, inner] if kind == "kernel" else [inner]
  if re.search(r"layer_\d+/output/dense/kernel$", name):
    return [inner, hidden]
  return {
      "word_embeddings": [config["vocab_size"], hidden],
      "position_embeddings": [config["max_position_embeddings"], hidden],
      "token_type_embeddings": [config["type_vocab_size"], hidden],
      "kernel": [hidden, hidden],
      "output_weights": [2, hidden],
      "output_bias": [2],
  }.get(kind, [hidden])


# Reading and writing either format ------------------------------------------


def _as_float32(name, info):
  """Returns a tensor of a safetensors file as float32 array."""
  data, shape = info["data"], info["shape"]
  if info["dtype"] == "BF16":
    # The upper half of a float32.
    wide = np.frombuffer(data, "<u2").astype("<u4") << 16
    return wide.view("<f4").reshape(shape)
  types = {"F32": "<f4", "F16": "<f2", "F64": "<f8"}
  if info["dtype"] not in types:
    raise UserError("tensor %s has type %s: expected floating point numbers"
                    % (name, info["dtype"]))
  return np.frombuffer(data, types[info["dtype"]]).astype("<f4").reshape(shape)


def read_safetensors(folder):
  """Returns {name: float32 array} of a folder's *.safetensors files.

  Names lose a leading "bert."; the older LayerNorm.gamma and .beta get their
  present names; buffers and copies are left out.

  Raises:
    UserError: if there is no such file, or one is broken.
  """
  paths = sorted(glob.glob(os.path.join(glob.escape(folder), "*.safetensors")))
  if not paths:
    raise UserError("--input: no *.safetensors in %s" % folder)
  tensors = {}
  for path in paths:
    try:
      with open(path, "rb") as stream:
        content = safetensors.deserialize(stream.read())
    except (OSError, safetensors.SafetensorError) as error:
      raise UserError("--input: cannot read %s (%s)" % (path, error))
    for name, info in content:
      name = re.sub(r"^bert\.", "", name)
      name = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", name)
      name = re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name)
      if _IGNORED_HF.search(name):
        continue
      if name in tensors:
        raise UserError("--input: %s has the tensor %s twice (under two names "
                        "or in two files)" % (folder, name))
      tensors[name] = _as_float32(name, info)
  _drop_copies(tensors, folder)
  return tensors


def _drop_copies(tensors, folder):
  for copy, original, what in _COPIES_HF:
    if copy not in tensors:
      continue
    value = tensors.pop(copy)
    # A file may hold either name.
    if not np.array_equal(tensors.setdefault(original, value), value):
      raise UserError("--input: %s: %s is not a copy of %s: BERT's masked-LM "
                      "head shares it, so this model cannot be converted"
                      % (folder, copy, what))


def read_checkpoint(prefix):
  """Returns {name: array} of a TF checkpoint, without slots and counters."""
  checkpoints.verify(prefix)
  reader = tf.train.load_checkpoint(prefix)
  return {name: reader.get_tensor(name)
          for name in sorted(reader.get_variable_to_shape_map())
          if not _IGNORED_TF.search(name)}


def write_checkpoint(prefix, arrays):
  """Writes {name: array} as a TF checkpoint under `prefix`."""
  names = sorted(arrays)
  with tf.Graph().as_default(), tf.Session() as session:
    # Fed, since a graph with constants must stay below 2 GB.
    inputs = [tf.placeholder(arrays[name].dtype, arrays[name].shape)
              for name in names]
    save = tf.raw_ops.SaveV2(prefix=prefix, tensor_names=names,
                             shape_and_slices=[""] * len(names),
                             tensors=inputs)
    session.run(save, {tensor: arrays[name]
                       for tensor, name in zip(inputs, names)})


# Conversion -----------------------------------------------------------------


def _part(tf_name):
  return "/".join(tf_name.split("/")[:2])


def _check_names(arrays, sources, num_layers, place):
  """Raises UserError if tensors are missing, or are of further layers.

  Args:
    arrays: {name: array}.
    sources: {TF name: name in `arrays`} of all that has a counterpart.
    num_layers: int, what the config says.
    place: where the arrays are from.
  """
  needed = set(_ENCODER).union(
      _part(name) for name, source in sources.items() if source in arrays)
  missing = [source for name, source in sources.items()
             if source not in arrays and _part(name) in needed]
  if missing:
    raise UserError("--input: %s lacks %d tensors: %s: is it a whole BERT?"
                    % (place, len(missing), ", ".join(missing[:5])))
  for name in sorted(set(arrays) - set(sources.values())):
    if re.match(r"(bert/)?encoder[/.]layer", name):
      raise UserError("--input: %s holds %s, but its config's "
                      "num_hidden_layers is %d: they do not belong together"
                      % (place, name, num_layers))


def rename(arrays, config, to_tf, place):
  """Renames and transposes arrays from one side to the other.

  Args:
    arrays: {name: array}.
    config: dict of sizes.
    to_tf: bool, the direction.
    place: where the arrays are from, for messages.

  Returns:
    ({name: array}, names without a counterpart).

  Raises:
    UserError: if arrays are missing, or do not belong to the config.
  """
  rows = name_table(config["num_hidden_layers"])
  sources = {row[0]: row[1] if to_tf else row[0] for row in rows}
  _check_names(arrays, sources, config["num_hidden_layers"], place)
  renamed = {}
  for tf_name, hf_name, transposed in rows:
    source = sources[tf_name]
    if source not in arrays:
      continue
    array, wanted = arrays[source], shape_of(tf_name, config)
    if transposed and to_tf:
      wanted = wanted[::-1]
    if list(array.shape) != wanted:
      raise UserError("--input: %s: %s has shape %s where the config wants %s: "
                      "they do not belong together"
                      % (place, source, list(array.shape), wanted))
    renamed[tf_name if to_tf else hf_name] = np.ascontiguousarray(
        array.T if transposed else array)
  return renamed, sorted(set(arrays) - set(sources.values()))


def _read_config(path, flag):
  """Returns the dict of a config that has all sizes and rates."""
  config = files.read_json(path, "--" + flag)
  if not isinstance(config, dict):
    raise UserError("--%s: %s does not hold a JSON object" % (flag, path))
  missing = [key for key in _CONFIG_KEYS if key not in config]
  if missing:
    raise UserError("--%s: %s lacks %s" % (flag, path, ", ".join(missing)))
  return config


def _convert_config(config, activations, path):
  """Returns the sizes and rates, the activation under its other name."""
  result = {key: config[key] for key in _CONFIG_KEYS}
  act = config["hidden_act"]
  if not isinstance(act, str) or act not in activations:
    raise UserError("%s: hidden_act %r has no counterpart" % (path, act))
  fault = modeling.BertConfig.from_dict(
      dict(result, hidden_act="gelu")).fault()
  if fault:
    raise UserError("%s: %s" % (path, fault))
  result["hidden_act"] = activations[act]
  return result


def config_to_tf(path):
  """Returns Google's bert_config (dict) from a Hugging Face config.json.

  Raises:
    UserError: if it is none, or the encoder cannot compute what it asks for.
  """
  config = _read_config(path, "input")
  fixed = (("model_type", "bert"), ("position_embedding_type", "absolute"),
           ("layer_norm_eps", 1e-12), ("is_decoder", False))
  for key, value in fixed:
    if config.get(key, value) != value:
      raise UserError("%s: %s is %r; only %r can be converted"
                      % (path, key, config[key], value))
  return _convert_config(config, _ACT_TO_TF, path)


def config_to_hf(path):
  """Returns a Hugging Face config (dict) from Google's bert_config.json.

  Raises:
    UserError: if it is none.
  """
  config = _read_config(path, "bert_config_file")
  return dict(_convert_config(config, _ACT_TO_HF, path), model_type="bert",
              layer_norm_eps=1e-12, position_embedding_type="absolute",
              pad_token_id=0)


def _architecture(heads):
  """Returns Hugging Face's name of the model with these head tensors."""
  if any(name.startswith("qa_outputs") for name in heads):
    return "BertForQuestionAnswering"
  return "BertForPreTraining" if heads else "BertModel"


# Vocabularies ---------------------------------------------------------------


def _pieces_of_tokenizer(path):
  """Returns the tokens of a tokenizer.json in the order of their ids.

  Raises:
    UserError: if they cannot be the lines of a vocabulary.
  """
  content = files.read_json(path, "--input")
  model = content.get("model") if isinstance(content, dict) else None
  ids = model.get("vocab") if isinstance(model, dict) else None
  if (not ids or not isinstance(ids, dict)
      or model.get("type", "WordPiece") != "WordPiece"):
    raise UserError("--input: %s holds no WordPiece vocabulary" % path)
  by_id = {}
  for piece, index in ids.items():
    if not isinstance(index, int) or isinstance(index, bool):
      raise UserError("--input: %s: the id of %r is %r: a whole number is "
                      "wanted" % (path, piece, index))
    if index in by_id:
      raise UserError("--input: %s: %s and %s have the same id %d"
                      % (path, by_id[index], piece, index))
    if not piece or piece != piece.strip() or "\n" in piece:
      raise UserError("--input: %s: the token %r cannot be a line of vocab.txt"
                      % (path, piece))
    by_id[index] = piece
  for index in range(len(by_id)):
    if index not in by_id:
      raise UserError("--input: %s: no token has the id %d, though there are "
                      "%d: a vocabulary has no gaps"
                      % (path, index, len(by_id)))
  return [by_id[index] for index in range(len(by_id))]


def _vocabulary(folder, config):
  """Returns the vocabulary of a Hugging Face folder as bytes of vocab.txt."""
  path = os.path.join(folder, "vocab.txt")
  if os.path.exists(path):
    return read_vocab(path, config)
  path = os.path.join(folder, "tokenizer.json")
  if not os.path.exists(path):
    raise UserError("--input: neither vocab.txt nor tokenizer.json in %s"
                    % folder)
  pieces = _pieces_of_tokenizer(path)
  _check_size(pieces, config, path)
  return "".join("%s\n" % piece for piece in pieces).encode("utf-8")


def read_vocab(path, config):
  """Returns the bytes of a vocabulary that suits a config (dict)."""
  _check_size(tokenization.load_vocab(path), config, path)
  with open(path, "rb") as stream:
    return stream.read()


def _check_size(tokens, config, path):
  """Raises UserError unless every row of the word table has a token.

  But for padding: tables are often padded to a multiple of 8.
  """
  rows, spare = config["vocab_size"], config["vocab_size"] - len(tokens)
  if not spare:
    return
  if not 0 < spare < 1024 or rows % 8:
    raise UserError("%s has %d tokens, but vocab_size is %d: they do not "
                    "belong together" % (path, len(tokens), rows))
  LOGGER.warning("%s has %d tokens for %d rows of the word table: the last %d "
                 "are taken for padding", path, len(tokens), rows, spare)


# ----------------------------------------------------------------------------


def to_tf(folder, output_dir):
  """Converts a Hugging Face folder; returns (written names, left-out names).

  Raises:
    UserError: if the folder does not hold a whole BERT encoder, or its parts
      do not belong together.
  """
  config = config_to_tf(os.path.join(folder, "config.json"))
  vocabulary = _vocabulary(folder, config)
  arrays, unknown = rename(read_safetensors(folder), config, True, folder)
  write_checkpoint(os.path.join(output_dir, CHECKPOINT_NAME), arrays)
  files.write_json(os.path.join(output_dir, "bert_config.json"), config)
  _write(output_dir, "vocab.txt", vocabulary)
  return sorted(arrays), unknown


def to_safetensors(prefix, output_dir, config_file, vocab_file):
  """Converts a TF checkpoint; returns (written names, left-out names).

  A checkpoint with heads gets the names that Hugging Face's models with heads
  have ("bert." before the encoder's), one without those of its BertModel.

  Raises:
    UserError: if the checkpoint does not hold a whole BERT encoder, or does
      not belong to the config or vocabulary.
  """
  config = config_to_hf(config_file)
  vocabulary = read_vocab(vocab_file, config)
  arrays, unknown = rename(read_checkpoint(prefix), config, False, prefix)
  heads = [name for name in arrays if name.startswith(("cls.", "qa_outputs"))]
  if heads:
    arrays = {name if name in heads else "bert." + name: array
              for name, array in arrays.items()}
  config["architectures"] = [_architecture(heads)]
  _write(output_dir, "model.safetensors",
         safetensors.numpy.save(arrays, metadata={"format": "pt"}))
  files.write_json(os.path.join(output_dir, "config.json"), config)
  _write(output_dir, "vocab.txt", vocabulary)
  return sorted(arrays), unknown


def _write(folder, name, content):
  with files.atomic_write(os.path.join(folder, name), binary=True) as stream:
    stream.write(content)


def define_flags():
  """Declares the command line."""
  flags.DEFINE_enum("to", "tf", ["tf", "safetensors"], "What to make.")
  flags.DEFINE_string("input", None, "Hugging Face folder; or checkpoint "
                      "prefix or folder.")
  flags.DEFINE_string("output_dir", None, "Folder for the result.")
  flags.DEFINE_string("bert_config_file", None, "For --to=safetensors; by "
                      "default bert_config.json beside the checkpoint.")
  flags.DEFINE_string("vocab_file", None, "For --to=safetensors; by default "
                      "vocab.txt beside the checkpoint.")


def main(_):
  """Runs what the flags ask for."""
  stack.configure()
  logs.set_up()
  if FLAGS.to == "tf":
    if not FLAGS.input or not os.path.isdir(FLAGS.input):
      raise UserError("--input: no such folder: %s" % FLAGS.input)
    output_dir = files.require_output_dir(FLAGS.output_dir, "output_dir")
    written, unknown = to_tf(FLAGS.input, output_dir)
  else:
    prefix = checkpoints.resolve(FLAGS.input, "input")
    folder = os.path.dirname(prefix)
    config_file = FLAGS.bert_config_file or os.path.join(
        folder, "bert_config.json")
    vocab_file = FLAGS.vocab_file or os.path.join(folder, "vocab.txt")
    files.require_file(config_file, "bert_config_file")
    files.require_file(vocab_file, "vocab_file")
    output_dir = files.require_output_dir(FLAGS.output_dir, "output_dir")
    written, unknown = to_safetensors(prefix, output_dir, config_file,
                                      vocab_file)
  print("%d tensors written to %s" % (len(written), output_dir))
  for name in unknown:
    print("left out, no counterpart: %s" % name)


if __name__ == "__main__":
  define_flags()
  errors.run_main(main)
