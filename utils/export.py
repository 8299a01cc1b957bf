"""A checkpoint as a SavedModel that an inference server loads.

The graph is built anew for inference, with the weights as constants. So a
server's passes see numbers where they would see reads of variables: weights
are cast to float16 once, when the model is loaded, not with every batch; XLA
compiles them in; and there is no file beside the graph that could be lost.
A graph holds 2 GiB at most, BERT-large takes 1.25.
"""

import hashlib
import os
import signal
import sys

import numpy as np
import tensorflow.compat.v1 as tf
from tensorflow.core.protobuf import saved_model_pb2

import modeling
from utils import files
from utils import kernels
from utils import model_config
from utils import model_repository
from utils import onnx_export
from utils import signature
from utils import training
from utils.errors import UserError
from utils.logs import LOGGER

SAVED_MODEL = "model.savedmodel"
# Of the converter to ONNX, in --output_dir; stays there if it fails.
ONNX_LOG = "onnx_conversion.log"
# Of protobuf, less what the graph itself takes.
_MOST_BYTES = (1 << 31) - (16 << 20)


class _Weights(object):
  """The weights of a checkpoint, put into a graph as constants.

  While the graph is built they are placeholders: the numbers, which are large,
  pass through no hand but the file's.
  """

  def __init__(self, prefix):
    self._prefix = prefix
    self._reader = tf.train.load_checkpoint(prefix)
    self._placeholders = {}
    self._bytes = 0
    self._digests = {}

  def get(self, getter, name, shape=None, dtype=tf.float32, **unused):
    """What tf.get_variable calls instead of making a variable."""
    del getter
    if name not in self._placeholders:
      with tf.name_scope(None):
        self._placeholders[name] = tf.placeholder(dtype, shape, name)
    return self._placeholders[name]

  def fill(self, graph_def):
    """Makes the placeholders in a tf.GraphDef, which it changes, constants.

    Raises:
      UserError: see `_value`.
    """
    for node in graph_def.node:
      if node.name not in self._placeholders:
        continue
      weight = self._placeholders[node.name]
      value = self._value(node.name).astype(weight.dtype.as_numpy_dtype)
      node.op = "Const"
      del node.attr["shape"]
      # Field by field: every copy of a message would stay until the end.
      tensor = node.attr["value"].tensor
      tensor.dtype = node.attr["dtype"].type
      tensor.tensor_shape.CopyFrom(weight.shape.as_proto())
      tensor.tensor_content = value.tobytes()

  def _value(self, name):
    """Returns a weight as numpy array.

    Raises:
      UserError: if the checkpoint lacks it, or has it in another shape; if it
        is not finite; if it is too much for one graph.
    """
    if not self._reader.has_tensor(name):
      raise UserError(
          "checkpoint %s lacks %s, so it is of another task or config: export "
          "what run_squad.py has trained" % (self._prefix, name))
    value = self._reader.get_tensor(name)
    shape = self._placeholders[name].shape.as_list()
    if list(value.shape) != shape:
      raise UserError(
          "checkpoint %s: %s has shape %s, the model's has %s: use the "
          "bert_config.json that belongs to the checkpoint"
          % (self._prefix, name, list(value.shape), shape))
    if not np.isfinite(value).all():
      raise UserError("checkpoint %s holds numbers in %s that are not finite"
                      % (self._prefix, name))
    self._bytes += value.nbytes
    if self._bytes > _MOST_BYTES:
      raise UserError(
          "checkpoint %s: the weights take more than the 2 GiB that a graph "
          "can hold: such a model cannot be exported" % self._prefix)
    self._digests[name] = hashlib.sha256(value.tobytes()).hexdigest()
    return value

  def fingerprint(self):
    """Returns 16 hexadecimal digits of all that was put into a graph."""
    return files.stable_hash(self._digests)


def _uses_xla(config):
  """Says whether the server compiles the graph: its TensorFlow alone can."""
  return config.use_xla and config.export_format != "onnx"


def _keeps_kernels(config):
  """Says whether the graph has kernels; UserError if it cannot."""
  return config.export_fused_ops and kernels.settle(
      "on", config.use_xla, "--export_fused_ops")


def _options(config):
  """Returns the modeling.ModelOptions of the exported graph.

  Precision is not among them: the server narrows what its GPU can.
  """
  return modeling.ModelOptions(
      remove_padding=config.remove_padding, fused_ops=_keeps_kernels(config),
      row_buckets=training.ROW_BUCKETS if _uses_xla(config) else None)


def _tensors(shapes, seq_length):
  """Returns {name: placeholder} of int32 inputs of any batch size."""
  return {name: tf.placeholder(
      tf.int32, [None] + signature.sizes(shape, seq_length), name)
          for name, shape in shapes.items()}


def _meta_graph(config, bert_config, logits_of, weights):
  """Returns the tf.MetaGraphDef from the signature's inputs to its outputs.

  The weights in it are still placeholders.

  Args:
    config: the runner's settings.
    bert_config: modeling.BertConfig.
    logits_of: see `export`.
    weights: `_Weights`.
  """
  with tf.Graph().as_default() as graph:
    inputs = _tensors(signature.INPUTS, config.max_seq_length)
    with tf.variable_scope("", custom_getter=weights.get):
      logits = logits_of(inputs, bert_config, False, _options(config))
    outputs = {}
    for name, value in zip(signature.OUTPUTS, logits):
      value.set_shape([None, config.max_seq_length])
      outputs[name] = tf.identity(value, name)
    meta_graph = tf.train.export_meta_graph(
        graph_def=tf.graph_util.extract_sub_graph(
            graph.as_graph_def(), list(inputs) + list(outputs)),
        # What a TensorFlow of another age need not know of.
        strip_default_attrs=True)
    meta_graph.signature_def[signature.NAME].CopyFrom(
        tf.saved_model.predict_signature_def(inputs, outputs))
  meta_graph.meta_info_def.tags.append(tf.saved_model.tag_constants.SERVING)
  return meta_graph


