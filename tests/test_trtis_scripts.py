"""Waiting for a server, starting one in a container: the scripts, no server.

Docker, the GPU and the servers that are waited for are stand-ins.
"""

import contextlib
import http.server
import os
import pathlib
import shlex
import shutil
import socket
import subprocess
import sys
import threading

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
WAIT = "scripts/trtis/wait_for_trtis_server.sh"
LAUNCH = "scripts/trtis/launch_server.sh"
DOCKER = "scripts/docker/launch_server.sh"
IMAGE = "nvcr.io/nvidia/tritonserver:23.03-py3"
GPU = "#!/bin/sh\necho 'GPU 0: Test'\n"
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
  (model / "config.pbtxt").write_text('name: "auto_mixed_precision"\n')
  (model / "configs" / "cpu.pbtxt").write_text("")
  return {"PATH": "%s:%s" % (programs, os.environ["PATH"]),
          "RESULTS_DIR": str(tmp_path / "my results")}


def test_the_container_s_command(machine):
  status, out, err = run(DOCKER, "--dry_run", **machine)
  assert (status, err) == (0, "")
  repository = machine["RESULTS_DIR"] + "/trtis_models"
  assert shlex.split(out) == [
      "docker", "run", "--rm", "--init", "--name", "bert_trtis_server",
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
  assert "0.0.0.0:9000:8000" in shlex.split(out) and "mine:1" in out
  line, = err.splitlines()
  assert "was exported for fp16 and is served so" in line


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
