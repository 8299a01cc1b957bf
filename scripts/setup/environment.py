"""What is in a Python environment, and whether it is still whole.

Run by the environment's own interpreter, from scripts/setup.sh:

  python -I environment.py packages       installed packages, one a line
  python -I environment.py check STAMP    the same ones, all files there?
  python -I environment.py versions       of Python, TensorFlow, Horovod
  python -I environment.py files FOLDER   what lies in a folder, one a line

`check` looks at the size of each installed file (a stat each, well under a
second), so a deleted package or file and one cut short are noticed, as is
another version; so are files that the stamp lists by `files`. It prints the
first fault and exits with status 1. Packages that somebody added are left in
peace.
"""

import csv
import os
import platform
import sys
import sysconfig

SITE = sysconfig.get_paths()["purelib"]


def packages():
  """Names of the metadata folders, such as `numpy-1.18.5.dist-info`."""
  return sorted(name for name in os.listdir(SITE)
                if name.endswith((".dist-info", ".egg-info")))


def damaged_file(package):
  """First installed file of a package that is absent or has another size.

  Headers are passed over: there are thousands, and only a build needs them.
  """
  record = os.path.join(SITE, package, "RECORD")
  if not os.path.exists(record):
    return None if package.endswith(".egg-info") else record
  with open(record, newline="", encoding="utf-8") as lines:
    for row in csv.reader(lines):
      if len(row) < 3 or not row[2] or row[0].endswith((".h", ".pyc")):
        continue
      try:
        if os.stat(os.path.join(SITE, row[0])).st_size != int(row[2]):
          return row[0]
      except OSError:
        return row[0]
  return None


def size_of(path):
  """Bytes of a file, as text; None where there is none."""
  try:
    return str(os.stat(path).st_size)
  except OSError:
    return None


def files(folder):
  """Lines `file SIZE PATH` of all files below a folder."""
  found = [os.path.join(place, name) for place, _, names in os.walk(folder)
           for name in names if not name.endswith(".pyc")]
  return ["file %s %s" % (size_of(path), os.path.abspath(path))
          for path in sorted(found)]


def fault(stamp):
  """One line on what is wrong with the environment, or None."""
  with open(stamp, encoding="utf-8") as stream:
    lines = stream.read().splitlines()
  for line in lines:
    if line.startswith("file "):
      _, size, path = line.split(" ", 2)
      if size_of(path) != size:
        return "file %s is damaged or gone" % path
  wanted = [line.split(None, 1)[1] for line in lines
            if line.startswith("package ")]
  present = set(packages())
  for package in wanted:
    name = package.rsplit(".", 1)[0]
    if package not in present:
      return "package %s is gone or another version" % name
    damaged = damaged_file(package)
    if damaged:
      return "package %s is damaged: %s" % (name, damaged)
  return None


def versions():
  """Prints what a user of the environment gets; fails if it does not start."""
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
  import tensorflow
  print("python %s" % platform.python_version())
  print("tensorflow %s" % tensorflow.__version__)
  try:
    import horovod
    import horovod.tensorflow as hvd
  except Exception:  # any failure means the same: one process only
    print("horovod no")
    return
  parts = [name for name, there in (
      ("MPI", hvd.mpi_built()), ("Gloo", hvd.gloo_built()),
      ("NCCL", hvd.nccl_built())) if there]
  print("horovod %s (%s)" % (horovod.__version__, ", ".join(parts)))


def main(arguments):
  if arguments[:1] == ["packages"]:
    print("\n".join("package " + name for name in packages()))
  elif arguments[:1] == ["versions"]:
    versions()
  elif arguments[:1] == ["files"]:
    print("\n".join(files(arguments[1])))
  else:
    found = fault(arguments[1])
    if found:
      print(found)
      sys.exit(1)


if __name__ == "__main__":
  main(sys.argv[1:])
