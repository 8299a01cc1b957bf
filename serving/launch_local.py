"""Runs the real tritonserver on this machine's CPU until it is told to end.

scripts/trtis/launch_server.sh starts it with the Python of .venv/serving. It
serves all models of a repository with their configuration for CPUs
(configs/cpu.pbtxt), through the Python backends beside this file. A model that
cannot be loaded ends the start: a server without it would look healthy.

Ctrl-C and SIGTERM let requests under way be answered, then all ends; a second
one ends it at once. However this process ends, kill -9 included, a watchdog
sees to it that the server, the processes of its models, their shared memory
and the temporary folder go, too.
"""

import argparse
import ctypes
import errno
import glob
import ipaddress
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request

HERE = os.path.dirname(os.path.realpath(__file__))
ENVIRONMENT = sys.prefix
TRITON = os.path.join(ENVIRONMENT, "triton")
PROGRAM = os.path.join(TRITON, "pytriton", "tritonserver")
BACKENDS = ("tensorflow", "onnxruntime")
SERVICES = ("http", "grpc", "metrics")
# What clients have no need of and could do harm with: writing the log to any
# file, mapping memory. It takes a header made up anew for each start.
FORBIDDEN = "logging,trace,shared-memory"
# Seconds for requests under way at the end; until all is killed then, and if
# models are still being loaded.
GRACE, PATIENCE, IMPATIENCE = 10, 20, 2
# A line of the server that tells of an error; without a GPU there are some of
# no matter. Its last one says no more than that not all models were loaded.
ERROR = re.compile(r'E\d{4} \S+ \d+ \S+\] (?!"?(?:Cuda|CUDA|DCGM))"?(.*?)"?$')
# What it says once the models are loaded, and the seconds until it has to be
# ready then. How long loading takes nobody knows: a line says that it does.
STARTED = '"Started HTTPService at '
SILENCE, TELL = 60, 120


def say(text):
  sys.stderr.write("launch_server.sh: %s\n" % text)
  sys.stderr.flush()


class Fault(Exception):
  """One line for the user; ends the program with status 1."""


def parse_arguments():
  parser = argparse.ArgumentParser()
  parser.add_argument("--repository", required=True)
  parser.add_argument("--host", default="127.0.0.1")
  for number, name in enumerate(SERVICES):
    parser.add_argument("--%s_port" % name, type=int, default=8000 + number)
  parser.add_argument("--log", default="")
  parser.add_argument("--end_with", type=int, default=0)
  return parser.parse_args()


# Before the start -------------------------------------------------------------


def check_repository(folder):
  """Raises Fault unless a folder holds models."""
  if not os.path.isdir(folder):
    raise Fault("--repository: there is no folder %s; scripts/trtis/"
                "export_model.sh makes one" % folder)
  if not glob.glob(os.path.join(glob.escape(folder), "*", "config.pbtxt")):
    raise Fault("--repository: %s holds no model (<name>/config.pbtxt)"
                % folder)


def address_of(host):
  """The number of a host, such as 127.0.0.1; Fault if there is none.

  Each service of the server would resolve a name for itself: that of HTTP
  cannot and listens elsewhere, without a word.
  """
  try:
    return socket.getaddrinfo(
        host, None, socket.AF_INET, socket.SOCK_STREAM)[0][4][0]
  except (socket.gaierror, UnicodeError):
    raise Fault("--host: %s is no IPv4 address of this machine, nor the name "
                "of one; the server takes no others" % host)


def check_ports(options):
  """Raises Fault if the server could not listen where it is told to."""
  ports = {}
  for name in SERVICES:
    flag, port = name + "_port", getattr(options, name + "_port")
    if port in ports:
      raise Fault("--%s and --%s are both %d; give three different ports"
                  % (ports[port], flag, port))
    ports[port] = flag
    if port > 65535:
      raise Fault("--%s is %d, but has to be 65535 or less" % (flag, port))
    try:
      with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # Connections that have ended are no reason, a listener is.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((options.address, port))
        probe.listen(1)
    except OSError as error:
      if error.errno == errno.EADDRINUSE:
        raise Fault("port %d (--%s) is taken by another program; give another "
                    "port or end that one" % (port, flag))
      raise Fault("--%s: cannot listen on %s port %d (%s)"
                  % (flag, options.address, port, error))


# The server -------------------------------------------------------------------


