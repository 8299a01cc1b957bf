"""Waiting for a server, starting one in a container: the scripts, no server.

Docker, the GPU and the servers that are waited for are stand-ins.
"""

import contextlib
import http.server
import os
import pathlib
import pty
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

import processes
from utils import ports

ROOT = pathlib.Path(__file__).resolve().parent.parent
WAIT = "scripts/trtis/wait_for_trtis_server.sh"
LAUNCH = "scripts/trtis/launch_server.sh"
DOCKER = "scripts/docker/launch_server.sh"
IMAGE = "nvcr.io/nvidia/tritonserver:23.03-py3"
GPU = "#!/bin/sh\necho 'GPU 0: Test'\n"
FP16 = 'name: "auto_mixed_precision"\n'
KERNELS = """parameters {
  key: "fused_ops_library"
  value {
    string_value: "%s"
  }
}
"""
# An engine whose containers, one a label, are processes. They run on whatever
# becomes of its client, and hear of its signals, as real ones.
ENGINE = """#!/bin/bash
case $1 in
  run)
    while [[ $1 != mine:1 ]]; do
      [[ $1 != --label ]] || label=$2
      shift
    done
    setsid "${@:2}" &
    echo $! >"$ENGINE/$label.new"
    mv "$ENGINE/$label.new" "$ENGINE/$label"
    trap "kill -TERM $!" TERM
    wait $!
    wait $! ;;
  ps) ls "$ENGINE" | grep -Fx "${5#label=}" ;;
  stop) for id in "${@:4}"; do kill -TERM "$(cat "$ENGINE/$id")"; done ;;
esac
"""
SERVER = """#!/bin/sh
[ "$1" != say ] || exec printf '%s\\n' "$LD_PRELOAD" "$LD_LIBRARY_PATH"
exec sleep 1000
"""
# The serving half's scripts, and what they source.
SCRIPTS = sorted(
    [path.name for path in (ROOT / "scripts" / "trtis").glob("*.sh")])

# What stands in for all that the machine has.
pytestmark = pytest.mark.once


def run(script, *words, **variables):
  """(status, standard output, standard error) of a script."""
  env = {key: value for key, value in os.environ.items()
         if not key.startswith(("BERT_SERVER", "CUDA_VISIBLE"))}
  done = subprocess.run(
      ["bash", str(ROOT / script)] + [str(word) for word in words],
      stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
      universal_newlines=True, timeout=120, env=dict(env, **variables))
  return done.returncode, done.stdout, done.stderr


def wait_until(condition):
  deadline = time.time() + 60
  while not condition():
    assert time.time() < deadline
    time.sleep(0.02)


# -- Waiting


class _Health(http.server.BaseHTTPRequestHandler):
  """Answers as a server of Triton's does that loads its models."""

  def do_GET(self):  # pylint: disable=invalid-name
    with self.server.lock:
      self.server.asked.append(self.path)
      times = self.server.asked.count("/v2/health/ready")
    good = self.path == "/v2/health/live" or (
        self.path == "/v2/health/ready" and times >= self.server.ready_at)
    self.send_response(200 if good else 400)
    self.end_headers()

  def log_message(self, *unused):  # pylint: disable=arguments-differ
    """Says nothing."""


@contextlib.contextmanager
def health(ready_at):
  """Yields a server that is ready when it is asked for that often."""
  server = http.server.HTTPServer(("127.0.0.1", 0), _Health)
  server.ready_at, server.asked, server.lock = ready_at, [], threading.Lock()
  thread = threading.Thread(target=server.serve_forever)
  thread.start()
  try:
    yield server
  finally:
    server.shutdown()
    thread.join()
    server.server_close()


def test_waits_until_the_models_are_ready():
  with health(3) as server:
    status, _, err = run(WAIT, "127.0.0.1", "--http_port", server.server_port)
    assert status == 0
    assert "is ready" in err.splitlines()[-1]
    assert server.asked.count("/v2/health/ready") == 3


def test_gives_up_with_the_last_lines(tmp_path):
  log = tmp_path / "server.log"
  log.write_text("".join("line %d\n" % i for i in range(50)))
  with health(1000) as server:
    status, _, err = run(WAIT, "--server_hostname", "127.0.0.1", "--http_port",
                         server.server_port, "--timeout", 2, "--log", log)
  assert status == 1
  lines = err.splitlines()
  assert "is live, but not ready after 2 s" in lines[0]
  assert str(log) in lines[1]
  assert lines[2:] == ["  line %d" % i for i in range(30, 50)]


def test_nobody_answers(tmp_path):
  with socket.socket() as silent:  # takes connections, never says a word
    silent.bind(("127.0.0.1", 0))
    silent.listen(5)
    port = silent.getsockname()[1]
    status, _, err = run(WAIT, "127.0.0.1", "--http_port", port, "--timeout",
                         1, "--log", tmp_path / "none")
  assert status == 1
  line, = err.splitlines()
  assert "nothing answers at 127.0.0.1:%d after 1 s" % port in line


