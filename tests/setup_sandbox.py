"""What the tests of set-up share: a checkout to set up, processes, stand-ins.

Environments are made for real, from stand-in packages of a few bytes: wheels
that a copy of the checkout with short lists installs from a folder.
"""

import base64
import hashlib
import os
import pathlib
import shutil
import subprocess
import sys
import zipfile

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
STACK = "tf1" if sys.version_info < (3, 9) else "tf2"
LISTS = ("requirements.txt", "requirements-tf2.txt", "requirements-test.txt")
TENSORFLOW = {"tf1": ("tensorflow", "1.15.5"),
              "tf2": ("tensorflow-cpu", "2.15.1")}[STACK]
VERSION = "%d.%d" % sys.version_info[:2]
BASE_PYTHON = os.path.join(sys.base_prefix, "bin", "python" + VERSION)
TOOLS = ("bash awk cat chmod cut dirname env find flock grep head ln mkdir"
         " mktemp mv readlink realpath rm sed sha256sum sleep sort tail timeout"
         " tr uname wc").split()


def write_wheel(folder, name, version, files):
  """Makes a wheel of `files` ({path: text}) as pip expects one."""
  plain = name.replace("-", "_")
  info = "%s-%s.dist-info" % (plain, version)
  files = dict(files)
  files[info + "/METADATA"] = (
      "Metadata-Version: 2.1\nName: %s\nVersion: %s\n" % (name, version))
  files[info + "/WHEEL"] = (
      "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\n"
      "Tag: py3-none-any\n")
  rows = []
  for path, text in files.items():
    digest = hashlib.sha256(text.encode()).digest()
    rows.append("%s,sha256=%s,%d" % (
        path, base64.urlsafe_b64encode(digest).decode().rstrip("="),
        len(text.encode())))
  rows.append(info + "/RECORD,,")
  files[info + "/RECORD"] = "\n".join(rows) + "\n"
  path = folder / ("%s-%s-py3-none-any.whl" % (plain, version))
  with zipfile.ZipFile(str(path), "w") as wheel:
    for member, text in files.items():
      wheel.writestr(member, text)


# Stands for fused_ops/build.py: notes its calls, fails with a broken compiler.
BUILD = """import os, pathlib, sys
folder = pathlib.Path(__file__).resolve().parent / "build"
folder.mkdir(exist_ok=True)
with open(str(folder / "calls"), "a") as stream:
  stream.write("x")
if os.environ.get("CXX") == "broken":
  sys.exit("fused_ops: not built: broken failed (see x.log)")
(folder / "lib.so").write_text("")
print(folder / "lib.so")
"""


class Checkout:
  """A copy of the set-up scripts with short lists and stand-in packages."""

  def __init__(self, folder):
    self.root = folder / "checkout"
    self.venv = self.root / ".venv" / STACK
    self.stamp = self.venv / "setup-stamp"
    wheels = folder / "wheels"
    for path in (self.root / "tests", wheels, folder / "home"):
      path.mkdir(parents=True)
    shutil.copytree(str(ROOT / "scripts" / "setup"),
                    str(self.root / "scripts" / "setup"))
    for name in ("setup.sh", "test.sh"):
      shutil.copy(str(ROOT / "scripts" / name), str(self.root / "scripts"))
    (self.root / "scripts" / "trtis").mkdir()
    (self.root / "scripts" / "trtis" / "setup.sh").write_text("exit 0\n")
    name, version = TENSORFLOW
    write_wheel(wheels, name, version, {
        "tensorflow/__init__.py": "__version__ = '%s'\n" % version,
        "tensorflow/core.py": "value = 1\n"})
    write_wheel(wheels, "pytest", "7.4.4", {
        "pytest/__init__.py": "",
        "pytest/__main__.py":
            "import os, sys\nprint('arguments', sys.argv[1:])\n"
            "sys.exit(int(os.environ.get('STATUS', '0')))\n"})
    self.write_lists("%s==%s\n" % TENSORFLOW)
    (self.root / LISTS[2]).write_text("pytest==7.4.4\n")
    self.wheels = wheels
    self.pip_log = folder / "pip.log"
    self.environment = clean_environment(
        HOME=str(folder / "home"), BERT_BASE_PYTHON=BASE_PYTHON,
        PIP_NO_INDEX="1", PIP_FIND_LINKS=str(wheels),
        PIP_LOG=str(self.pip_log))

  def write_kernels(self):
    """Adds sources and a stand-in build to fused_ops; returns its folder."""
    folder = self.root / "fused_ops"
    (folder / "kernels").mkdir(parents=True)
    (folder / "kernels" / "x.cc").write_text("int one;\n")
    (folder / "build.py").write_text(BUILD)
    return folder

  def write_lists(self, text):
    for name in LISTS[:2]:
      (self.root / name).write_text(text)

  def start(self, *arguments, **more):
    return start("bash", "scripts/setup.sh", "--stack", STACK, *arguments,
                 cwd=str(self.root), env=dict(self.environment, **more))

  def setup(self, *arguments, **more):
    return finish(self.start(*arguments, **more))


def clean_environment(**more):
  """This process's variables less those that steer set-up or pip."""
  kept = {key: value for key, value in os.environ.items()
          if not key.startswith(("PIP_", "BERT_", "NVIDIA_", "CONDA", "PYENV"))}
  return dict(kept, PIP_CONFIG_FILE=os.devnull, **more)


def start(*command, **options):
  return subprocess.Popen(
      command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
      stderr=subprocess.PIPE, universal_newlines=True, start_new_session=True,
      **options)


def finish(process):
  """(exit status, standard output, standard error) of a started process."""
  out, err = process.communicate(timeout=240)
  return process.returncode, out, err


def run(*command, **options):
  options.setdefault("env", clean_environment())
  options.setdefault("cwd", str(ROOT))
  return finish(start(*command, **options))


def one_line(text):
  assert len(text.strip().splitlines()) == 1, text
  return text.strip()


def function(call, path="", env=None):
  """Standard output of functions of the set-up scripts.

  `path` is put before PATH; `env` replaces the variables.
  """
  env = env or clean_environment()
  code = "".join("source scripts/setup/%s.sh\n" % name
                 for name in ("python", "install", "horovod"))
  status, out, err = run(
      "bash", "-c", "root=$PWD venv_root=/nonexistent stamp=/nonexistent "
      "stack=%s log=/dev/null\n%s%s" % (STACK, code, call),
      env=dict(env, PATH=path + os.pathsep + env["PATH"] if path
               else env["PATH"]))
  return status, out.strip(), err


def executable(path, text):
  path.parent.mkdir(parents=True, exist_ok=True)
  if path.is_symlink():
    path.unlink()  # never write to what it leads to, a tool of this machine
  path.write_text(text)
  path.chmod(0o755)
  return path


@pytest.fixture
def bare_path(tmp_path):
  """A folder for PATH with the usual tools and no Python."""
  folder = tmp_path / "bin"
  folder.mkdir()
  for tool in TOOLS:
    (folder / tool).symlink_to(shutil.which(tool))
  return folder


def log_of(checkout):
  return (checkout.root / ".venv" / (STACK + ".log")).read_text()
