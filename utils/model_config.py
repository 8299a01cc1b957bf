"""The configuration of a model for Triton: typed values to text and back.

The text is printed and read by protobuf itself, from the part of the server's
schema (model_config.proto) that is used here: names, numbers and types of
fields. Triton's own Python package with the whole schema cannot be installed
beside TensorFlow 1.15.
"""

import functools
import typing

from google.protobuf import descriptor_pb2
from google.protobuf import descriptor_pool
from google.protobuf import message_factory
from google.protobuf import text_format

from utils import signature
from utils.errors import one_line
from utils.errors import UserError

SAVED_MODEL, ONNX = "tensorflow_savedmodel", "onnxruntime_onnx"

_BOOL, _STRING, _MESSAGE = 8, 9, 11
_INT32, _INT64, _UINT32, _UINT64 = 5, 3, 13, 4
_ENUM = 14
_PACKAGE = "inference"

_ENUMS = {
    "DataType": {"TYPE_INVALID": 0, "TYPE_INT32": 8, "TYPE_FP32": 11},
    "Kind": {"KIND_AUTO": 0, "KIND_GPU": 1, "KIND_CPU": 2, "KIND_MODEL": 3},
}
# {message: {field: (number, type, repeated)}}; a message or enum by its name.
_MESSAGES = {
    "ModelTensorReshape": {"shape": (1, _INT64, True)},
    "ModelInput": {
        "name": (1, _STRING, False), "data_type": (2, "DataType", False),
        "dims": (4, _INT64, True), "reshape": (5, "ModelTensorReshape", False)},
    "ModelOutput": {
        "name": (1, _STRING, False), "data_type": (2, "DataType", False),
        "dims": (3, _INT64, True)},
    "ModelInstanceGroup": {
        "name": (1, _STRING, False), "count": (2, _INT32, False),
        "gpus": (3, _INT32, True), "kind": (4, "Kind", False)},
    "ModelQueuePolicy": {"max_queue_size": (4, _UINT32, False)},
    "ModelDynamicBatching": {
        "preferred_batch_size": (1, _INT32, True),
        "max_queue_delay_microseconds": (2, _UINT64, False),
        "preserve_ordering": (3, _BOOL, False),
        "default_queue_policy": (6, "ModelQueuePolicy", False)},
    "Latest": {"num_versions": (1, _UINT32, False)},
    "All": {},
    "Specific": {"versions": (1, _INT64, True)},
    "ModelVersionPolicy": {
        "latest": (1, "Latest", False), "all": (2, "All", False),
        "specific": (3, "Specific", False)},
    "Graph": {"level": (1, _INT32, False)},
    "Accelerator": {"name": (1, _STRING, False)},
    "ExecutionAccelerators": {
        "gpu_execution_accelerator": (1, "Accelerator", True),
        "cpu_execution_accelerator": (2, "Accelerator", True)},
    "ModelOptimizationPolicy": {
        "graph": (1, "Graph", False),
        "execution_accelerators": (4, "ExecutionAccelerators", False)},
    "ModelParameter": {"string_value": (1, _STRING, False)},
    "ModelConfig": {
        "name": (1, _STRING, False), "platform": (2, _STRING, False),
        "backend": (17, _STRING, False),
        "version_policy": (3, "ModelVersionPolicy", False),
        "max_batch_size": (4, _INT32, False),
        "input": (5, "ModelInput", True), "output": (6, "ModelOutput", True),
        "instance_group": (7, "ModelInstanceGroup", True),
        "dynamic_batching": (11, "ModelDynamicBatching", False),
        "optimization": (12, "ModelOptimizationPolicy", False),
        "parameters": (14, "ModelConfig.ParametersEntry", True)},
}


# Largest values of the fields' types; a version's is a folder's name.
LARGEST = {"max_batch_size": 2 ** 31 - 1, "engine_count": 2 ** 31 - 1,
           "max_queue_size": 2 ** 32 - 1, "version": 2 ** 63 - 1}


