"""The two TensorFlow stacks: the only place that knows how they differ.

`tf1` is TensorFlow 1.15 (the reference), `tf2` is TensorFlow 2.15 used through
its v1 API. All else says `import tensorflow.compat.v1 as tf` and runs on both.
"""

import os
import platform

# TensorFlow reads it when it is imported: errors alone, unless the user has
# said otherwise. A start writes pages about kernels and devices without it.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

# pylint: disable=wrong-import-position
import tensorflow.compat.v1 as tf
from tensorflow.python.util import deprecation

IS_TF1 = tf.__version__.startswith("1.")
NAME = "tf1" if IS_TF1 else "tf2"


def configure():
  """Makes the process behave alike on both stacks; call it once, first.

  Graph mode, v1 control flow, resource variables (reads have an order, and
  reference variables would keep XLA from clustering). Deprecation warnings,
  which the v1 API gives by the hundred, are silenced.
  """
  deprecation._PRINT_DEPRECATION_WARNINGS = False  # pylint: disable=protected-access
  tf.logging.set_verbosity(tf.logging.ERROR)
  tf.disable_v2_behavior()
  # The call above switches resource variables off on either stack.
  tf.enable_resource_variables()


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