def test_ctrl_c_ends_the_waiting():
  with socket.socket() as silent:
    silent.bind(("127.0.0.1", 0))
    silent.listen(5)
    process, terminal = pty.fork()
    if not process:
      os.execvp("bash", ["bash", str(ROOT / WAIT), "127.0.0.1", "--http_port",
                         str(silent.getsockname()[1]), "--timeout", "600"])
    silent.settimeout(60)
    connection, _ = silent.accept()  # so it is waiting for an answer
    with connection:
      os.write(terminal, b"\x03")
      try:
        wait_until(lambda: not processes.running(process))
      finally:
        os.kill(process, signal.SIGKILL)
        status = os.waitpid(process, 0)[1]
        os.close(terminal)
  assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGINT


def test_waits_at_an_address_of_ipv6():
  status, out, _ = run(WAIT, "::1", "--dry_run")
  assert status == 0 and "http://[::1]:8000/" in out
  assert run(WAIT, "[::1]", "--dry_run")[1] == out


@contextlib.contextmanager
def ended_process(zombie):
  """Yields the id of a process that has ended, asked after or not."""
  process = subprocess.Popen([sys.executable, "-c", ""])
  if zombie:
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
  else:
    process.wait()
  yield process.pid
  process.wait()


@pytest.mark.parametrize("zombie", [False, True])
def test_a_server_that_has_ended_is_not_waited_for(zombie):
  with ended_process(zombie) as process:
    status, _, err = run(WAIT, "127.0.0.1", "--http_port", 9, "--timeout", 100,
                         "--server_process", process)
  assert status == 1
  line, = err.splitlines()
  assert "the server (process %d) has ended" % process in line


# -- Containers


@pytest.fixture(name="machine")
def _machine(tmp_path):
  """Variables of a machine with Docker, a GPU and a repository of a model."""
  programs = tmp_path / "bin"
  programs.mkdir()
  for name, text in (("docker", "#!/bin/sh\nexit 0\n"), ("nvidia-smi", GPU)):
    (programs / name).write_text(text)
    (programs / name).chmod(0o755)
  model = tmp_path / "my results" / "trtis_models" / "bert"
  (model / "configs").mkdir(parents=True)
  (model / "config.pbtxt").write_text(FP16)
  (model / "configs" / "cpu.pbtxt").write_text("")
  return {"PATH": "%s:%s" % (programs, os.environ["PATH"]),
          "RESULTS_DIR": str(tmp_path / "my results")}


def test_the_container_s_command(machine):
  status, out, err = run(DOCKER, "--dry_run", **machine)
  assert (status, err) == (0, "")
  repository = machine["RESULTS_DIR"] + "/trtis_models"
  assert shlex.split(out) == [
      "docker", "run", "--rm", "--init", "--name", "bert_trtis_server_8000",
      "--shm-size=1g", "--ulimit", "memlock=-1", "--ulimit", "stack=67108864",
      "--publish", "127.0.0.1:8000:8000", "--publish", "127.0.0.1:8001:8001",
      "--publish", "127.0.0.1:8002:8002", "--volume",
      repository + ":/models:ro",
      "--health-cmd", "curl -sf localhost:8000/v2/health/ready",
      "--health-interval=10s", "--health-timeout=5s",
      "--health-start-period=120s", "--gpus", "all", "--env",
      "NVIDIA_VISIBLE_DEVICES=all", IMAGE, "tritonserver",
      "--model-repository=/models", "--disable-auto-complete-config"]


def test_the_container_s_options(machine):
  status, out, err = run(
      DOCKER, "fp32", "--http_port", 9000, "--host", "0.0.0.0", "--dry_run",
      BERT_SERVER_IMAGE="mine:1", **machine)
  assert status == 0
  words = shlex.split(out)
  assert "0.0.0.0:9000:8000" in words and "mine:1" in words
  assert "bert_trtis_server_9000" in words
  line, = err.splitlines()
  assert "was exported for fp16 and is served so" in line


def test_precision_is_compared_where_it_is_stated_and_known(machine):
  config = pathlib.Path(machine["RESULTS_DIR"],
                        "trtis_models", "bert", "config.pbtxt")
  config.write_text('name: "bert"\n')
  assert run(LAUNCH, "--docker", "--dry_run", **machine)[::2] == (0, "")
  status, _, err = run(DOCKER, "amp", "--dry_run", **machine)
  assert status == 0 and "was exported for fp32" in err
  # Nothing in it tells what an ONNX model computes in.
  config.write_text('platform: "onnxruntime_onnx"\n')
  for precision in ("fp16", "fp32"):
    assert run(DOCKER, precision, "--dry_run", **machine)[::2] == (0, "")
  status, _, err = run(DOCKER, "bf16", "--dry_run", **machine)
  assert status == 2 and "bf16 is not there at servers" in err