class ModelSettings(typing.NamedTuple):
  """All that a model's configuration says.

  Attributes:
    name: str, what clients ask for.
    platform: `SAVED_MODEL` or `ONNX`.
    seq_length: int, word pieces of a sequence.
    max_batch_size: int, the largest batch that the server forms or takes.
    delay_ms: float, how long a request waits for others to share its batch;
      0 for static batching: a request is a batch.
    max_queue_size: int, requests that may wait; more are refused. 0: no limit.
    engine_count: int, copies of the model, on a GPU each.
    mixed_precision: bool, whether a GPU computes in float16 where it may.
    xla: bool, whether XLA compiles the graph.
    parameters: {str: str}, what the exporter tells servers and clients.
  """
  name: str
  platform: str
  seq_length: int
  max_batch_size: int
  delay_ms: float
  max_queue_size: int
  engine_count: int
  mixed_precision: bool
  xla: bool
  parameters: typing.Dict[str, str]


def _add_field(message, name, number, kind, repeated):
  field = message.field.add(name=name, number=number,
                            label=3 if repeated else 1)
  if isinstance(kind, int):
    field.type = kind
    return
  field.type = _ENUM if kind in _ENUMS else _MESSAGE
  field.type_name = ".%s.%s" % (_PACKAGE, kind)


@functools.lru_cache(maxsize=None)
def _message_class():
  """Returns the class of the message ModelConfig."""
  schema = descriptor_pb2.FileDescriptorProto(
      name="bert_model_config.proto", package=_PACKAGE, syntax="proto3")
  for name, values in _ENUMS.items():
    enum = schema.enum_type.add(name=name)
    for value, number in values.items():
      enum.value.add(name=value, number=number)
  for name, fields in _MESSAGES.items():
    message = schema.message_type.add(name=name)
    for field, (number, kind, repeated) in fields.items():
      _add_field(message, field, number, kind, repeated)
  entry = message.nested_type.add(name="ParametersEntry")
  entry.options.map_entry = True
  _add_field(entry, "key", 1, _STRING, False)
  _add_field(entry, "value", 2, "ModelParameter", False)
  # A pool of its own: Triton's package would put other messages of the same
  # names into the common one.
  pool = descriptor_pool.DescriptorPool()
  pool.Add(schema)
  found = pool.FindMessageTypeByName(_PACKAGE + ".ModelConfig")
  if hasattr(message_factory, "GetMessageClass"):
    return message_factory.GetMessageClass(found)
  return message_factory.MessageFactory(pool).GetPrototype(found)


def text(settings, kind):
  """Returns the configuration as protobuf text.

  Args:
    settings: `ModelSettings`.
    kind: "gpu" or "cpu", what the server computes on.
  """
  config = _message_class()(
      name=settings.name, platform=settings.platform,
      max_batch_size=settings.max_batch_size)
  # Otherwise the server loads the highest version alone.
  config.version_policy.all.SetInParent()
  for name, shape in signature.INPUTS.items():
    tensor = config.input.add(name=name, data_type="TYPE_INT32")
    tensor.dims.extend(signature.sizes(shape, settings.seq_length))
    if not tensor.dims:
      # A tensor needs a size behind that of the batch: clients send
      # [batch, 1], the model gets [batch].
      tensor.dims.append(1)
      tensor.reshape.SetInParent()
  for name, shape in signature.OUTPUTS.items():
    config.output.add(
        name=name, data_type="TYPE_FP32",
        dims=signature.sizes(shape, settings.seq_length))
  config.instance_group.add(
      count=settings.engine_count, kind="KIND_" + kind.upper())
  _set_batching(config, settings.delay_ms > 0, settings.delay_ms,
                settings.max_queue_size)
  if kind == "gpu" and settings.platform == SAVED_MODEL:
    _set_optimization(config, settings)
  for name in sorted(settings.parameters):
    config.parameters[name].string_value = settings.parameters[name]
  return text_format.MessageToString(config)