def command(options, folder, prefix):
  """Returns the server's command line and makes what it refers to.

  Args:
    options: parsed arguments.
    folder: str, a temporary folder.
    prefix: str, how the names of its shared memory begin.
  """
  backends = os.path.join(folder, "backends")
  os.mkdir(backends)
  os.symlink(os.path.join(PROGRAM, "backends", "python"),
             os.path.join(backends, "python"))
  for name in BACKENDS:
    os.symlink(os.path.join(HERE, name), os.path.join(backends, name))
  # What it starts for a model splits this path at its blanks, and hangs.
  models = os.path.join(folder, "models")
  os.symlink(os.path.abspath(options.repository), models)
  words = [os.path.join(PROGRAM, "bin", "tritonserver"),
           "--model-repository=" + models,
           "--model-config-name=cpu", "--disable-auto-complete-config",
           "--backend-directory=" + backends,
           "--cache-directory=" + os.path.join(PROGRAM, "caches"),
           "--backend-config=python,shm-region-prefix-name=" + prefix,
           "--exit-timeout-secs=%d" % GRACE,
           "--allow-gpu-metrics=false", "--pinned-memory-pool-byte-size=0"]
  for flag in ("http-restricted-api", "grpc-restricted-protocol"):
    words.append("--%s=%s:key=%s" % (flag, FORBIDDEN, secrets.token_hex(16)))
  for name in SERVICES:
    words.append("--%s-address=%s" % (name, options.address))
    words.append("--%s-port=%d" % (name, getattr(options, name + "_port")))
  return words


def environment():
  """Variables of the server: its Python is this one, its GPU none."""
  kept = {name: value for name, value in os.environ.items()
          if not name.startswith("PYTHON")}
  libraries = [os.path.join(TRITON, "python"),
               os.path.join(TRITON, "nvidia_pytriton.libs")]
  return dict(kept, PYTHONNOUSERSITE="1", CUDA_VISIBLE_DEVICES="",
              PATH=os.path.join(ENVIRONMENT, "bin") + os.pathsep
              + kept.get("PATH", os.defpath),
              LD_LIBRARY_PATH=os.pathsep.join(libraries))


def state_and_group(path):
  """(state, process group) from a file /proc/<process>/stat; "X" for none."""
  try:
    with open(path) as stream:
      state, _, group = stream.read().rpartition(")")[2].split()[:3]
  except OSError:
    return "X", ""
  return state, group


def alive(group):
  """Whether a process of a group still runs; one that is a zombie does not."""
  found = [state_and_group(path) for path in glob.glob("/proc/[0-9]*/stat")]
  return any(its_group == str(group) and state not in "ZX"
             for state, its_group in found)


def end_group(group, seconds):
  """Ends all processes of a group, after `seconds` by force."""
  deadline = time.time() + seconds
  number = signal.SIGTERM
  while alive(group):
    if time.time() > deadline:
      number = signal.SIGKILL
    if number:
      try:
        os.killpg(group, number)
      except ProcessLookupError:
        return
      number = None if number == signal.SIGTERM else number
    time.sleep(0.05)


def remove_traces(folder, prefix):
  shutil.rmtree(folder, ignore_errors=True)
  for path in glob.glob("/dev/shm/%s*" % glob.escape(prefix)):
    try:
      os.remove(path)
    except OSError:
      pass


def start_watchdog(folder, prefix):
  """Forks a process that cleans up once this one has ended.

  Returns:
    A descriptor to tell it the server's process group by; it is closed with
    this process, whatever ends that.
  """
  reading, writing = os.pipe()
  if os.fork():
    os.close(reading)
    return writing
  try:
    os.setsid()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
      signal.signal(number, signal.SIG_IGN)
    os.close(writing)
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):  # else a reader of ours would wait for it
      os.dup2(null, descriptor)
    told = b""
    while True:
      piece = os.read(reading, 100)
      if not piece:
        break
      told += piece
    if told:
      end_group(int(told), PATIENCE)
    remove_traces(folder, prefix)
  finally:
    os._exit(0)  # pylint: disable=protected-access


def end_with_launcher():
  """In the server's process: SIGTERM for it once the launcher has ended.

  For the case that the watchdog is killed as well.
  """
  pr_set_pdeathsig = 1
  ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM, 0, 0, 0)


