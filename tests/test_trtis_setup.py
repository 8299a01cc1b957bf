"""scripts/trtis/setup.sh: environments of serving, from stand-in packages.

Environments are made for real, of wheels of a few bytes; no network. That the
real ones start is seen wherever a test starts the real server.
"""

import re
import shutil
import subprocess

import pytest

from setup_sandbox import bare_path  # pylint: disable=unused-import
from setup_sandbox import clean_environment
from setup_sandbox import executable
from setup_sandbox import finish
from setup_sandbox import one_line
from setup_sandbox import ROOT
from setup_sandbox import run
from setup_sandbox import start
from setup_sandbox import write_wheel
import trtis_server

# scripts/test.sh itself makes the environments.
pytestmark = pytest.mark.once

NAMES = ("serving", "client", "onnx")
MADE = NAMES[:2]
PACKAGES = {
    "tensorflow-cpu": ("2.15.1", ["tensorflow"]),
    "onnxruntime": ("1.23.2", ["onnxruntime"]),
    "numpy": ("1.26.4", ["numpy"]), "matplotlib": ("3.8.4", ["matplotlib"]),
    "tf2onnx": ("1.17.0", ["tf2onnx"]), "onnx": ("1.16.2", ["onnx"]),
    "tritonclient": ("2.51.0", ["tritonclient/grpc", "tritonclient/http"]),
}
LISTS = {
    "serving": "tensorflow-cpu==2.15.1\nonnxruntime==1.23.2\nnumpy==1.26.4\n"
               "nvidia-pytriton==0.7.0\n",
    "client": "tritonclient==2.51.0\nnumpy==1.26.4\nmatplotlib==3.8.4\n"
              "nvidia-pytriton==0.7.0\n",
    "onnx": "tensorflow-cpu==2.15.1\ntf2onnx==1.17.0\nonnx==1.16.2\n"
            "onnxruntime==1.23.2\n",
}
SERVER = "pytriton/tritonserver/"


def base_python():
  """The interpreter that the real environment was made from."""
  real = trtis_server.environment("serving") / "bin" / "python"
  return subprocess.check_output(
      [str(real), "-c", "import os, sys; print(os.path.join("
       "sys.base_prefix, 'bin', 'python%d.%d' % sys.version_info[:2]))"],
      universal_newlines=True).strip()


class Checkout:
  """A copy of the set-up scripts with short lists and stand-in packages."""

  def __init__(self, folder):
    self.root = folder / "checkout"
    self.venv = self.root / ".venv"
    wheels = folder / "wheels"
    for path in (self.root / "scripts" / "trtis", wheels, folder / "home"):
      path.mkdir(parents=True)
    shutil.copytree(str(ROOT / "scripts" / "setup"),
                    str(self.root / "scripts" / "setup"))
    shutil.copy(str(ROOT / "scripts" / "trtis" / "setup.sh"),
                str(self.root / "scripts" / "trtis"))
    for name, text in LISTS.items():
      (self.root / ("requirements-%s.txt" % name)).write_text(text)
    for name, (version, modules) in PACKAGES.items():
      write_wheel(wheels, name, version,
                  {"%s/__init__.py" % module: "" for module in modules})
    write_wheel(wheels, "nvidia-pytriton", "0.7.0", dict(
        {SERVER + "bin/tritonserver": "server",
         SERVER + "backends/python/libtriton_python.so": "backend",
         "nvidia_pytriton.libs/libb64-12.so.0d": "b64",
         "nvidia_pytriton.libs/libcudart-34.so.12.6": "cudart",
         "nvidia_pytriton.libs/libpython3-56.13.so.1.0": "python",
         "pytriton/__init__.py": "nothing that is needed"},
        **{"%spython_backend_stubs/3.%d/triton_python_backend_stub" % (
            SERVER, minor): "stub of 3.%d" % minor
           for minor in range(8, 14)}))
    self.pip_log = folder / "pip.log"
    self.environment = clean_environment(
        HOME=str(folder / "home"), BERT_SERVING_PYTHON=base_python(),
        PIP_NO_INDEX="1", PIP_FIND_LINKS=str(wheels),
        PIP_LOG=str(self.pip_log))

  def setup(self, *arguments, **more):
    return finish(start(
        "bash", "scripts/trtis/setup.sh", *arguments, cwd=str(self.root),
        env=dict(self.environment, **more)))


