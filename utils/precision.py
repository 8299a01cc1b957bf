"""What a run computes in: decided, told and switched on in one place.

`settle` looks at what was asked for and at the hardware, `apply` writes the
answer into a session's config. Weights, slots, gradients of weights, layer norm
statistics, softmax and losses are float32 in all cases; what changes is what
matrix products, and what lies between two of them, are computed in:

* fp16: the framework's own pass over the graph, on GPUs;
* bf16: the same on CPUs (tf2 stack); on GPUs, which that pass passes over, by
  casts in the graph (`modeling.ModelOptions.matmul_dtype`).
"""

import functools
import os
import typing

import tensorflow.compat.v1 as tf
from tensorflow.core.protobuf import rewriter_config_pb2

from utils import stack
from utils.errors import UserError
from utils.logs import LOGGER

# Compute capabilities of the first GPUs with the products in hardware.
_FP16_CAPABILITY = (7, 0)  # Volta
_AMPERE = (8, 0)

# What must stay float32, whatever the framework's lists of this version say.
_FLOAT32_OPS = ("Softmax", "LogSoftmax")
# What moves rows of tokens to their places and is on none of these lists: it
# passes on what it is given.
_MOVES = ("ScatterNd",)
# Kernels that are float16 between products that are, and sum up in float32.
# Norms, the sums they are of, and losses stay float32 as they do without kernels.
_KERNELS = ("BertBiasGelu", "BertBiasGeluGrad", "BertAttention",
            "BertAttentionGrad")
_LIST_VARIABLE = "TF_AUTO_MIXED_PRECISION_GRAPH_REWRITE_%s_%s"

_PRODUCTS = ("MatMul", "BatchMatMul", "BatchMatMulV2")
_CLUSTER_OPS = ("_XlaCompile", "XlaLaunch")


class Precision(typing.NamedTuple):
  """What a run computes in.

  Attributes:
    name: "fp32", "fp16" or "bf16", as asked for.
    computes: the same, as this hardware does it.
    scales_loss: bool, whether training scales the loss. So it does wherever
      fp16 was asked for: a CPU needs no scale, but its checkpoint goes on on
      a GPU.
    matmul_dtype: tf.bfloat16 where the model has to cast what it multiplies,
      else None.
    xla: bool, whether XLA compiles the graph.
  """
  name: str
  computes: str
  scales_loss: bool
  matmul_dtype: typing.Optional[tf.DType]
  xla: bool


@functools.lru_cache(maxsize=None)
def settle(use_fp16, use_bf16, use_xla):
  """Decides what a run computes in, and says where that is not what was asked.

  Later calls return the same and log nothing.

  Args:
    use_fp16: bool.
    use_bf16: bool.
    use_xla: bool.

  Returns:
    `Precision`.

  Raises:
    UserError: for both precisions at once, or bf16 on the tf1 stack.
  """
  if use_fp16 and use_bf16:
    raise UserError("--use_bf16: not together with --use_fp16: leave out one")
  if use_bf16 and stack.IS_TF1:
    raise UserError("--use_bf16: TensorFlow %s cannot: take the tf2 stack "
                    "(launchers: --stack tf2), or --use_fp16"
                    % tf.__version__)
  name = "fp16" if use_fp16 else "bf16" if use_bf16 else "fp32"
  gpu = stack.gpu_available()
  capability = stack.compute_capability() if gpu else None
  lacking = _lacking(name, gpu, capability)
  if lacking:
    LOGGER.warning(
        "--use_%s: %s, so this computes in float32%s", name, lacking,
        " (training keeps the loss scale, for a GPU to go on with)"
        if use_fp16 else "")
  if capability and capability >= _AMPERE:
    _log_tensor_float_32()
  computes = "fp32" if lacking else name
  return Precision(
      name=name, computes=computes, scales_loss=bool(use_fp16),
      matmul_dtype=tf.bfloat16 if computes == "bf16" and gpu else None,
      xla=bool(use_xla))


def _lacking(name, gpu, capability):
  """Returns what the hardware lacks for a precision, as text, or None."""
  if name == "fp32":
    return None
  if not gpu:
    if name == "fp16":
      return "there is no GPU here"
    if os.environ.get("TF_ENABLE_ONEDNN_OPTS") == "0":
      return "TF_ENABLE_ONEDNN_OPTS=0 switches its kernels off"
    if stack.cpu_has_bfloat16():
      return None
    return "this CPU has neither AVX512_BF16 nor AMX"
  needed = _FP16_CAPABILITY if name == "fp16" else _AMPERE
  if capability is None or capability >= needed:
    return None
  return "this GPU has compute capability %d.%d, not %d.%d" % (
      capability + needed)


