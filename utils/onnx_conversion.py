"""Turns a SavedModel into ONNX and checks it with ONNX Runtime.

`utils.onnx_export` runs it in the environment that has tf2onnx, from the root
of the checkout:

  python -m utils.onnx_conversion --saved_model=DIR --output=FILE \
    --precision=float32 --vocab_size=30522 --max_batch_size=8 --report=FILE

What the model says of random word pieces in sequences of several lengths, in
batches of several sizes, must be what TensorFlow says; else the process ends
with a status of 3 and a line, and nobody should use the file.
"""

import argparse
import json
import os
import sys

import numpy as np
import onnx
import onnxruntime
from onnxruntime.transformers import float16
import tensorflow.compat.v1 as tf
from tensorflow.core.protobuf import saved_model_pb2
import tf2onnx

from utils import signature

# The oldest in which all of the graph's operations are what they are today:
# every server that runs ONNX at all has it.
OPSET = 13
# Largest difference, as a share of the largest logit.
TOLERANCES = {"float32": 1e-4, "float16": 5e-2}
# What stays float32: the squares of a layer norm pass float16's 65504, and
# sums of hundreds of terms lose their last digits.
FLOAT32_OPERATIONS = float16.DEFAULT_OP_BLOCK_LIST + ["Softmax"]
# As in the checkpoint's variables, whose scopes name the nodes.
FLOAT32_SCOPE = "/LayerNorm/"
# Sequences of the largest batch to check with: fewer are all of one length,
# more show nothing new and take minutes.
FEWEST_CHECKED, MOST_CHECKED = 4, 32
DIFFERENT = 3


def random_batch(size, seq_length, vocab_size):
  """Returns {name: int32 array} of one batch, the same in every run.

  Its sequences have lengths from 2 to all of `seq_length`, the longest first.

  Args:
    size: sequences of the batch.
    seq_length: positions of a sequence.
    vocab_size: ids are below it.
  """
  random = np.random.RandomState(size)
  lengths = np.linspace(seq_length, 2, size).astype(np.int32)
  mask = np.arange(seq_length) < lengths[:, None]
  second = np.arange(seq_length) >= lengths[:, None] // 3
  values = {
      "unique_ids": 1000000000 + np.arange(size),
      "input_ids": random.randint(0, vocab_size, mask.shape) * mask,
      "input_mask": mask,
      "segment_ids": second * mask,
  }
  return {name: values[name].astype(np.int32) for name in signature.INPUTS}


def without_weights(graph_def):
  """Returns (tf.GraphDef, {tensor: array}): matrices as placeholders.

  TensorFlow and the converter copy the constants of a graph ten and thirty
  times over.

  Args:
    graph_def: tf.GraphDef.
  """
  light, weights = tf.GraphDef(versions=graph_def.versions), {}
  for node in graph_def.node:
    # Asking a node for what it lacks would add it.
    tensor = node.attr["value"].tensor if node.op == "Const" else None
    if (tensor is None or tensor.dtype != tf.float32.as_datatype_enum
        or len(tensor.tensor_shape.dim) < 2):
      light.node.add().CopyFrom(node)
      continue
    weights[node.name + ":0"] = tf.make_ndarray(tensor)
    stand_in = light.node.add(name=node.name, op="Placeholder")
    stand_in.attr["dtype"].type = tensor.dtype
    stand_in.attr["shape"].shape.CopyFrom(tensor.tensor_shape)
  return light, weights


class SavedModel(object):
  """A SavedModel's graph, to convert and to ask for the right numbers.

  Attributes:
    inputs, outputs: {name: tensor's name in the graph}.
    seq_length: int.
    graph_def: tf.GraphDef of `without_weights`, without unused inputs.
    weights: {tensor's name in the graph: array}.
  """

  def __init__(self, folder):
    saved = saved_model_pb2.SavedModel()
    with open(os.path.join(folder, "saved_model.pb"), "rb") as stream:
      saved.ParseFromString(stream.read())
    graph = saved.meta_graphs[0]
    of_name = graph.signature_def[signature.NAME]
    self.inputs = {n: i.name for n, i in of_name.inputs.items()}
    self.outputs = {n: i.name for n, i in of_name.outputs.items()}
    self.seq_length = of_name.inputs["input_ids"].tensor_shape.dim[1].size
    light, self.weights = without_weights(graph.graph_def)
    self.graph_def = tf.graph_util.extract_sub_graph(
        light, [name.split(":")[0] for name in self.outputs.values()])
    with tf.Graph().as_default() as graph:
      tf.import_graph_def(light, name="")
    self._session = tf.Session(
        graph=graph, config=tf.ConfigProto(device_count={"GPU": 0}))

  def run(self, batch):
    """Returns {name: float32 [batch, seq]} for a `random_batch`."""
    feeds = dict(self.weights, **{
        self.inputs[name]: values for name, values in batch.items()})
    return self._session.run(self.outputs, feeds)


def to_onnx(saved_model):
  """Returns the onnx.ModelProto in float32, with weights as further inputs.

  Args:
    saved_model: `SavedModel`.
  """
  graph_def = saved_model.graph_def
  present = {node.name for node in graph_def.node}
  names = {tensor: name for part in (saved_model.inputs, saved_model.outputs)
           for name, tensor in part.items()}
  inputs = list(saved_model.inputs.values()) + list(saved_model.weights)
  model, _ = tf2onnx.convert.from_graph_def(
      graph_def, name="bert", opset=OPSET,
      input_names=[name for name in inputs if name.split(":")[0] in present],
      output_names=list(saved_model.outputs.values()), tensors_to_rename=names)
  found = {value.name: value for value in model.graph.input}
  # A server refuses a request with an input that the model does not declare.
  ordered = [found.pop(name, None) or onnx.helper.make_tensor_value_info(
      name, onnx.TensorProto.INT32, shape)
             for name, shape in signature.INPUTS.items()]
  ordered.extend(found.values())
  del model.graph.input[:]
  model.graph.input.extend(ordered)
  return model


