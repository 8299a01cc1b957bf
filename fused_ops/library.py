"""Finds and loads the compiled kernels; see fused_ops/build.py."""

import functools
import hashlib
import pathlib
import platform

import tensorflow.compat.v1 as tf

ROOT = pathlib.Path(__file__).resolve().parent.parent
_SOURCES = ("kernels/cpu_kernels.h", "kernels/cpu_kernels.cc",
            "kernels/cpu_ops.h", "kernels/cpu_ops.cc",
            "kernels/cpu_optimizer_ops.cc", "build.py")


def path():
  """Returns where the library of these sources and this TensorFlow lies."""
  digest = hashlib.sha256()
  for name in _SOURCES:
    digest.update((ROOT / "fused_ops" / name).read_bytes())
  for word in [tf.__version__, platform.machine()
              ] + tf.sysconfig.get_compile_flags():
    # Not where it is installed.
    digest.update(word.encode() if not word.startswith("-I") else b"")
  return ROOT / "fused_ops" / "build" / (
      "libbert_%s_%s.so" % (tf.__version__, digest.hexdigest()[:16]))


@functools.lru_cache(maxsize=None)
def fault():
  """Returns why there are no kernels here, as text, or None."""
  if not path().exists():
    return "not built here (bash scripts/setup.sh builds them)"
  try:
    load()
  except (tf.errors.OpError, OSError) as error:
    return "%s cannot be loaded (%s)" % (path(), str(error).splitlines()[0])
  return None


@functools.lru_cache(maxsize=None)
def load():
  """Returns the module of the kernels' operations."""
  return tf.load_op_library(str(path()))