def _write_saved_model(meta_graph, weights, folder):
  """Writes a SavedModel of one graph, without variables, to a new `folder`."""
  model = saved_model_pb2.SavedModel(saved_model_schema_version=1)
  model.meta_graphs.add().CopyFrom(meta_graph)
  weights.fill(model.meta_graphs[0].graph_def)
  os.makedirs(folder)
  with open(os.path.join(folder, "saved_model.pb"), "wb") as stream:
    stream.write(model.SerializeToString())


def _write_model(config, bert_config, meta_graph, weights, stage):
  """Writes what a version's folder holds to `stage`/model."""
  model = os.path.join(stage, "model")
  if config.export_format != "onnx":
    _write_saved_model(meta_graph, weights, os.path.join(model, SAVED_MODEL))
    return
  os.mkdir(model)
  folder = os.path.join(stage, SAVED_MODEL)
  _write_saved_model(meta_graph, weights, folder)
  onnx_export.convert(
      folder, os.path.join(model, onnx_export.MODEL_FILE), config.use_fp16,
      vocab_size=bert_config.vocab_size,
      max_batch_size=config.trtis_max_batch_size,
      log=os.path.join(config.output_dir, ONNX_LOG))


def repository_of(config):
  """Returns the folder of the models that a run exports to."""
  return config.trtis_model_repository or os.path.join(
      config.output_dir, "trtis_models")


def check(config, bert_config):
  """Raises UserError, before any work, for an export that cannot be.

  Args:
    config: the runner's settings.
    bert_config: modeling.BertConfig.
  """
  _keeps_kernels(config)
  if config.export_format == "onnx":
    onnx_export.interpreter()
  model_repository.check(
      repository_of(config), settings_of(config, bert_config),
      config.trtis_model_version, config.trtis_model_overwrite)
  with model_repository.staged(repository_of(config)):
    pass  # it can be written to


def settings_of(config, bert_config):
  """Returns the model_config.ModelSettings of an export.

  `parameters` lack the fingerprint, which the repository adds.

  Args:
    config: the runner's settings.
    bert_config: modeling.BertConfig.
  """
  onnx = config.export_format == "onnx"
  parameters = {
      # What servers and clients check their input by.
      "vocab_size": str(bert_config.vocab_size),
      "type_vocab_size": str(bert_config.type_vocab_size),
      "vocab_sha256": files.sha256_of_file(config.vocab_file),
      "do_lower_case": str(bool(config.do_lower_case)).lower(),
  }
  if config.export_fused_ops:
    parameters["fused_ops_library"] = kernels.library_name()
  return model_config.ModelSettings(
      name=config.trtis_model_name,
      platform=model_config.ONNX if onnx else model_config.SAVED_MODEL,
      seq_length=config.max_seq_length,
      max_batch_size=config.trtis_max_batch_size,
      delay_ms=config.trtis_dyn_batching_delay,
      max_queue_size=config.trtis_max_queue_size,
      engine_count=config.trtis_engine_count,
      mixed_precision=config.use_fp16 and not onnx, xla=_uses_xla(config),
      parameters=parameters)


def export(config, bert_config, logits_of):
  """Writes the model of the newest checkpoint into its repository.

  Args:
    config: the runner's settings.
    bert_config: modeling.BertConfig.
    logits_of: function of the inputs as {name: int32 tensor}, bert_config,
      is_training and modeling.ModelOptions that returns (start, end) logits
      [batch, seq].

  Raises:
    UserError: if there is no checkpoint of such a model, or the version is
      there already.
  """
  prefix = training.checkpoint_to_use(config)
  settings = settings_of(config, bert_config)
  repository = repository_of(config)
  # As Ctrl-C does, so that what is half-written goes.
  signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
  with model_repository.staged(repository) as stage:
    weights = _Weights(prefix)
    meta_graph = _meta_graph(config, bert_config, logits_of, weights)
    _write_model(config, bert_config, meta_graph, weights, stage)
    if config.export_fused_ops:
      kernels.copy_library(os.path.join(stage, "model"))
    place = model_repository.publish(
        repository, settings, config.trtis_model_version,
        config.trtis_model_overwrite, stage,
        _description(config, bert_config, prefix, weights))
  LOGGER.info("exported %s to %s: %s, batches of up to %d", prefix, place,
              "static batching" if not settings.delay_ms
              else "a request waits %g ms for others" % settings.delay_ms,
              settings.max_batch_size)
  if config.export_fused_ops:
    LOGGER.info(
        "the model needs kernels of its own: a server has to load %s first "
        "(LD_PRELOAD=%s, with its libtensorflow_framework on LD_LIBRARY_PATH, "
        "or model_operations { op_library_filename } in config.pbtxt) and to "
        "have TensorFlow %s", settings.parameters["fused_ops_library"],
        os.path.join(place, settings.parameters["fused_ops_library"]),
        tf.__version__)


def _description(config, bert_config, prefix, weights):
  """Returns what is to be known of an export, for the version's export.json.
  """
  made_of = dict(
      {name: getattr(config, name) for name in (
          "export_format", "max_seq_length", "do_lower_case", "use_fp16",
          "use_xla", "remove_padding", "export_fused_ops")},
      vocab_sha256=files.sha256_of_file(config.vocab_file),
      model=bert_config.to_dict(), weights=weights.fingerprint())
  return dict(made_of, checkpoint=prefix, tensorflow=tf.__version__,
              fingerprint=files.stable_hash(made_of))