@pytest.fixture(name="made", scope="module")
def _made(tmp_path_factory):
  """A checkout with two of the three, since each takes seconds to make."""
  checkout = Checkout(tmp_path_factory.mktemp("made"))
  for name in MADE:
    status, out, err = checkout.setup("--only", name)
    assert status == 0, (out, err)
    assert out.splitlines()[-1].startswith("setup %s: ready: Python 3" % name)
  return checkout


def test_triton_s_files_are_where_its_programs_look_for_them(made):
  triton = made.venv / "serving" / "triton"
  server = triton / SERVER
  assert (server / "bin" / "tritonserver").stat().st_mode & 0o111
  backend = server / "backends" / "python"
  version = re.search(r"python(3\.\d+)$", base_python()).group(1)
  stub = backend / "triton_python_backend_stub"
  assert stub.read_text() == "stub of " + version
  assert stub.stat().st_mode & 0o111
  assert not (server / "python_backend_stubs").exists()
  # The library of this Python, and of no other.
  link = triton / "python" / ("libpython%s.so.1.0" % version)
  assert link.stat().st_size > 10 ** 6
  assert sorted(p.name for p in (triton / "nvidia_pytriton.libs").iterdir()
               ) == ["libb64-12.so.0d", "libcudart-34.so.12.6"]
  assert not (triton / "pytriton" / "__init__.py").exists()
  client = made.venv / "client" / "lib" / "perf_analyzer"
  assert {p.name: p.read_text() for p in client.iterdir()} == {
      "libb64.so.0d": "b64", "libcudart.so.12": "cudart"}


def test_a_second_run_does_nothing(made):
  stamps = [made.venv / name / "setup-stamp" for name in MADE]
  before = [stamp.stat().st_mtime_ns for stamp in stamps]
  made.pip_log.unlink()
  for name in MADE:
    status, out, _ = made.setup("--only=" + name)
    assert status == 0 and "ready" in one_line(out)
  assert before == [stamp.stat().st_mtime_ns for stamp in stamps]
  assert not made.pip_log.exists()  # pip was not even started


def test_damage_is_noticed(made):
  serving = made.venv / "serving"
  server = serving / "triton" / SERVER / "bin" / "tritonserver"
  check = [str(serving / "bin" / "python"), "-I",
           str(ROOT / "scripts" / "setup" / "environment.py"), "check",
           str(serving / "setup-stamp")]
  assert run(*check) == (0, "", "")
  server.write_text("cut")
  status, out, _ = run(*check)
  assert status == 1 and "tritonserver is damaged or gone" in one_line(out)
  server.write_text("server")
  assert run(*check)[0] == 0


def test_what_was_whole_is_kept_when_an_update_fails(made):
  path = made.root / "requirements-client.txt"
  stamp = (made.venv / "client" / "setup-stamp").read_text()
  path.write_text(LISTS["client"].replace("2.51.0", "2.99.0"))
  status, out, err = made.setup("--only=client")
  path.write_text(LISTS["client"])
  assert status == 1 and len(err.splitlines()) == 1
  assert "was made from other lists" in out
  assert (made.venv / "client" / "setup-stamp").read_text() == stamp
  assert "ready" in one_line(made.setup("--only=client")[1])


@pytest.mark.parametrize("arguments, message", [
    (["--only", "tf2"], "serving, client or onnx"), (["--only"], "has to be"),
    (["--olny", "onnx"], "unknown argument '--olny'")])
def test_wrong_arguments_are_refused(arguments, message):
  status, _, err = run("bash", "scripts/trtis/setup.sh", *arguments)
  assert status == 2
  assert message in one_line(err)


