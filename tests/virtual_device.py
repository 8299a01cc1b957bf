"""The mixed precision passes, run on graphs for hardware that is not here.

`rewrite` gives a graph and the description of a device to the framework's own
pass. The pass leaves alone what the device has no kernel for, and a build for
CPUs has hardly any kernels for GPUs: it would pass over softmax whatever its
lists say. So stand-ins for all kernels that a build for GPUs could have are
registered first; they are looked up and never run.
"""

import collections
import contextlib
import ctypes
import os
from typing import Any
from typing import Dict
from typing import NamedTuple

import numpy as np
import tensorflow.compat.v1 as tf
from tensorflow.core.protobuf import device_properties_pb2
from tensorflow.python.framework import kernels
from tensorflow.python.grappler import cluster
from tensorflow.python.grappler import tf_optimizer

from utils import stack

PRODUCTS = ("MatMul", "BatchMatMul", "BatchMatMulV2")
# A V100 with a CUDA and a cuDNN that the passes take for new enough.
V100 = dict(type="GPU", frequency=1530, num_cores=80, memory_size=16 << 30,
            environment=dict(architecture="7.0", cuda="10000", cudnn="7605"))
CPU = dict(type="CPU", frequency=2000, num_cores=8, memory_size=64 << 30)


class Rewritten(NamedTuple):
  """A graph after a pass.

  Attributes:
    operations: {name: tf.Operation} that the pass was given.
    nodes: {name: NodeDef} that it returned.
  """
  operations: Dict[str, Any]
  nodes: Dict[str, Any]

  @property
  def casts(self):
    """Number of Cast nodes that the pass added."""
    return sum(node.op == "Cast" for name, node in self.nodes.items()
               if name not in self.operations)

  def dtypes(self, *types, where=""):
    """Returns {name of a float dtype: number of operations of `types` in it}.

    Args:
      *types: types of operations that have an attribute T.
      where: text that the operation's name has in it.
    """
    found = collections.Counter(
        self._dtype(op) for op in self.operations.values()
        if op.type in types and where in op.name)
    return {name: number for name, number in found.items()
            if tf.as_dtype(name).is_floating}

  def flops(self, tokens, length, where=""):
    """Returns {name of a dtype: FLOPs of the matrix products in it}.

    Args:
      tokens: int, what a dynamic size of a matrix stands for.
      length: int, what one of a stack of matrices stands for.
      where: see `dtypes`.
    """
    found = collections.Counter()
    for op in self.operations.values():
      if op.type in PRODUCTS and where in op.name:
        found[self._dtype(op)] += flops(op, tokens if op.type == "MatMul"
                                        else length)
    return dict(found)

  def _dtype(self, op):
    return tf.as_dtype(self.nodes[op.name].attr["T"].type).name


def flops(op, dynamic):
  """Returns the FLOPs of a matrix product; dynamic sizes are `dynamic`."""
  result, inputs = ([dynamic if size is None else size
                     for size in tensor.shape.as_list()]
                    for tensor in (op.outputs[0], op.inputs[0]))
  transposed = op.get_attr("transpose_a" if op.type == "MatMul" else "adj_x")
  return 2 * inputs[-2 if transposed else -1] * int(np.prod(result))


def rewrite(target, device=None, optimizer="auto_mixed_precision"):
  """Runs a pass on what an operation needs of its graph.

  Args:
    target: tf.Operation that is run; it has no type of its own to narrow.
    device: dict of device properties, the only device; `V100` by default.
    optimizer: the pass's name in grappler.

  Returns:
    `Rewritten`.
  """
  device = device or V100
  graph = target.graph
  pruned = tf.graph_util.extract_sub_graph(graph.as_graph_def(), [target.name])
  operations = {node.name: graph.get_operation_by_name(node.name)
                for node in pruned.node}
  if device["type"] == "GPU":
    _register_kernels(operations.values())
  item = tf.train.export_meta_graph(graph_def=pruned, graph=graph,
                                    collection_list=[])
  item.collection_def["train_op"].node_list.value.append(target.name)
  config = tf.ConfigProto()
  options = config.graph_options.rewrite_options
  options.optimizers.append(optimizer)
  options.meta_optimizer_iterations = 1
  options.min_graph_nodes = -1
  with _believed_in(device):
    result = tf_optimizer.OptimizeGraph(
        config, item, cluster=cluster.Cluster(devices=[
            device_properties_pb2.NamedDevice(
                name="/job:localhost/replica:0/task:0/device:%s:0"
                % device["type"],
                properties=device_properties_pb2.DeviceProperties(**device))]))
  return Rewritten(operations, {node.name: node for node in result.node})


