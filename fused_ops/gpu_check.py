"""Checks the CUDA kernels against float64, and times them.

  python fused_ops/gpu_check.py [--output FILE.md] [--quick]
  python fused_ops/gpu_check.py --build_only --arch sm_90

Needs nvcc and numpy, and neither TensorFlow nor PyTorch. Takes a minute or so
on a GPU. Where there is none, the kernels are compiled for all architectures
from sm_70 to sm_90 that the compiler knows, and nothing runs. A kernel that
fails does not keep the others from being checked: each group of kernels has a
process of its own. Exits with 0 if all that could be checked is right; a speed
that is missed is shown, but is no error.
"""

import argparse
import datetime
import hashlib
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

# pylint: disable=wrong-import-position
try:
  from fused_ops import cuda
  from fused_ops import gpu_cases
except ImportError as error:
  sys.exit("gpu_check: %s: take a Python that has numpy" % error)

_SHARE = 0.8  # of the copy's bandwidth, that memory-bound kernels shall reach
_GROUP_SECONDS = 120  # after which a group of kernels is said to hang


# Build -----------------------------------------------------------------------


def library_path(architectures):
  """Returns where the library of these sources and architectures lies."""
  digest = hashlib.sha256(" ".join(architectures).encode())
  for path in sorted(cuda.KERNELS.glob("gpu_*.cu*")) + [
      cuda.KERNELS / "gpu_kernels.h"]:
    digest.update(path.read_bytes())
  name = "_".join(architectures[:1] + architectures[1:][-1:])
  return cuda.BUILD / ("libbert_gpu_%s_%s.so" % (name, digest.hexdigest()[:16]))


def build(compiler, architectures):
  """Returns the path of the library, made if it was not there.

  Args:
    compiler: path of nvcc.
    architectures: list such as ["sm_75", "sm_90"].

  Raises:
    cuda.CudaError: if the compiler fails.
  """
  path = library_path(architectures)
  if path.exists():
    return path
  cuda.BUILD.mkdir(parents=True, exist_ok=True)
  log = path.with_suffix(".log")
  with tempfile.TemporaryDirectory(dir=str(cuda.BUILD)) as folder:
    commands = cuda.compile_commands(
        compiler, architectures,
        sorted(one.name for one in cuda.KERNELS.glob("gpu_*.cu")), folder)
    cuda.run_all([command for _, command in commands], log)
    partial = os.path.join(folder, path.name)
    cuda.run_all([[compiler, "-shared", "-o", partial]
                  + cuda.code_flags(architectures)
                  + [one for one, _ in commands]], log)
    os.replace(partial, str(path))
  return path


# Checks ----------------------------------------------------------------------


def run_group(library, group, quick):
  """Runs a group of kernels in a process of its own.

  Returns:
    [row], each a dict as `gpu_cases.run` prints it; the last one is a failed
    check if the process did not reach its end.
  """
  command = [sys.executable, os.path.abspath(__file__), "--group", group,
             "--library", str(library)] + (["--quick"] if quick else [])
  rows, fault = [], None
  try:
    done = subprocess.run(command, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, check=False,
                          timeout=_GROUP_SECONDS)
    output = done.stdout
    if done.returncode:
      words = done.stderr.decode(errors="replace").strip().splitlines()
      fault = words[-1] if words else "exit code %d" % done.returncode
  except subprocess.TimeoutExpired as error:
    output, fault = error.stdout or b"", "no end after %d s" % _GROUP_SECONDS
  for line in output.decode().splitlines():
    rows.append(json.loads(line))
  if fault:
    rows.append({"check": group, "fault": fault})
  return rows


def check_line(row):
  """Returns a check's line, which begins with "ok" or "FAIL"."""
  if row.get("fault"):
    return "FAIL %s: %s" % (row["check"], row["fault"])
  return "ok   %s: error %.1e of %.0e" % (row["check"], row["error"],
                                          row["limit"])


def is_good(row):
  return not row.get("fault")


def table(rows):
  """Returns the lines of Markdown of the timed kernels."""
  lines = ["| kernel | type | shape | µs | GB/s | of the copy | >= %d %% |"
           % (100 * _SHARE), "|---|---|---|---|---|---|---|"]
  for row in rows:
    share = row["bandwidth"] / row["copy"]
    lines.append("| %s | %s | %s | %.1f | %.0f | %.0f %% | %s |" % (
        row["timed"], row["type"], row["shape"], row["microseconds"],
        row["bandwidth"] / 1e9, 100 * share,
        "-" if not row["memory_bound"] else
        "PASS" if share >= _SHARE else "MISS"))
  return lines