def test_without_a_python_it_is_one_line(tmp_path, bare_path):
  env = {"PATH": str(bare_path), "HOME": str(tmp_path),
         "BERT_VENV_DIR": str(tmp_path / "venv")}
  status, _, err = run("bash", "scripts/trtis/setup.sh", env=env)
  assert status == 1
  assert "found no Python (3.11 3.10)" in one_line(err)
  assert "BERT_SERVING_PYTHON" in err


@pytest.mark.parametrize("name", NAMES)
def test_a_named_python_that_will_not_do_is_one_line(tmp_path, name):
  for python, fault in (
      ("/nonexistent", "there is no program /nonexistent"),
      ("/bin/true", "/bin/true is no Python 3.11 or 3.10 that can make")):
    status, _, err = run(
        "bash", "scripts/trtis/setup.sh", "--only", name,
        env=clean_environment(BERT_VENV_DIR=str(tmp_path),
                              BERT_SERVING_PYTHON=python))
    assert status == 1
    assert one_line(err).startswith(
        "setup %s: BERT_SERVING_PYTHON: %s" % (name, fault))


def test_runner_says_that_no_server_was_tested(tmp_path):
  shutil.copytree(str(ROOT / "scripts" / "setup"),
                  str(tmp_path / "scripts" / "setup"))
  shutil.copy(str(ROOT / "scripts" / "test.sh"), str(tmp_path / "scripts"))
  (tmp_path / "scripts" / "trtis").mkdir()
  (tmp_path / "scripts" / "setup.sh").write_text("exit 0\n")
  (tmp_path / "scripts" / "trtis" / "setup.sh").write_text("exit 1\n")
  (tmp_path / ".venv" / "tf1" / "bin").mkdir(parents=True)
  executable(tmp_path / ".venv" / "tf1" / "bin" / "python",
             "#!/bin/sh\nexit 0\n")
  command = ["bash", "scripts/test.sh", "--stack", "tf1"]
  status, out, _ = run(*command, cwd=str(tmp_path), env=clean_environment(
      BERT_BASE_PYTHON="/nonexistent/python"))
  assert status == 0
  assert "no server was tested: this machine has no Python" in out
  # Where there is one, set-up has no reason to fail.
  status, out, _ = run(*command, cwd=str(tmp_path), env=clean_environment(
      BERT_BASE_PYTHON=base_python()))
  assert status == 1
  assert "tf1  FAILED" in out


# -- The lists


@pytest.mark.parametrize("name", NAMES)
def test_lists_are_exact_and_say_why(name):
  text = (ROOT / ("requirements-%s.txt" % name)).read_text()
  packages = [line for line in text.splitlines()
              if line and not line.startswith("#")]
  for line in packages:
    assert re.match(r"[A-Za-z0-9._-]+==[0-9][0-9a-z.]*( ; python_version "
                    r'[<>=]+ "3\.11")?$', line), line
  direct = text[text.index("# -- Direct"):text.index("# -- Transitive")]
  lines = direct.splitlines()
  for before, line in zip(lines, lines[1:]):
    if line and not line.startswith("#"):
      assert before.startswith("#"), line


def test_lists_agree_with_each_other():
  """One version of a package in all environments, but where there is a reason.

  The client's generated code needs a newer gRPC.
  """
  found = {}
  for path in ROOT.glob("requirements-*.txt"):
    if path.name not in ("requirements-peers.txt", "requirements-test.txt"):
      for name, version in re.findall(
          r"^([A-Za-z0-9._-]+)==([^ \n]+)", path.read_text(), re.M):
        found.setdefault(name.lower(), set()).add(version)
  assert {name for name, versions in found.items() if len(versions) > 1} == {
      "grpcio"}


def test_perf_analyzer_finds_its_libraries():
  client = trtis_server.environment("client")
  out = subprocess.check_output(
      [str(client / "bin" / "perf_analyzer"), "--version"],
      stderr=subprocess.STDOUT,
      env={"LD_LIBRARY_PATH": str(client / "lib" / "perf_analyzer")})
  assert b"2.51.0" in out
