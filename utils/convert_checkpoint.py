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
that have no counterpart are listed.
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
import tensorflow.compat.v1 as tf

from utils import checkpoints
from utils import errors
from utils import files
from utils import stack
from utils.errors import UserError

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
# Copies of other tensors, and buffers.
_IGNORED_HF = re.compile(r"(^|\.)position_ids$|(^|\.)token_type_ids$|"
                         r"^cls\.predictions\.decoder\.(weight|bias)$")
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
  present names; ignored tensors are left out.

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
      if not _IGNORED_HF.search(name):
        tensors[name] = _as_float32(name, info)
  return tensors


def read_checkpoint(prefix):
  """Returns {name: array} of a TF checkpoint, without slots and counters."""
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


def rename(arrays, num_layers, to_tf):
  """Renames and transposes arrays from one side to the other.

  Args:
    arrays: {name: array}.
    num_layers: int.
    to_tf: bool, the direction.

  Returns:
    ({name: array}, names without a counterpart, body names that are missing);
    the missing ones are of the encoder itself, without pooler and heads.
  """
  renamed, missing = {}, []
  known = set()
  for tf_name, hf_name, transposed in name_table(num_layers):
    source, target = (hf_name, tf_name) if to_tf else (tf_name, hf_name)
    known.add(source)
    if source in arrays:
      array = arrays[source].T if transposed else arrays[source]
      renamed[target] = np.ascontiguousarray(array)
    elif tf_name.startswith(("bert/embeddings", "bert/encoder")):
      missing.append(source)
  return renamed, sorted(set(arrays) - known), missing


def config_to_tf(config):
  """Returns Google's bert_config from a Hugging Face config, both dicts.

  Raises:
    UserError: if this encoder cannot compute what the config asks for.
  """
  fixed = (("model_type", "bert"), ("position_embedding_type", "absolute"),
           ("layer_norm_eps", 1e-12))
  for key, value in fixed:
    if config.get(key, value) != value:
      raise UserError("config.json: %s is %r; only %r can be converted"
                      % (key, config[key], value))
  missing = [key for key in _CONFIG_KEYS if key not in config]
  if missing:
    raise UserError("config.json lacks %s" % ", ".join(missing))
  result = {key: config[key] for key in _CONFIG_KEYS}
  if config["hidden_act"] not in _ACT_TO_TF:
    raise UserError("config.json: hidden_act %r has no counterpart"
                    % config["hidden_act"])
  result["hidden_act"] = _ACT_TO_TF[config["hidden_act"]]
  return result


def config_to_hf(config, heads):
  """Returns a Hugging Face config from Google's; `heads` are HF names."""
  missing = [key for key in _CONFIG_KEYS if key not in config]
  if missing:
    raise UserError("bert_config.json lacks %s" % ", ".join(missing))
  if config["hidden_act"] not in _ACT_TO_HF:
    raise UserError("bert_config.json: hidden_act %r has no counterpart"
                    % config["hidden_act"])
  architecture = "BertModel"
  if any(name.startswith("qa_outputs") for name in heads):
    architecture = "BertForQuestionAnswering"
  elif heads:
    architecture = "BertForPreTraining"
  result = {key: config[key] for key in _CONFIG_KEYS}
  result.update(hidden_act=_ACT_TO_HF[config["hidden_act"]],
                model_type="bert", architectures=[architecture],
                layer_norm_eps=1e-12, position_embedding_type="absolute",
                pad_token_id=0)
  return result


def _vocabulary(folder):
  """Returns the lines of a Hugging Face folder's vocabulary, in id order."""
  path = os.path.join(folder, "vocab.txt")
  if os.path.exists(path):
    with open(path, encoding="utf-8", newline="\n") as stream:
      return stream.read()
  path = os.path.join(folder, "tokenizer.json")
  if not os.path.exists(path):
    raise UserError("--input: neither vocab.txt nor tokenizer.json in %s"
                    % folder)
  ids = files.read_json(path, "--input").get("model", {}).get("vocab")
  if not isinstance(ids, dict):
    raise UserError("--input: %s holds no WordPiece vocabulary" % path)
  return "".join("%s\n" % piece for piece in sorted(ids, key=ids.get))


def _require_whole(missing, what):
  if missing:
    raise UserError("--input: %s lacks %d tensors of the encoder: %s"
                    % (what, len(missing), ", ".join(missing[:5])))


def to_tf(folder, output_dir):
  """Converts a Hugging Face folder; returns (written names, left-out names).

  Raises:
    UserError: if the folder does not hold a whole BERT encoder.
  """
  config = config_to_tf(files.read_json(
      os.path.join(folder, "config.json"), "--input"))
  vocabulary = _vocabulary(folder)
  arrays, unknown, missing = rename(
      read_safetensors(folder), config["num_hidden_layers"], to_tf=True)
  _require_whole(missing, folder)
  write_checkpoint(os.path.join(output_dir, CHECKPOINT_NAME), arrays)
  files.write_json(os.path.join(output_dir, "bert_config.json"), config)
  with files.atomic_write(os.path.join(output_dir, "vocab.txt"),
                          binary=True) as stream:
    stream.write(vocabulary.encode("utf-8"))
  return sorted(arrays), unknown


def to_safetensors(prefix, output_dir, config_file, vocab_file):
  """Converts a TF checkpoint; returns (written names, left-out names).

  A checkpoint with heads gets the names that Hugging Face's models with heads
  have ("bert." before the encoder's), one without those of its BertModel.

  Raises:
    UserError: if the checkpoint does not hold a whole BERT encoder.
  """
  config = files.read_json(config_file, "--bert_config_file")
  num_layers = config.get("num_hidden_layers", 0)
  arrays, unknown, missing = rename(
      read_checkpoint(prefix), num_layers, to_tf=False)
  _require_whole(missing, prefix)
  heads = [name for name in arrays if name.startswith(("cls.", "qa_outputs"))]
  config = config_to_hf(config, heads)
  if heads:
    arrays = {name if name in heads else "bert." + name: array
              for name, array in arrays.items()}
  content = safetensors.numpy.save(arrays, metadata={"format": "pt"})
  with files.atomic_write(os.path.join(output_dir, "model.safetensors"),
                          binary=True) as stream:
    stream.write(content)
  files.write_json(os.path.join(output_dir, "config.json"), config)
  with open(vocab_file, "rb") as source, files.atomic_write(
      os.path.join(output_dir, "vocab.txt"), binary=True) as stream:
    stream.write(source.read())
  return sorted(arrays), unknown


def main(_):
  stack.configure()
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
  flags.DEFINE_enum("to", "tf", ["tf", "safetensors"], "What to make.")
  flags.DEFINE_string("input", None, "Hugging Face folder; or checkpoint "
                      "prefix or folder.")
  flags.DEFINE_string("output_dir", None, "Folder for the result.")
  flags.DEFINE_string("bert_config_file", None, "For --to=safetensors; by "
                      "default bert_config.json beside the checkpoint.")
  flags.DEFINE_string("vocab_file", None, "For --to=safetensors; by default "
                      "vocab.txt beside the checkpoint.")
  errors.run_main(main)