def report(about, rows):
  """Returns the Markdown of a run."""
  checks = [row for row in rows if "check" in row]
  copies = [row["copy"] for row in rows if "timed" in row]
  lines = ["# CUDA kernels on %s" % about["device"], "",
           "Driver %s, CUDA %s (nvcc), %s, %s." % (
               about["driver"], about["toolkit"], about["architecture"],
               about["date"]), ""]
  if copies:
    lines += ["Bandwidth counts each input and output once, beside that of a "
              "copy on the", "device in the same process (%.0f to %.0f GB/s)."
              % (min(copies) / 1e9, max(copies) / 1e9), ""]
  lines += table([row for row in rows if "timed" in row])
  lines += ["", "%d of %d checks against float64 passed; the largest error as "
            "a share of its limit:" % (sum(map(is_good, checks)), len(checks)),
            "", "| kernel | checks | largest error / limit |", "|---|---|---|"]
  kernels = []
  for row in checks:
    if row["check"].split()[0] not in kernels:
      kernels.append(row["check"].split()[0])
  for kernel in kernels:
    own = [row for row in checks if row["check"].split()[0] == kernel]
    worst = max([row["error"] / row["limit"] for row in own if is_good(row)]
                or [float("nan")])
    lines.append("| %s | %d of %d | %.2f |" % (
        kernel, sum(map(is_good, own)), len(own), worst))
  return "\n".join(lines) + "\n"


def driver_version():
  """Returns the driver's version, or "unknown"."""
  try:
    text = pathlib.Path("/proc/driver/nvidia/version").read_text()
  except OSError:
    return "unknown"
  found = re.search(r"\s(\d+\.[\d.]+)\s", text)
  return found.group(1) if found else "unknown"


def check(library, options, about):
  """Runs all groups; returns whether all is right."""
  rows = []
  for group in gpu_cases.groups():
    for row in run_group(library, group, options.quick):
      rows.append(row)
      if "check" in row:
        print(check_line(row), flush=True)
      if "device" in row:
        about["device"] = row["device"]
  print("\n" + report(about, rows))
  if options.output:
    partial = options.output + ".partial"
    with open(partial, "w", encoding="utf-8") as handle:
      handle.write(report(about, rows))
    os.replace(partial, options.output)
  bad = [row for row in rows if "check" in row and not is_good(row)]
  for row in bad:
    print(check_line(row))
  return not bad


def _options(arguments):
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--output", help="Markdown file for the tables")
  parser.add_argument("--quick", action="store_true",
                      help="fewer shapes, seeds and rounds")
  parser.add_argument("--build_only", action="store_true")
  parser.add_argument("--arch", help="such as sm_90 or sm_75,sm_90")
  parser.add_argument("--group", choices=sorted(gpu_cases.groups()),
                      help="what one process runs")
  parser.add_argument("--library", help="the compiled kernels, for --group")
  return parser.parse_args(arguments)


def main(arguments=None):
  """Returns the exit code."""
  options = _options(arguments)
  if options.group:
    gpu_cases.run(options.library, options.group, options.quick)
    return 0
  if options.output and not os.path.isdir(
      os.path.dirname(os.path.abspath(options.output))):
    raise cuda.CudaError("--output=%s: there is no such folder"
                         % options.output)
  here = cuda.this_architecture()
  wanted = cuda.architectures(options.arch) if options.arch else []
  compiler = cuda.nvcc()
  wanted = wanted or ([here] if here else cuda.known_architectures(compiler))
  library = build(compiler, wanted)
  print("built for %s by nvcc %s: %s" % (
      ", ".join(wanted), cuda.toolkit(compiler),
      library.relative_to(cuda.ROOT)))
  if options.build_only:
    return 0
  if not here:
    print("no GPU here: nothing was run")
    return 0
  about = {"device": "an unknown GPU", "driver": driver_version(),
           "toolkit": cuda.toolkit(compiler), "architecture": here,
           "date": datetime.date.today().isoformat()}
  return 0 if check(library, options, about) else 1


if __name__ == "__main__":
  try:
    sys.exit(main())
  except (cuda.CudaError, OSError) as error:
    sys.exit("gpu_check: %s" % error)
