"""Prints what has to be equal on all machines of a run, and the GPUs here.

  python scripts/lib/versions.py

One line, `here: tensorflow=2.15.1 horovod=0.28.1 ...`; hosts.sh compares those
of several machines. It imports nothing heavy.
"""

import glob
import hashlib
import os
import platform
import subprocess

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(
    os.path.abspath(__file__))))


def version(*names):
  """Returns the version of the first of these packages that is installed."""
  try:
    from importlib import metadata
    find, missing = metadata.version, metadata.PackageNotFoundError
  except ImportError:  # Python 3.7 and older
    import pkg_resources
    find = lambda name: pkg_resources.get_distribution(name).version
    missing = pkg_resources.DistributionNotFound
  for name in names:
    try:
      return find(name)
    except missing:
      pass
  return "none"


def sources():
  """Returns a short hash of the suite's Python sources."""
  digest = hashlib.sha256()
  for folder in ("", "utils"):
    for path in sorted(glob.glob(os.path.join(ROOT, folder, "*.py"))):
      with open(path, "rb") as stream:
        digest.update(stream.read())
  return digest.hexdigest()[:12]


def gpus():
  """Returns the number of GPUs that nvidia-smi lists."""
  try:
    listed = subprocess.run(
        ["nvidia-smi", "-L"], stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, timeout=30).stdout
  except (OSError, subprocess.TimeoutExpired):
    return 0
  return sum(
      line.startswith(b"GPU ") for line in listed.splitlines())


def main():
  print("here: tensorflow=%s horovod=%s python=%s sources=%s gpus=%d" % (
      version("tensorflow", "tensorflow-gpu", "tensorflow-cpu",
              "nvidia-tensorflow"),
      version("horovod"), ".".join(platform.python_version_tuple()[:2]),
      sources(), gpus()))


if __name__ == "__main__":
  main()
