"""The contenders' processes, seen from the program that tells them to run."""

import contextlib
import json
import os
import pathlib
import subprocess
import tempfile

from benchmarks.peers import contenders

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
_HOW = {"tf1": "bash scripts/setup.sh --stack tf1 --with_tests",
        "tf2": "bash scripts/setup.sh --stack tf2 --with_tests",
        "peers": "bash benchmarks/peers.sh"}
# What each option of bench_peers.py that names an interpreter is for.
OPTIONS = {"tf1": "tf1_python", "tf2": "tf2_python", "peers": "peer_python"}


class Fault(Exception):
  """A contender cannot run, or has stopped; its message is one line."""


def python_of(environment, options):
  """Returns the interpreter of "tf1", "tf2" or "peers".

  Raises:
    Fault: if there is none.
  """
  asked = getattr(options, OPTIONS[environment])
  folder = pathlib.Path(os.environ.get("BERT_VENV_DIR") or ROOT / ".venv")
  path = asked or str(folder / environment / "bin" / "python")
  if not os.access(path, os.X_OK):
    raise Fault("there is no %s: %s makes it, --%s names another" % (
        path, _HOW[environment], OPTIONS[environment]))
  return path


class Worker(object):
  """A contender's process; use it as a context.

  Args:
    name: of the contender.
    section: str, the work.
    sizes: `work.Sizes`.
    options: of the command line.
    logs: folder of what the processes say.

  Raises:
    Fault: if it cannot start.
  """

  def __init__(self, name, section, sizes, options, logs):
    self.name = name
    python = python_of(contenders.CONTENDERS[name].environment, options)
    self._folder = tempfile.TemporaryDirectory(prefix="bench_peers_")
    self._log = os.path.join(logs, "%s_%s.log" % (section, name))
    task = dict(section=section, contender=name, sizes=sizes._asdict(),
                threads=options.threads, cpus=options.cpus,
                features=os.path.abspath(options.features),
                folder=self._folder.name)
    try:
      with open(self._log, "w") as log:
        self._process = subprocess.Popen(
            [python, "-m", "benchmarks.peers.worker", json.dumps(task)],
            cwd=str(ROOT), env=_environment(options.threads),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
            universal_newlines=True)
    except OSError as error:
      raise Fault("%s cannot be run (%s)" % (python, error.strerror))

  def __enter__(self):
    return self

  def __exit__(self, *unused):
    self._process.kill()
    with contextlib.suppress(BrokenPipeError):
      self._process.stdin.close()
    self._process.wait()
    self._process.stdout.close()
    self._folder.cleanup()

  def wait_ready(self):
    """Returns when the graph is built; raises Fault if it cannot be."""
    self._read()

  def ask(self, what, **request):
    """Returns the answer to a request; see `worker.Bench`."""
    # Where the process is gone, reading tells how it ended.
    with contextlib.suppress(BrokenPipeError):
      self._process.stdin.write(json.dumps(dict(request, do=what)) + "\n")
      self._process.stdin.flush()
    return self._read()["answer"]

  def _read(self):
    line = self._process.stdout.readline()
    answer = json.loads(line) if line.endswith("\n") else dict(
        fault="ended with status %s" % self._process.wait())
    if "fault" in answer:
      raise Fault("%s (see %s)" % (answer["fault"], self._log))
    return answer


def _environment(threads):
  """Returns the environment variables of a contender."""
  path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
  return dict(os.environ, PYTHONPATH=path, CUDA_VISIBLE_DEVICES="",
              OMP_NUM_THREADS=str(threads), MKL_NUM_THREADS=str(threads))
