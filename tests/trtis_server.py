"""The real Triton server for tests, as its launcher starts it, and questions.

Questions go over HTTP as JSON, which needs no package, or over gRPC through
the client environment.
"""

import contextlib
import ipaddress
import json
import os
import pathlib
import signal
import struct
import subprocess
import time
import urllib.error
import urllib.request

import numpy as np
import pytest

from utils import ports

ROOT = pathlib.Path(__file__).resolve().parent.parent
LAUNCHER = ROOT / "scripts" / "trtis" / "launch_server.sh"
_GRPC = """
import json, sys
import numpy as np
from tritonclient import grpc
from tritonclient.utils import InferenceServerException


def infer(arrays, model="bert", version="", datatype="INT32"):
  inputs = []
  for name, rows in sorted(arrays.items()):
    array = np.array(rows, datatype.lower())
    inputs.append(grpc.InferInput(name, list(array.shape), datatype))
    inputs[-1].set_data_from_numpy(array)
  result = client.infer(model, inputs, model_version=version)
  return {o.name: result.as_numpy(o.name).tolist()
          for o in result.get_response().outputs}


url, calls = json.load(sys.stdin)
client = grpc.InferenceServerClient(url)
said = []
for name, arguments in calls:
  call = infer if name == "infer" else getattr(client, name)
  try:
    said.append([None, call(**arguments)])
  except InferenceServerException as error:
    said.append([error.status(), error.message()])
print(json.dumps(said, default=str))
"""


def environment(name):
  """Folder of environment serving, client or onnx; skips where it is not."""
  folder = pathlib.Path(
      os.environ.get("BERT_VENV_DIR") or ROOT / ".venv") / name
  if not (folder / "setup-stamp").exists():
    pytest.skip("no environment %s (bash scripts/trtis/setup.sh)" % folder)
  return folder


class Refused(Exception):
  """What the server says to a request that it does not answer."""

  def __init__(self, status, message):
    super(Refused, self).__init__(message)
    self.status = status


