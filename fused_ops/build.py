"""Compiles the kernels for the TensorFlow of this environment.

  python fused_ops/build.py [--arch sm_80,sm_90]

scripts/setup.sh runs it. Takes about half a minute on two cores, and nothing
where the library is there already. Where there is a GPU and nvcc, or an
architecture is named, the library has the CUDA kernels, too: another minute;
on a GPU they are then checked. The last line names the library; a failure is
one line, with the compiler's own words in the file that it names.
"""

import argparse
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

# pylint: disable=wrong-import-position
from fused_ops import cuda
from fused_ops import library
from utils import stack
import tensorflow.compat.v1 as tf

# The kernels keep NaN and infinity, but may reorder sums.
_ARITHMETIC = ["-O3", "-fno-math-errno", "-fno-trapping-math",
               "-fno-signed-zeros", "-fassociative-math", "-ffp-contract=fast"]
_COMMON = ["-fPIC", "-fvisibility=hidden", "-I.", "-c"]
# (table, floats in a register, flags); the first is for any x86-64 of the last
# ten years, and what other machines have.
_TABLES = (("generic", 4, []), ("avx2", 8, ["-mavx2", "-mfma"]),
           ("avx512", 16, ["-mavx512f", "-mavx512dq", "-mavx512bw",
                           "-mavx512vl", "-mfma", "-mprefer-vector-width=512"]))
_GPU_SOURCES = ("gpu_attention.cu", "gpu_cross_entropy.cu", "gpu_gelu.cu",
                "gpu_norm.cu", "gpu_optimizers.cu")
_CHECK_SECONDS = 600  # after which the check on a GPU is said to hang


def table_commands(compiler, folder):
  """Returns [(object file, command)] of the CPUs' kernels."""
  found = []
  for table, width, flags in _TABLES:
    path = os.path.join(folder, table + ".o")
    found.append((path, [compiler] + _COMMON + _ARITHMETIC + flags + [
        "-std=c++14", "-DBERT_WIDTH=%d" % width,
        "-DBERT_KERNELS=kernels_" + table, "fused_ops/kernels/cpu_kernels.cc",
        "-o", path]))
  return found


def operation_commands(compiler, folder, names, more=()):
  """Returns [(object file, command)] of TensorFlow's operations.

  Args:
    compiler: path of g++.
    folder: str, for the objects.
    names: of sources, such as "cpu_ops".
    more: flags.
  """
  standard = "-std=c++14" if stack.IS_TF1 else "-std=c++17"
  found = []
  for name in names:
    path = os.path.join(folder, name + ".o")
    found.append((path, [compiler] + _COMMON + ["-O2", "-w", standard]
                  + list(more) + tf.sysconfig.get_compile_flags()
                  + ["fused_ops/kernels/%s.cc" % name, "-o", path]))
  return found


def build(architectures=()):
  """Returns the path of the library, made if it was not there.

  Args:
    architectures: of GPUs, such as ["sm_90"]; none for CPUs alone.

  Raises:
    RuntimeError: if there is no compiler or it fails, with one line.
  """
  path = library.path(bool(architectures))
  if path.exists():
    return path
  compiler = os.environ.get("CXX") or shutil.which("g++")
  if not compiler:
    raise RuntimeError("no C++ compiler (g++) here")
  path.parent.mkdir(parents=True, exist_ok=True)
  log = path.with_suffix(".log")
  try:
    with tempfile.TemporaryDirectory(dir=str(path.parent)) as folder:
      commands = table_commands(compiler, folder) + operation_commands(
          compiler, folder, ("cpu_ops", "cpu_optimizer_ops"))
      link_flags = tf.sysconfig.get_link_flags()
      if architectures:
        toolkit = pathlib.Path(cuda.nvcc()).resolve().parent.parent
        commands += cuda.compile_commands(cuda.nvcc(), architectures,
                                          _GPU_SOURCES, folder)
        commands += operation_commands(
            compiler, folder, ("gpu_ops", "gpu_optimizer_ops"),
            ["-I%s" % (toolkit / "include")])
        link_flags = link_flags + ["-L%s" % (toolkit / "lib64"),
                                   "-l:libcudart_static.a", "-lrt", "-ldl",
                                   "-lpthread"]
      cuda.run_all([command for _, command in commands], log)
      partial = os.path.join(folder, path.name)
      cuda.run_all([[compiler, "-shared"] + [one for one, _ in commands]
                    + link_flags + ["-o", partial]], log)
      os.replace(partial, str(path))
  except cuda.CudaError as error:
    raise RuntimeError(str(error))
  return path


def check_on_gpu(architecture):
  """Checks the library on this machine's GPU, unless that is done.

  Args:
    architecture: str, the GPU's.

  Returns:
    A line of what is wrong, or None.
  """
  log = library.path(True).with_suffix(".check.log")
  if library.recorded(architecture) is None:
    with log.open("wb") as stream:
      try:
        status = subprocess.call(
            [sys.executable,
             str(library.ROOT / "fused_ops" / "op_check.py")],
            stdout=stream, stderr=stream, timeout=_CHECK_SECONDS)
      except subprocess.TimeoutExpired:
        status = 1
    if status == library.CHECK_UNKNOWN:
      return log.read_text().splitlines()[-1]
    library.record(architecture, status == 0)
  if library.recorded(architecture):
    return None
  return "their check on this GPU failed (see %s; %s keeps it from being " \
      "repeated)" % (log, library.record_path().name)


def main(arguments=None):
  """Builds what this machine can have; returns the library's path."""
  parser = argparse.ArgumentParser(
      description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--arch", default="",
                      help="GPUs to build for, commas between; default: the "
                      "one here")
  asked = parser.parse_args(arguments).arch
  here = cuda.this_architecture()
  if not asked and not here:
    return build()
  try:
    wanted = cuda.architectures(asked) if asked else [here]
    cuda.nvcc()
    path = build(wanted)
    fault = check_on_gpu(here) if here else None
  except (RuntimeError, cuda.CudaError) as error:
    if asked:
      raise RuntimeError(str(error))
    path, fault = build(), str(error)
  if fault:
    print("fused_ops: not for GPUs: %s" % fault, flush=True)
  return path


if __name__ == "__main__":
  try:
    print(main())
  except (RuntimeError, OSError) as error:
    sys.exit("fused_ops: not built: %s" % error)