@pytest.mark.parametrize("host, address", [
    ("localhost", "127.0.0.1"), ("::1", "[::1]"), ("[::1]", "[::1]")])
def test_docker_gets_addresses(machine, host, address):
  status, out, _ = run(DOCKER, "--host", host, "--dry_run", **machine)
  assert status == 0
  for port in (8000, 8001, 8002):
    assert "%s:%d:%d" % (address, port, port) in shlex.split(out)


@pytest.mark.parametrize("words, message", [
    (["--host", "no.such.host.invalid"],
     "--host: no.such.host.invalid has no address of IPv4"),
    (["--http_port", 70000], "--http_port is 70000, but has to be 65535"),
    (["--metrics_port", 8001], "--grpc_port and --metrics_port are both 8001"),
    (["--log", "/proc/x/y"], "--log: cannot write to /proc/x/y")])
def test_a_container_s_wrong_options_are_one_line(machine, words, message):
  if "--log" in words:  # what a dry run would not do
    for port, name in zip(ports.free(3),
                          ("http_port", "grpc_port", "metrics_port")):
      words = words + ["--" + name, port]
  else:
    words = words + ["--dry_run"]
  for script in ([DOCKER], [LAUNCH, "--docker"]):
    status, out, err = run(*script + words, **machine)
    assert (status, out) == (1, "")
    line, = err.splitlines()
    assert message in line


def test_the_local_launcher_s_ports_are_checked_in_a_dry_run(machine):
  status, _, err = run(LAUNCH, "--local", "--dry_run", "--grpc_port", 70000,
                       **machine)
  assert status == 1 and "--grpc_port is 70000" in err


@pytest.fixture(name="engine")
def _engine(machine, tmp_path):
  """The same with an engine that runs containers, and a server for them."""
  folder = tmp_path / "engine"
  folder.mkdir()
  for name, text in (("docker", ENGINE), ("tritonserver", SERVER)):
    (tmp_path / "bin" / name).write_text(text)
    (tmp_path / "bin" / name).chmod(0o755)
  yield dict(machine, ENGINE=str(folder), BERT_SERVER_IMAGE="mine:1")
  for container in containers(folder):
    os.kill(container, signal.SIGKILL)


def containers(folder):
  """Ids of the processes that an engine's containers are."""
  found = [int(path.read_text()) for path in pathlib.Path(
      str(folder)).glob("bert_trtis_server=*") if path.suffix != ".new"]
  return [process for process in found if processes.running(process)]


@contextlib.contextmanager
def container(engine, *more):
  """Yields the launcher's process of a container that is up."""
  words = ["bash", str(ROOT / LAUNCH), "--docker"] + list(more)
  for port, name in zip(ports.free(3),
                        ("http_port", "grpc_port", "metrics_port")):
    words += ["--" + name, str(port)]
  process = subprocess.Popen(
      words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
      stderr=subprocess.DEVNULL, env=dict(os.environ, **engine))
  try:
    wait_until(lambda: containers(engine["ENGINE"]))
    yield process
  finally:
    if process.poll() is None:
      process.kill()
    process.wait()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_container_ends_with_its_launcher(engine, number):
  with container(engine) as process:
    process.send_signal(number)
    process.wait(60)
    wait_until(lambda: not containers(engine["ENGINE"]))


def test_the_container_ends_with_a_process(engine):
  with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as watched:
    with container(engine, "--end_with", str(watched.pid)) as process:
      with container(engine, "--end_with", str(os.getpid())) as other:
        watched.stdin.close()  # and it ends, but nobody asks yet how
        process.wait(60)
        running, = containers(engine["ENGINE"])  # the other one
        assert other.poll() is None
        os.kill(running, signal.SIGTERM)
        other.wait(60)


def add_kernels(machine, model, library, version="1"):
  folder = pathlib.Path(machine["RESULTS_DIR"], "trtis_models", model)
  (folder / version).mkdir(parents=True)
  (folder / version / library).write_text("")
  (folder / "config.pbtxt").write_text(FP16 + KERNELS % library)
  return folder / version / library


@pytest.mark.parametrize("library, places, flags", [
    ("libbert_2.11.0_12ab_gpu.so", ["tensorflow2", "tensorflow"], []),
    ("libbert_1.15.5_12ab.so", ["tensorflow1"],
     ["--backend-config=tensorflow,version=1"])])