@contextlib.contextmanager
def _believed_in(device):
  """Lets the pass of 2.15's build for CPUs believe in a GPU.

  Not left in the environment: a session would then believe in one, too.
  """
  if device["type"] != "GPU":
    yield
    return
  name = "TF_AUTO_MIXED_PRECISION_GRAPH_REWRITE_SIMULATE_GPU"
  os.environ[name] = "1"
  try:
    yield
  finally:
    del os.environ[name]


def _register_kernels(operations):
  """Registers a float16 GPU kernel for each operation that lacks one."""
  if tf.test.is_built_with_cuda():
    return
  for name, definition in {op.type: op.op_def for op in operations}.items():
    for attribute in definition.attr:
      allowed = attribute.allowed_values.list.type
      if attribute.type == "type" and (
          not allowed or tf.float16.as_datatype_enum in allowed):
        if not _has_kernel(name, attribute.name):
          _register(name, attribute.name)
        break


def _has_kernel(name, attribute):
  """Says whether there is a float16 GPU kernel of an operation."""
  for kernel in kernels.get_registered_kernels_for_op(name).kernel:
    if kernel.device_type in ("GPU", "DEFAULT"):
      constraints = [c.allowed_values.list.type for c in kernel.constraint
                     if c.name == attribute]
      if all(tf.float16.as_datatype_enum in types for types in constraints):
        return True
  return False


_COMPUTE = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p)(
    lambda unused_kernel, unused_context: None)


def _register(name, attribute):
  """Registers a kernel that does nothing (tensorflow/c/kernels.h)."""
  library = _library()
  status = library.TF_NewStatus()
  builder = library.TF_NewKernelBuilder(
      name.encode(), b"GPU", None, ctypes.cast(_COMPUTE, ctypes.c_void_p), None)
  library.TF_KernelBuilder_TypeConstraint(
      builder, attribute.encode(), tf.float16.as_datatype_enum, status)
  library.TF_RegisterKernelBuilder(b"StandIn" + name.encode(), builder, status)
  assert library.TF_GetCode(status) == 0, library.TF_Message(status)
  library.TF_DeleteStatus(status)


def _library():
  """Returns TensorFlow's shared library with its C interface."""
  if stack.IS_TF1:
    # pylint: disable=g-import-not-at-top
    from tensorflow.python import _pywrap_tensorflow_internal
    path = _pywrap_tensorflow_internal.__file__
  else:
    path = os.path.join(tf.sysconfig.get_lib(), "libtensorflow_framework.so.2")
  library = ctypes.CDLL(path)
  pointer, text = ctypes.c_void_p, ctypes.c_char_p
  for name, result, arguments in [
      ("TF_NewStatus", pointer, []),
      ("TF_GetCode", ctypes.c_int, [pointer]),
      ("TF_Message", text, [pointer]),
      ("TF_DeleteStatus", None, [pointer]),
      ("TF_NewKernelBuilder", pointer, [text, text] + 3 * [pointer]),
      ("TF_KernelBuilder_TypeConstraint", None,
       [pointer, text, ctypes.c_int, pointer]),
      ("TF_RegisterKernelBuilder", None, [text, pointer, pointer])]:
    function = getattr(library, name)
    function.restype, function.argtypes = result, arguments
  return library