class Server:
  """The started server and what it says."""

  def __init__(self, options, folder, prefix):
    self.options = options
    self.ready = False
    self.begun = time.monotonic()
    self.started = None  # when it said that it listens
    self.first_error = self.last_line = ""
    self._models = os.path.join(folder, "models")
    self._reader = None
    self._log = open(options.log, "ab") if options.log else None
    told = start_watchdog(folder, prefix)
    self.process = subprocess.Popen(
        command(options, folder, prefix), env=environment(),
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, start_new_session=True,
        preexec_fn=end_with_launcher)
    os.write(told, b"%d" % self.process.pid)
    self._reader = threading.Thread(target=self._read, daemon=True)
    self._reader.start()

  def _read(self):
    """Passes the server's lines on and keeps the first error."""
    stream = self._log or sys.stderr.buffer
    for line in self.process.stdout:
      text = line.decode("utf-8", "replace").rstrip()
      error = ERROR.match(text)
      if error and not self.first_error:
        self.first_error = error.group(1).split("\\n")[0]  # less the stack
      if STARTED in text:
        self.started = time.monotonic()
      self.last_line = text
      try:
        stream.write(line)
        stream.flush()
      except OSError:
        pass  # a full disk or a closed terminal must not stop the server

  def named(self, text):
    """A text of its with the repository by the name that the user knows."""
    return text.replace(self._models, self.options.repository)

  def is_ready(self):
    address = "http://%s:%d/v2/health/ready" % (
        self.options.address.replace("0.0.0.0", "127.0.0.1"),
        self.options.http_port)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
      with opener.open(address, timeout=5) as answer:
        return answer.status == 200
    except (OSError, urllib.error.URLError):
      return False

  def end(self):
    end_group(self.process.pid, PATIENCE if self.ready else IMPATIENCE)
    self.process.wait()
    self._reader.join(5)


class Stopper:
  """Ctrl-C and SIGTERM: the first asks, the second forces.

  What is ignored already stays so: nohup and a shell's "&" mean it.
  """

  def __init__(self):
    self.asked = threading.Event()
    self.server = None
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
      if signal.getsignal(number) != signal.SIG_IGN:
        signal.signal(number, self._handle)

  def _handle(self, *unused):
    if self.asked.is_set() and self.server:
      os.killpg(self.server.process.pid, signal.SIGKILL)
    self.asked.set()


def watch(server, stopper):
  """Waits for the server's end or the user's word; returns an exit status."""
  options = server.options
  told = False
  while not stopper.asked.wait(0.2):
    if server.process.poll() is not None:
      server.end()
      raise Fault(last_words(server))
    if not server.ready and server.is_ready():
      server.ready = True
      say("ready: http %s:%d, grpc %s:%d, metrics %s:%d (process %d); Ctrl-C "
          "ends it" % (options.address, options.http_port, options.address,
                       options.grpc_port, options.address,
                       options.metrics_port, server.process.pid))
    if not server.ready:
      told = check_start(server, told)
    if options.end_with and state_and_group(
        "/proc/%d/stat" % options.end_with)[0] in "ZX":
      break
  say("ending the server")
  server.end()
  return 0


def check_start(server, told):
  """Looks after a server that is not ready; returns whether that was told."""
  options, now = server.options, time.monotonic()
  if not told and now > server.begun + TELL:
    told = True
    say("not ready after %d s, still waiting; the server said last: %s%s"
        % (TELL, server.named(server.last_line), log(options)))
  if server.started and now > server.started + SILENCE:
    raise Fault("the server says that it listens, but is not ready at %s port "
                "%d after %d s%s" % (options.address, options.http_port,
                                     SILENCE, log(options)))
  return told


def log(options):
  """Where to read on, for the end of a line."""
  return " (log: %s)" % options.log if options.log else ""


def last_words(server):
  """Text on a server that has ended by itself."""
  text = "the server has ended with status %d %s" % (
      server.process.returncode,
      "by itself" if server.ready else "before it was ready")
  if server.first_error:
    text += ": " + server.named(server.first_error)
  return text + log(server.options)


def main():
  options = parse_arguments()
  stopper = Stopper()
  try:
    check_repository(options.repository)
    options.address = address_of(options.host)
    check_ports(options)
    if not ipaddress.ip_address(options.address).is_loopback:
      say("warning: listening on %s, for all who can reach this machine: no "
          "password, no encryption (README, \"In front of others\")"
          % options.address)
    folder = tempfile.mkdtemp(
        prefix="bert_trtis_",
        # The folder that TMPDIR names would be split, too.
        dir="/tmp" if re.search(r"\s", tempfile.gettempdir()) else None)
    prefix = os.path.basename(folder) + "_"
    try:
      stopper.server = Server(options, folder, prefix)
      return watch(stopper.server, stopper)
    finally:
      if stopper.server:
        stopper.server.end()
      remove_traces(folder, prefix)
  except Fault as fault:
    say(fault)
    return 1


if __name__ == "__main__":
  sys.exit(main())