def _set_batching(config, dynamic, delay_ms, max_queue_size):
  """Sets how a message's server makes batches of requests."""
  config.ClearField("dynamic_batching")
  largest = config.max_batch_size
  if not dynamic or largest == 1:
    return
  batching = config.dynamic_batching
  # A server waits no longer once a batch is of such a size: never at one of 1.
  batching.preferred_batch_size.extend(
      size for size in (largest // 2, largest) if size > 1)
  batching.max_queue_delay_microseconds = int(round(delay_ms * 1000))
  if max_queue_size:
    batching.default_queue_policy.max_queue_size = max_queue_size


def _set_optimization(config, settings):
  """Sets what the server's TensorFlow makes of the graph on a GPU.

  As in Triton's optimization guide and the sources of its TensorFlow backend:
  the accelerator auto_mixed_precision switches on TensorFlow's own pass over
  the graph (weights stay float32 in the file); level 1 of the graph is the
  session's global JIT level ON_1, by which XLA compiles. The backend refuses
  accelerators for CPUs.
  """
  if settings.mixed_precision:
    config.optimization.execution_accelerators.gpu_execution_accelerator.add(
        name="auto_mixed_precision")
  if settings.xla:
    config.optimization.graph.level = 1


def _parsed(content, what):
  """Returns a configuration's message, without the fields not used here."""
  try:
    return text_format.Parse(
        content, _message_class()(), allow_unknown_field=True)
  except text_format.ParseError as error:
    raise UserError("%s is no model configuration that can be read (%s)"
                    % (what, one_line(error)[:200]))


def read(content, what):
  """Returns (ModelSettings, kind) of a configuration's text.

  Args:
    content: str.
    what: its name, for the message.

  Raises:
    UserError: if it cannot be read.
  """
  config = _parsed(content, what)
  lengths = {size for tensor in config.output for size in tensor.dims}
  if len(lengths) != 1 or len(config.instance_group) != 1:
    raise UserError("%s is not the configuration of an exported model: it has "
                    "to name one sequence length and one instance group" % what)
  group, batching = config.instance_group[0], config.dynamic_batching
  accelerators = config.optimization.execution_accelerators
  return ModelSettings(
      name=config.name, platform=config.platform, seq_length=lengths.pop(),
      max_batch_size=config.max_batch_size,
      delay_ms=batching.max_queue_delay_microseconds / 1000.0,
      max_queue_size=batching.default_queue_policy.max_queue_size,
      engine_count=group.count,
      mixed_precision=bool(accelerators.gpu_execution_accelerator),
      xla=config.optimization.graph.level > 0,
      parameters={name: value.string_value
                  for name, value in config.parameters.items()}), {
                      1: "gpu", 2: "cpu"}.get(group.kind, "auto")


def is_as_written(content):
  """Says whether `text` wrote a configuration, or one of the same meaning."""
  try:
    settings, kind = read(content, "")
  except UserError:
    return False
  if kind not in ("gpu", "cpu"):
    return False
  try:
    known = text_format.Parse(content, _message_class()())
  except text_format.ParseError:
    return False
  return text_format.MessageToString(known) == text(settings, kind)


def changed(content, max_batch_size=None, delay_ms=None, max_queue_size=None,
            engine_count=None, dynamic_batching=None,
            what="the model configuration"):
  """Returns a configuration's text with other settings; None leaves one.

  Args:
    content: str, protobuf text.
    max_batch_size: int.
    delay_ms: float, milliseconds that a request waits for others.
    max_queue_size: int, requests that may wait; 0 for any number.
    engine_count: int, copies of the model.
    dynamic_batching: bool, whether the server puts requests together; with
      `delay_ms` 0 those that wait already.
    what: the configuration's name, for messages.

  Raises:
    UserError: if the text cannot be read.
  """
  config = _parsed(content, what)
  before = config.dynamic_batching
  if max_batch_size is not None:
    config.max_batch_size = max_batch_size
  if engine_count is not None:
    for group in config.instance_group:
      group.count = engine_count
  if dynamic_batching is None:
    dynamic_batching = (config.HasField("dynamic_batching")
                        if delay_ms is None else delay_ms > 0)
  if delay_ms is None:
    delay_ms = before.max_queue_delay_microseconds / 1000.0
  if max_queue_size is None:
    max_queue_size = before.default_queue_policy.max_queue_size
  _set_batching(config, dynamic_batching, delay_ms, max_queue_size)
  return text_format.MessageToString(config)
