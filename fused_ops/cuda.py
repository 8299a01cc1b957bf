"""The CUDA compiler and the GPU at hand. Needs neither TensorFlow nor numpy."""

import concurrent.futures
import ctypes
import os
import pathlib
import re
import shutil
import subprocess

ROOT = pathlib.Path(__file__).resolve().parent.parent
KERNELS = ROOT / "fused_ops" / "kernels"
BUILD = ROOT / "fused_ops" / "build"


class CudaError(Exception):
  """What the compiler lacks or says, in one line."""


def nvcc():
  """Returns the compiler's path.

  Raises:
    CudaError: if there is none.
  """
  found = shutil.which("nvcc") or shutil.which("nvcc",
                                               path="/usr/local/cuda/bin")
  if not found:
    raise CudaError("no CUDA compiler here: put nvcc on the PATH")
  return found


def toolkit(compiler):
  """Returns the compiler's release, such as "13.0"."""
  text = subprocess.run([compiler, "--version"], stdout=subprocess.PIPE,
                        check=False).stdout.decode()
  found = re.search(r"release ([\d.]+)", text)
  return found.group(1) if found else "unknown"


def known_architectures(compiler):
  """Returns the architectures from sm_70 to sm_90 that the compiler knows."""
  # CUDA 10 has no such option, but lists them in its help.
  for option in ("--list-gpu-arch", "--help"):
    done = subprocess.run([compiler, option], stdout=subprocess.PIPE,
                          stderr=subprocess.DEVNULL, check=False)
    found = {int(n) for n in re.findall(r"compute_(\d+)\b",
                                        done.stdout.decode())}
    found = ["sm_%d" % n for n in sorted(found) if 70 <= n <= 90]
    if done.returncode == 0 and found:
      return found
  raise CudaError("%s names no architecture from sm_70 to sm_90" % compiler)


def this_architecture():
  """Returns the first GPU's architecture, such as "sm_90", or None."""
  try:
    driver = ctypes.CDLL("libcuda.so.1")
  except OSError:
    return None
  device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
  if driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(device), 0):
    return None
  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_{MAJOR,MINOR}
  driver.cuDeviceGetAttribute(ctypes.byref(major), 75, device)
  driver.cuDeviceGetAttribute(ctypes.byref(minor), 76, device)
  return "sm_%d%d" % (major.value, minor.value)


def architectures(text):
  """Returns the list of --arch, such as "sm_75,sm_90".

  Raises:
    CudaError: if one is no name of an architecture.
  """
  names = text.split(",")
  for name in names:
    if not re.match(r"sm_\d{2,3}$", name):
      raise CudaError("--arch=%s: %r is no name such as sm_80" % (text, name))
  return names


def code_flags(architectures):
  """Returns nvcc's flags for code of architectures such as ["sm_75"]."""
  return ["-gencode=arch=compute_%s,code=%s" % (one[3:], one)
          for one in architectures]


def compile_commands(compiler, architectures, sources, folder):
  """Returns [(object file, command)] of .cu files, to be run in `ROOT`.

  Args:
    compiler: path of nvcc.
    architectures: list such as ["sm_75", "sm_90"].
    sources: names in `KERNELS`.
    folder: str, for the objects.
  """
  commands = []
  for name in sources:
    target = os.path.join(folder, name.replace(".cu", ".cu.o"))
    commands.append((target, [
        compiler, "-O3", "-std=c++14", "-Xcompiler", "-fPIC", "-I.", "-c",
        str((KERNELS / name).relative_to(ROOT)), "-o", target
    ] + code_flags(architectures)))
  return commands


def run_all(commands, log):
  """Runs compilers in the checkout's root, as many at once as there are CPUs.

  Args:
    commands: list of lists.
    log: pathlib.Path that gets the words of one that fails.

  Raises:
    CudaError: if one fails.
  """
  def run(command):
    done = subprocess.run(command, cwd=str(ROOT), stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, check=False)
    if done.returncode:
      log.write_bytes(" ".join(command).encode() + b"\n" + done.stdout)
      raise CudaError("%s failed (see %s)" % (command[0], log))
  with concurrent.futures.ThreadPoolExecutor(os.cpu_count() or 1) as pool:
    list(pool.map(run, commands))
