"""The two TensorFlow stacks: the only place that knows how they differ.

`tf1` is TensorFlow 1.15 (the reference), `tf2` is TensorFlow 2.15 used through
its v1 API. All else says `import tensorflow.compat.v1 as tf` and runs on both.
"""

import ctypes
import os
import platform

# TensorFlow reads it when it is imported: errors alone, unless the user has
# said otherwise. A start writes pages about kernels and devices without it.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

# pylint: disable=wrong-import-position
import tensorflow.compat.v1 as tf
from tensorflow.core.framework import attr_value_pb2
from tensorflow.python.util import deprecation

IS_TF1 = tf.__version__.startswith("1.")
NAME = "tf1" if IS_TF1 else "tf2"

# What the mixed precision pass calls its lists, in its environment variables.
PRECISION_LISTS = (
    dict(allow="WHITELIST", deny="BLACKLIST", infer="GRAYLIST",
         clear="CLEARLIST") if IS_TF1 else
    dict(allow="ALLOWLIST", deny="DENYLIST", infer="INFERLIST",
         clear="CLEARLIST"))


def configure(use_xla=False):
  """Makes the process behave alike on both stacks; call it once, first.

  Graph mode, v1 control flow, resource variables (reads have an order, and
  reference variables would keep XLA from clustering). Deprecation warnings,
  which the v1 API gives by the hundred, are silenced.

  Args:
    use_xla: bool, whether sessions may have XLA compile for CPUs, where there
      is no GPU.
  """
  deprecation._PRINT_DEPRECATION_WARNINGS = False  # pylint: disable=protected-access
  tf.logging.set_verbosity(tf.logging.ERROR)
  tf.disable_v2_behavior()
  # The call above switches resource variables off on either stack.
  tf.enable_resource_variables()
  if use_xla and not gpu_available():
    _let_xla_compile_for_cpus()


def _let_xla_compile_for_cpus():
  """Makes a session's JIT level count for CPUs too, in this process.

  1.15 asks its environment, once, at the first session; 2.15 has asked when it
  looked for GPUs, but can be told later.
  """
  if IS_TF1:
    flags = os.environ.get("TF_XLA_FLAGS", "")
    if "tf_xla_cpu_global_jit" not in flags:
      os.environ["TF_XLA_FLAGS"] = (flags + " --tf_xla_cpu_global_jit").strip()
  else:
    # pylint: disable=g-import-not-at-top
    from tensorflow.python.client import pywrap_tf_session
    pywrap_tf_session.TF_SetTfXlaCpuGlobalJit(True)


def assign_outside_xla(graph):
  """Keeps the assignments to variables that `graph` has so far out of XLA.

  1.15 does not note that a variable is initialized when XLA initialized or
  restored it: Estimator then takes the step for zero and never stops.
  """
  if not IS_TF1:
    return
  for op in graph.get_operations():
    if op.type == "AssignVariableOp":
      # pylint: disable=protected-access
      op._set_attr("_XlaCompile", attr_value_pb2.AttrValue(b=False))


def gpu_available():
  """Says whether TensorFlow sees a GPU, without taking hold of it."""
  return bool(tf.config.experimental.list_physical_devices("GPU"))


def device_name():
  """Returns what computes, for the header of a log: GPUs, else the CPU."""
  gpus = tf.config.experimental.list_physical_devices("GPU")
  if gpus:
    return "%d GPUs" % len(gpus) if len(gpus) > 1 else "1 GPU"
  try:
    with open("/proc/cpuinfo", encoding="utf-8") as stream:
      for line in stream:
        if line.startswith("model name"):
          return "CPU (%s)" % line.split(":", 1)[1].strip()
  except OSError:
    pass
  return "CPU (%s)" % (platform.processor() or platform.machine())


def versions():
  """Returns {name: text} of what runs here, for the header of a log."""
  return {
      "stack": NAME,
      "python": platform.python_version(),
      "tensorflow": tf.__version__,
      "machine": platform.machine(),
  }


def run_after(operation, other):
  """Makes an operation that exists wait for one that was built after it."""
  operation._add_control_input(other)  # pylint: disable=protected-access


def compute_capability():
  """Returns (major, minor) of the least of the visible GPUs, or None.

  Asked of the driver: TensorFlow 1.15 would take hold of the GPUs to answer.
  """
  try:
    driver = ctypes.CDLL("libcuda.so.1")
  except OSError:
    return None
  count = ctypes.c_int()
  if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
    return None
  found = []
  for device in range(count.value):
    numbers = []
    for attribute in (75, 76):  # cuda.h: major, minor
      number = ctypes.c_int()
      driver.cuDeviceGetAttribute(ctypes.byref(number), attribute, device)
      numbers.append(number.value)
    found.append(tuple(numbers))
  return min(found) if found else None


def tensor_float_32():
  """Says whether float32 products use TF32 on GPUs that have it.

  Returns:
    bool; None on the tf1 stack, where only the build knows.
  """
  if IS_TF1:
    return None
  return (tf.config.experimental.tensor_float_32_execution_enabled()
          and os.environ.get("NVIDIA_TF32_OVERRIDE") != "0")


def cpu_has_bfloat16():
  """Says whether this CPU multiplies bfloat16 matrices in hardware."""
  return bool({"avx512_bf16", "amx_bf16"} & _cpu_flags())


def _cpu_flags():
  """Returns what /proc/cpuinfo says that the CPU can do, as a set."""
  try:
    with open("/proc/cpuinfo", encoding="utf-8") as stream:
      for line in stream:
        if line.startswith("flags"):
          return set(line.split(":", 1)[1].split())
  except OSError:
    pass
  return set()