class Server:
  """A server under way.

  Attributes:
    http_url, grpc_url, metrics_url: "host:port".
    pid: of the launcher, which leads a process group.
    log: path of what the server says.
  """

  def __init__(self, repository, log, ignored=(), **options):
    found = ports.free(3)
    self.http_url, self.grpc_url, self.metrics_url = [
        "127.0.0.1:%d" % port for port in found]
    words = ["bash", str(LAUNCHER), "--local", "--repository", str(repository),
             "--log", str(log)]
    options = dict(zip(("http_port", "grpc_port", "metrics_port"), found),
                   **options)
    for item in sorted(options.items()):
      words += ["--" + item[0], str(item[1])]
    self.log = pathlib.Path(str(log))
    self.process = subprocess.Popen(
        words, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE,
        universal_newlines=True, start_new_session=True,
        preexec_fn=lambda: _handle(ignored))
    self.pid = self.process.pid

  def wait_ready(self, seconds=120):
    """Waits until it can be asked; fails with its words if it ends before."""
    deadline = time.time() + seconds
    while not self.is_ready():
      if self.process.poll() is not None or time.time() > deadline:
        self.stop()
        raise AssertionError("no server: %s\n%s" % (
            self.process.stderr.read(), self.log.read_text()[-3000:]))
      time.sleep(0.1)
    # The launcher sees it a moment later, or has ended.
    for line in self.process.stderr:
      if "ready: " in line:
        break

  def is_ready(self):
    try:
      self.get("health/ready")
    except (OSError, Refused):
      return False
    return True

  def stop(self, number=signal.SIGTERM):
    """Ends it and waits for that; returns its exit status."""
    if self.process.poll() is None:
      self.process.send_signal(number)
    return self.process.wait(60)

  def processes(self):
    """Ids of the server and the processes of its models."""
    prefix = " --http-port=%s " % self.http_url.split(":")[1]
    for folder in pathlib.Path("/proc").glob("[0-9]*"):
      with contextlib.suppress(OSError):
        line = (folder / "cmdline").read_text().replace("\0", " ")
        if prefix in line + " " and "/tritonserver " in line:
          return [int(folder.name)] + _children(int(folder.name))
    return []

  def listeners(self):
    """Where they listen: [(ipaddress, port)]."""
    mine = set()
    for process in self.processes():
      for path in pathlib.Path("/proc/%d/fd" % process).glob("*"):
        with contextlib.suppress(OSError):
          mine.add(os.readlink(str(path)))
    found = []
    for name in ("tcp", "tcp6"):
      for line in pathlib.Path("/proc/net", name).read_text().splitlines()[1:]:
        _, local, _, state, _, _, _, _, _, inode = line.split()[:10]
        if state == "0A" and "socket:[%s]" % inode in mine:
          found.append(_address(*local.split(":")))
    return found

  def get(self, path, body=None):
    """What it says to GET (with `body` POST) /v2/`path`; None for no words."""
    request = urllib.request.Request(
        "http://%s/v2/%s" % (self.http_url, path),
        None if body is None else json.dumps(body).encode("utf-8"))
    try:
      with urllib.request.urlopen(request, timeout=60) as answer:
        words = answer.read()
    except urllib.error.HTTPError as error:
      words = error.read().decode("utf-8", "replace")
      with contextlib.suppress(ValueError):
        words = json.loads(words).get("error", words)
      raise Refused(error.code, words)
    return json.loads(words.decode("utf-8")) if words else None

  def ask(self, arrays, model="bert", version="", datatype="INT32"):
    """Asks over HTTP: {input: rows} to {output: array}; Refused if refused."""
    inputs = [{"name": name, "datatype": datatype,
               "shape": list(np.shape(rows)),
               "data": np.asarray(rows).ravel().tolist()}
              for name, rows in sorted(arrays.items())]
    place = "models/%s%s/infer" % (model, version and "/versions/%s" % version)
    answer = self.get(place, {"inputs": inputs})
    return {o["name"]: np.array(o["data"], np.float32).reshape(o["shape"])
            for o in answer["outputs"]}

  def call_grpc(self, calls):
    """Makes calls over gRPC, from one process of the client environment.

    Args:
      calls: [(method of tritonclient's client, {argument: value})]; "infer"
        takes the arguments of `ask`.

    Returns:
      For each what it gave or a `Refused`, in that order.
    """
    done = subprocess.run(
        [str(environment("client") / "bin" / "python"), "-c", _GRPC],
        input=json.dumps([self.grpc_url, calls], default=np.ndarray.tolist),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        universal_newlines=True, timeout=120)
    assert not done.returncode, done.stderr
    return [Refused(status, words) if status else words
            for status, words in json.loads(done.stdout)]

  def ask_grpc(self, arrays, **question):
    """What `ask` does, over gRPC."""
    answer, = self.call_grpc([("infer", dict(question, arrays=arrays))])
    if isinstance(answer, Refused):
      raise answer
    return {name: np.array(rows, np.float32) for name, rows in answer.items()}

  def counts(self, model="bert", version=""):
    """(sequences, executions) that its own statistics tell."""
    stats = self.get("models/%s%s/stats" % (
        model, version and "/versions/%s" % version))["model_stats"]
    return (sum(s["inference_count"] for s in stats),
            sum(s["execution_count"] for s in stats))


def _handle(ignored):
  """Ignores these signals, but not others that the tests' own shell does."""
  for number in (signal.SIGINT, signal.SIGHUP):
    signal.signal(
        number, signal.SIG_IGN if number in ignored else signal.SIG_DFL)


def _address(number, port):
  """(ipaddress, port) as /proc/net writes them."""
  words = [int(number[i:i + 8], 16) for i in range(0, len(number), 8)]
  address = ipaddress.ip_address(struct.pack("=%dI" % len(words), *words))
  return getattr(address, "ipv4_mapped", None) or address, int(port, 16)


def _children(process):
  found = []
  for path in pathlib.Path("/proc").glob("[0-9]*/stat"):
    with contextlib.suppress(OSError):
      fields = path.read_text().rpartition(")")[2].split()
      if fields[1] == str(process) and fields[0] not in "ZX":
        found.append(int(path.parent.name))
  return found


@contextlib.contextmanager
def server(repository, log=None, **options):
  """Yields a `Server` that is ready; ends it behind.

  Args:
    repository: folder of the models.
    log: path for what it says; default: beside the repository.
    **options: of launch_server.sh, such as `host`; `ignored`, signals that it
      starts with ignored.
  """
  environment("serving")
  started = Server(repository, log or "%s.log" % repository, **options)
  try:
    started.wait_ready()
    yield started
  finally:
    started.stop()
    started.process.stderr.close()
