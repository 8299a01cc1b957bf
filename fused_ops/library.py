"""Finds and loads the compiled kernels; see fused_ops/build.py."""

import functools
import hashlib
import json
import pathlib
import platform

import tensorflow.compat.v1 as tf

ROOT = pathlib.Path(__file__).resolve().parent.parent
_SOURCES = ("build.py", "cuda.py", "kernels/*.h", "kernels/*.cuh",
            "kernels/cpu_*.cc", "kernels/gpu_*.cc", "kernels/gpu_*.cu")


def path(gpu=None):
  """Returns where the library of these sources and this TensorFlow lies.

  Args:
    gpu: bool, whether that with kernels for GPUs, too; None for it if it is
      there, else the other.
  """
  if gpu is None:
    both = path(True)
    return both if both.exists() else path(False)
  digest = hashlib.sha256()
  for pattern in _SOURCES:
    for source in sorted((ROOT / "fused_ops").glob(pattern)):
      digest.update(source.read_bytes())
  for word in [tf.__version__, platform.machine()
              ] + tf.sysconfig.get_compile_flags():
    # Not where it is installed.
    digest.update(word.encode() if not word.startswith("-I") else b"")
  return ROOT / "fused_ops" / "build" / (
      "libbert_%s_%s%s.so" % (tf.__version__, digest.hexdigest()[:16],
                              "_gpu" if gpu else ""))


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


# On GPUs ---------------------------------------------------------------------

CHECK_UNKNOWN = 2  # exit status of op_check.py where it could not check


def record_path():
  """Returns where build.py writes what the check on a GPU has found."""
  return path(True).with_suffix(".json")


def record(architecture, passed):
  """Writes whether the kernels' operations are right on a GPU.

  Args:
    architecture: str, such as "sm_90".
    passed: bool.
  """
  partial = record_path().with_suffix(".partial")
  partial.write_text(json.dumps({architecture: passed}))
  partial.replace(record_path())


def recorded(architecture):
  """Returns whether the check on a GPU has passed; None if it never ran."""
  try:
    return json.loads(record_path().read_text()).get(architecture)
  except (OSError, ValueError):
    return None


def gpu_fault(capability):
  """Returns why the kernels cannot be taken on a GPU, as text, or None.

  Args:
    capability: (int, int), or None where it is not known.
  """
  if not path(True).exists():
    return ("built for CPUs alone (python fused_ops/build.py builds them where "
            "there is a GPU and nvcc)")
  passed = recorded("sm_%d%d" % capability) if capability else None
  if passed is None:
    return "not checked on this GPU (python fused_ops/build.py does it)"
  if not passed:
    return "found wrong on this GPU (python fused_ops/op_check.py says where)"
  return fault()