def put_in(model, weights):
  """Makes inputs of the model its own constants, of the inputs' types.

  Args:
    model: onnx.ModelProto; changed.
    weights: {name of the input: float32 array}.
  """
  graph = model.graph
  kept = [value for value in graph.input if value.name not in weights]
  for value in graph.input:
    if value.name in weights:
      dtype = onnx.helper.tensor_dtype_to_np_dtype(
          value.type.tensor_type.elem_type)
      graph.initializer.append(onnx.numpy_helper.from_array(
          weights[value.name].astype(dtype), value.name))
  del graph.input[:]
  graph.input.extend(kept)
  for value in list(graph.input) + list(graph.output):
    value.type.tensor_type.shape.dim[0].dim_param = signature.BATCH


def _is_cast(node, element_type):
  return (node is not None and node.op_type == "Cast"
          and node.attribute[0].i == element_type)


def _drop_round_trips(graph):
  """Takes out the casts from float32 to float16 and back, which lose digits.

  The converter puts them between neighbours that both stay float32.

  Args:
    graph: onnx.GraphProto with the types of its values; changed.
  """
  made_by = {name: node for node in graph.node for name in node.output}
  types = {value.name: value.type.tensor_type.elem_type
           for value in graph.value_info}
  for node in graph.node:
    for i, name in enumerate(node.input):
      wide = made_by.get(name)
      narrow = made_by.get(wide.input[0]) if _is_cast(
          wide, onnx.TensorProto.FLOAT) else None
      if (_is_cast(narrow, onnx.TensorProto.FLOAT16)
          and types[narrow.input[0]] == onnx.TensorProto.FLOAT):
        node.input[i] = narrow.input[0]


def _sort(graph):
  """Orders the nodes by who needs whom; drops what no output needs.

  Args:
    graph: onnx.GraphProto; changed.
  """
  made_by = {name: node for node in graph.node for name in node.output}
  nodes, placed = [], set()
  todo = [value.name for value in graph.output]
  while todo:
    node = made_by.get(todo[-1])
    needed = [name for name in (node.input if node else [])
              if name in made_by and name not in placed]
    if needed and todo[-1] not in placed:
      todo.extend(needed)
      continue
    name = todo.pop()
    if node and name not in placed:
      nodes.append(node)
      placed.update(node.output)
  del graph.node[:]
  graph.node.extend(nodes)


def to_float16(model):
  """Returns the model with weights and products in float16.

  Outputs keep their types, softmax and layer norms float32.

  Args:
    model: onnx.ModelProto in float32.
  """
  model = float16.convert_float_to_float16(
      model, keep_io_types=list(signature.OUTPUTS),
      op_block_list=FLOAT32_OPERATIONS,
      node_block_list=[node.name for node in model.graph.node
                       if FLOAT32_SCOPE in node.name])
  _drop_round_trips(model.graph)
  _sort(model.graph)
  return model


def _session(path):
  return onnxruntime.InferenceSession(
      path, providers=["CPUExecutionProvider"])


def compare(saved_model, path, vocab_size, max_batch_size):
  """Returns how far the ONNX model is from the SavedModel, as a dict.

  Positions without a token count for nothing but that they are numbers.

  Args:
    saved_model: `SavedModel`.
    path: the model in ONNX.
    vocab_size: int.
    max_batch_size: int, sequences of the largest batch.

  Returns:
    dict with floats `difference` and `largest_logit`, and int `sequences`.
  """
  session = _session(path)
  difference, largest, count = 0.0, 0.0, 0
  most = min(max(max_batch_size, FEWEST_CHECKED), MOST_CHECKED)
  for size in sorted({1, (most + 1) // 2, most}):
    batch = random_batch(size, saved_model.seq_length, vocab_size)
    real = batch["input_mask"] > 0
    expected = saved_model.run(batch)
    for name, values in zip(signature.OUTPUTS,
                            session.run(list(signature.OUTPUTS), batch)):
      apart = np.abs(values - expected[name])
      if not np.isfinite(apart).all():
        apart[...] = np.inf
      difference = max(difference, float(apart[real].max()))
      largest = max(largest, float(np.abs(expected[name][real]).max()))
    count += size
  return {"difference": difference, "largest_logit": largest,
          "sequences": count}


def convert(flags):
  """Does what the command line says; returns the exit status."""
  saved_model = SavedModel(flags.saved_model)
  model = to_onnx(saved_model)
  if flags.precision == "float16":
    model = to_float16(model)
  put_in(model, saved_model.weights)
  onnx.save(model, flags.output)
  onnx.checker.check_model(flags.output)
  report = compare(saved_model, flags.output, flags.vocab_size,
                   flags.max_batch_size)
  report["tolerance"] = TOLERANCES[flags.precision]
  with open(flags.report, "w") as stream:
    json.dump(report, stream)
  bound = report["tolerance"] * report["largest_logit"]
  return 0 if report["difference"] <= bound else DIFFERENT


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  for name in ("saved_model", "output", "report"):
    parser.add_argument("--" + name, required=True)
  parser.add_argument("--precision", choices=sorted(TOLERANCES), required=True)
  for name in ("vocab_size", "max_batch_size"):
    parser.add_argument("--" + name, type=int, required=True)
  return convert(parser.parse_args())


if __name__ == "__main__":
  sys.exit(main())