def test_a_container_s_server_loads_kept_kernels(engine, library, places,
                                                 flags):
  # Once, though two models and more versions have it.
  for model, version in (("bert", "1"), ("bert", "2"), ("other", "3")):
    add_kernels(engine, model, library, version)
  status, out, err = run(DOCKER, "--dry_run", **engine)
  assert (status, err) == (0, "")
  words = shlex.split(out)
  command = words[words.index("mine:1") + 1:]
  assert command[-2 - len(flags):] == [
      "--model-repository=/models", "--disable-auto-complete-config"] + flags
  inside = "/models/bert/1/" + library
  assert inside in command
  # As the container runs it; what is not there is not loaded.
  done = subprocess.run(
      command[:command.index("tritonserver") + 1] + ["say"],
      stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
      universal_newlines=True, check=True,
      env=dict(os.environ, LD_PRELOAD="", LD_LIBRARY_PATH="/image", **engine))
  folder = "/opt/tritonserver/backends/"
  assert done.stdout.splitlines() == [
      inside, ":".join([folder + place for place in places] + ["/image"])]


def test_kernels_that_cannot_be_loaded_are_one_line(machine):
  library = add_kernels(machine, "bert", "libbert_2.11.0_12ab.so")
  add_kernels(machine, "other", "libbert_2.11.0_34cd.so")
  status, _, err = run(DOCKER, "--dry_run", **machine)
  assert status == 1
  line, = err.splitlines()
  assert "of two libraries, /models/bert/1/libbert_2.11.0_12ab.so" in line
  library.unlink()
  status, _, err = run(DOCKER, "--dry_run", **machine)
  assert status == 1
  line, = err.splitlines()
  assert "no version has it" in line


def test_a_container_without_gpus_takes_the_other_configuration(machine):
  status, out, err = run(DOCKER, "--dry_run", CUDA_VISIBLE_DEVICES="",
                         **machine)
  words = shlex.split(out)
  assert status == 0 and "--gpus" not in words and "on the CPU" in err
  model = machine["RESULTS_DIR"] + "/trtis_models/bert"
  assert (model + "/configs/cpu.pbtxt:/models/bert/config.pbtxt:ro") in words


def test_no_engine_is_one_line(machine, tmp_path):
  (tmp_path / "bin" / "docker").write_text("#!/bin/sh\nexit 1\n")
  status, out, err = run(DOCKER, **machine)
  assert (status, out) == (1, "")
  line, = err.splitlines()
  assert "no Docker engine answers" in line and "--local" in line


def test_a_container_s_busy_port_is_one_line(machine):
  with health(1) as server:
    status, _, err = run(DOCKER, "--grpc_port", server.server_port, **machine)
  assert status == 1
  line, = err.splitlines()
  assert "port %d (--grpc_port) is taken" % server.server_port in line


def test_docker_where_there_is_an_engine_else_local(machine, tmp_path):
  def words(*more):
    status, out, _ = run(LAUNCH, "--dry_run", "--metrics_port", 9002, *more,
                         **dict(machine, BERT_VENV_DIR=str(tmp_path)))
    assert status == 0
    return shlex.split(out)

  assert words()[0] == words("--docker")[0] == "docker"
  assert "127.0.0.1:9002:8002" in words()
  local = words("--local")
  assert local[:2] == [str(tmp_path / "serving" / "bin" / "python"),
                       str(ROOT / "serving" / "launch_local.py")]
  assert local[2:4] == ["--repository",
                        machine["RESULTS_DIR"] + "/trtis_models"]
  assert local[-2:] == ["--metrics_port", "9002"]
  (tmp_path / "bin" / "docker").write_text("#!/bin/sh\nexit 1\n")
  assert words() == local


def test_no_server_yet_is_one_line(machine, tmp_path):
  status, _, err = run(LAUNCH, "--local",
                       **dict(machine, BERT_VENV_DIR=str(tmp_path)))
  assert status == 1
  line, = err.splitlines()
  assert "scripts/trtis/setup.sh --only serving" in line


# -- The scripts themselves


@pytest.mark.parametrize("script", [
    "trtis/" + name for name in SCRIPTS] + ["docker/launch_server.sh"])
def test_help_and_unknown_words(script):
  status, out, err = run("scripts/" + script, "--help")
  assert (status, err) == (0, "")
  assert "bash scripts/" + script in out and "shellcheck" not in out
  status, _, err = run("scripts/" + script, "--nonsense", "1")
  assert status == 2 and len(err.splitlines()) == 1


def test_shellcheck():
  program = shutil.which("shellcheck") or str(
      pathlib.Path(sys.executable).parent / "shellcheck")
  if not os.path.exists(program):
    pytest.skip("shellcheck is not installed")
  done = subprocess.run(
      [program, "-x"] + ["scripts/trtis/" + name for name in SCRIPTS]
      + [DOCKER], cwd=str(ROOT), stdout=subprocess.PIPE,
      universal_newlines=True)
  assert done.returncode == 0, done.stdout