def _log_tensor_float_32():
  """Says whether float32 products run in TF32 on this (Ampere) GPU."""
  on = stack.tensor_float_32()
  if on is None:
    LOGGER.info(
        "TF32: this GPU has it; builds of TensorFlow 1.15 that know this GPU "
        "(NVIDIA's) use it for float32 matrix products unless "
        "NVIDIA_TF32_OVERRIDE=0 is set")
  else:
    LOGGER.info("TF32: float32 matrix products on this GPU %s", (
        "use it (10 bits of mantissa; NVIDIA_TF32_OVERRIDE=0 switches it off)"
        if on else "do not use it"))


def apply(precision, config):
  """Switches a `Precision` on in a tf.ConfigProto, which it changes.

  On a CPU, XLA also has to be let in once a process (`stack.configure`).
  Also tells the framework's pass, by its environment variables, which
  operations stay float32. One that the user has put on a list stays there.
  """
  options = config.graph_options
  rewrites = options.rewrite_options
  on = rewriter_config_pb2.RewriterConfig.ON
  if precision.computes == "fp16":
    rewrites.auto_mixed_precision = on
    _complete_lists(_KERNELS)
  elif precision.computes == "bf16" and precision.matmul_dtype is None:
    rewrites.auto_mixed_precision_onednn_bfloat16 = on
    _complete_lists()
  if precision.xla:
    options.optimizer_options.global_jit_level = tf.OptimizerOptions.ON_1
    # On CPUs it fuses product and bias into an operation that XLA does not
    # know, which tears a model's one cluster into dozens.
    rewrites.remapping = rewriter_config_pb2.RewriterConfig.OFF


def _complete_lists(narrowed=()):
  """Puts `_FLOAT32_OPS` on the list of what is never narrowed, `_MOVES` clear.

  An operation on two lists would silently switch the whole pass off.

  Args:
    narrowed: operations to narrow between others that are.
  """
  lists = stack.PRECISION_LISTS
  asked = set()
  for kind in lists.values():
    asked.update(os.environ.get(_LIST_VARIABLE % (kind, "ADD"), "").split(","))
  for role, ops in (("deny", _FLOAT32_OPS), ("clear", _MOVES),
                    ("infer", narrowed)):
    ours = [op for op in ops if op not in asked]
    for other, kind in lists.items():
      name = _LIST_VARIABLE % (kind, "ADD" if other == role else "REMOVE")
      before = [op for op in os.environ.get(name, "").split(",") if op]
      os.environ[name] = ",".join(before + ours)


class XlaReportHook(tf.train.SessionRunHook):
  """Logs once, after the first step, how much of it XLA has compiled.

  For runs with XLA alone; costs nothing after the first step.
  """

  def __init__(self):
    self._reported = False

  def before_run(self, run_context):
    if self._reported:
      return None
    return tf.train.SessionRunArgs(
        None, options=tf.RunOptions(output_partition_graphs=True))

  def after_run(self, run_context, run_values):
    if self._reported:
      return
    self._reported = True
    found = xla_coverage(run_context.original_args.fetches,
                         run_values.run_metadata)
    (LOGGER.info if found.clusters else LOGGER.warning)(
        "--use_xla: %d clusters hold %d of %d matrix products; %d operations "
        "run outside of them", found.clusters, found.products,
        found.all_products, found.outside)


class XlaCoverage(typing.NamedTuple):
  """What XLA has compiled of one session call.

  Attributes:
    clusters: int, the parts that were compiled, each as one.
    products: int, matrix products in them.
    all_products: int, matrix products of the call.
    outside: int, operations that run outside of clusters, variables and
      constants not counted.
  """
  clusters: int
  products: int
  all_products: int
  outside: int


def xla_coverage(fetches, run_metadata):
  """Returns the `XlaCoverage` of a session call.

  Args:
    fetches: what the call fetched: tensors and operations in any nest.
    run_metadata: tf.RunMetadata of a call with `output_partition_graphs`.
  """
  nodes = [node for graph in run_metadata.partition_graphs
           for node in graph.node]
  outside = {node.name for node in nodes}
  products = [op for op in _operations(fetches) if op.type in _PRODUCTS]
  return XlaCoverage(
      clusters=sum(node.op in _CLUSTER_OPS for node in nodes),
      products=sum(op.name not in outside for op in products),
      all_products=len(products),
      outside=sum(node.op not in ("VarHandleOp", "Const") for node in nodes))


def _operations(fetches):
  """Returns the operations that a session call has to run, as a set."""
  todo = [getattr(fetch, "op", fetch) for fetch in tf.nest.flatten(fetches)]
  seen = set(todo)
  while todo:
    op = todo.pop()
    for other in [tensor.op for tensor in op.inputs] + list(op.control_inputs):
      if other not in seen:
        seen.add(other)
        todo.append(other)
  return seen
