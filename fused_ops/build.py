"""Compiles the kernels for the TensorFlow of this environment.

  python fused_ops/build.py

scripts/setup.sh runs it. Takes about half a minute on two cores, and nothing
where the library is there already. The last line names the library; a failure
is one line, with the compiler's own words in the file that it names.
"""

import concurrent.futures
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

# pylint: disable=wrong-import-position
from fused_ops import library
from utils import stack  # pylint: disable=unused-import
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


def _commands(compiler, folder):
  """Returns [(object file, command)] of the sources."""
  found = []
  for table, width, flags in _TABLES:
    path = os.path.join(folder, table + ".o")
    found.append((path, [compiler] + _COMMON + _ARITHMETIC + flags + [
        "-std=c++14", "-DBERT_WIDTH=%d" % width,
        "-DBERT_KERNELS=kernels_" + table, "fused_ops/kernels/cpu_kernels.cc",
        "-o", path]))
  standard = "-std=c++14" if stack.IS_TF1 else "-std=c++17"
  for name in ("ops", "optimizer_ops"):
    path = os.path.join(folder, name + ".o")
    found.append((path, [compiler] + _COMMON + ["-O2", "-w", standard]
                  + tf.sysconfig.get_compile_flags()
                  + ["fused_ops/kernels/cpu_%s.cc" % name, "-o", path]))
  return found


def build():
  """Returns the path of the library, made if it was not there.

  Raises:
    RuntimeError: if there is no compiler or it fails, with one line.
  """
  path = library.path()
  if path.exists():
    return path
  compiler = os.environ.get("CXX") or shutil.which("g++")
  if not compiler:
    raise RuntimeError("no C++ compiler (g++) here")
  path.parent.mkdir(parents=True, exist_ok=True)
  log = path.with_suffix(".log")
  with tempfile.TemporaryDirectory(dir=str(path.parent)) as folder:
    commands = _commands(compiler, folder)
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count() or 1) as pool:
      list(pool.map(lambda one: _run(one[1], log), commands))
    partial = os.path.join(folder, path.name)
    _run([compiler, "-shared"] + [one for one, _ in commands]
         + tf.sysconfig.get_link_flags() + ["-o", partial], log)
    os.replace(partial, str(path))
  return path


def _run(command, log):
  """Runs a compiler in the checkout's root."""
  done = subprocess.run(command, cwd=str(library.ROOT), stdout=subprocess.PIPE,
                        stderr=subprocess.STDOUT, check=False)
  if done.returncode:
    log.write_bytes(" ".join(command).encode() + b"\n" + done.stdout)
    raise RuntimeError("%s failed (see %s)" % (command[0], log))


if __name__ == "__main__":
  try:
    print(build())
  except (RuntimeError, OSError) as error:
    sys.exit("fused_ops: not built: %s" % error)
