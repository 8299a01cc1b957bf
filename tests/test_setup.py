"""Set-up, test runner, container scripts: real processes, no network.

Environments are made for real, from stand-in packages of a few bytes: wheels
that a copy of the checkout with short lists installs from a folder.
"""

import base64
import hashlib
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time
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
  path.write_text(text)
  path.chmod(0o755)
  return path


@pytest.fixture(name="bare_path")
def _bare_path(tmp_path):
  """A folder for PATH with the usual tools and no Python."""
  folder = tmp_path / "bin"
  folder.mkdir()
  for tool in TOOLS:
    (folder / tool).symlink_to(shutil.which(tool))
  return folder


@pytest.fixture(name="made", scope="module")
def _made(tmp_path_factory):
  """A checkout whose environment was made once, for tests that mend it."""
  checkout = Checkout(tmp_path_factory.mktemp("made"))
  status, out, err = checkout.setup()
  assert status == 0, (out, err, log_of(checkout))
  assert "pip" in checkout.pip_log.read_text()
  assert "ready: Python %s" % VERSION in out.splitlines()[-1]
  assert "TensorFlow " + TENSORFLOW[1] in out.splitlines()[-1]
  return checkout


def log_of(checkout):
  return (checkout.root / ".venv" / (STACK + ".log")).read_text()


# -- Arguments and refusals


@pytest.mark.parametrize("arguments, message", [
    (["--stack", "tf3"], "tf1 or tf2"), (["--stack"], "needs a value"),
    (["--stack="], "needs a value"), (["--stack", ""], "needs a value"),
    (["--stack=tf3"], "tf1 or tf2"),
    (["--sack", "tf1"], "unknown argument '--sack'")])
def test_setup_refuses_wrong_arguments(arguments, message):
  status, _, err = run("bash", "scripts/setup.sh", *arguments)
  assert status == 2
  assert message in one_line(err)


def test_stamped_tf1_is_there_even_without_its_interpreter(tmp_path):
  # Launchers and quickstart go by the stamp, so set-up does.
  (tmp_path / "tf1").mkdir()
  (tmp_path / "tf1" / "setup-stamp").write_text("key old\n")
  status, _, err = run("bash", "scripts/setup.sh", env=clean_environment(
      BERT_VENV_DIR=str(tmp_path), BERT_BASE_PYTHON="/nonexistent/python"))
  assert status == 1
  assert one_line(err).startswith("setup tf1: found no Python (3.7)")


def test_setup_without_an_interpreter_is_one_line(tmp_path, bare_path):
  env = {"PATH": str(bare_path), "HOME": str(tmp_path),
         "BERT_VENV_DIR": str(tmp_path / "venv")}
  for stack in ("tf1", "tf2"):
    status, _, err = run("bash", "scripts/setup.sh", "--stack", stack, env=env)
    assert status == 1
    assert "found no Python" in one_line(err)


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_setup_names_a_folder_that_it_cannot_write(tmp_path):
  tmp_path.chmod(0o500)
  status, _, err = run("bash", "scripts/setup.sh", env=clean_environment(
      BERT_VENV_DIR=str(tmp_path / "venv")))
  assert status == 1
  assert "cannot write to" in one_line(err)


def test_setup_without_network_is_one_line(tmp_path):
  checkout = Checkout(tmp_path)
  status, _, err = checkout.setup(
      PIP_NO_INDEX="0", PIP_RETRIES="1", PIP_FIND_LINKS="",
      PIP_INDEX_URL="http://127.0.0.1:9/")
  assert status == 1
  assert "no network?" in one_line(err)
  assert not checkout.stamp.exists()


# -- The life of an environment


def test_second_run_does_nothing(made):
  before = (made.stamp.stat().st_mtime_ns, made.venv.stat().st_ino,
            log_of(made))
  made.pip_log.unlink()
  status, out, _ = made.setup()
  assert status == 0
  assert "ready" in one_line(out)
  assert before == (made.stamp.stat().st_mtime_ns, made.venv.stat().st_ino,
                    log_of(made))
  assert not made.pip_log.exists()  # pip was not even started


def test_tests_are_added_to_an_environment_and_run(made):
  before = made.venv.stat().st_ino
  command = ["bash", "scripts/test.sh", "--stack", STACK, "tests/test_x.py",
             "-k", "a b", "--slow"]
  status, out, err = run(*command, cwd=str(made.root), env=made.environment)
  assert status == 0, err
  assert "'tests/test_x.py', '-k', 'a b', '--slow']" in out
  assert out.splitlines()[-1].startswith(STACK + "  passed")
  assert made.venv.stat().st_ino == before
  status, out, _ = run(*command, cwd=str(made.root),
                       env=dict(made.environment, STATUS="3"))
  assert status == 1
  assert out.splitlines()[-1].startswith(STACK + "  FAILED (exit status 3)")


def test_damage_is_noticed(made):
  site = next(made.venv.glob("lib/python*/site-packages"))
  check = [str(made.venv / "bin" / "python"), "-I",
           str(ROOT / "scripts" / "setup" / "environment.py"), "check",
           str(made.stamp)]
  assert run(*check) == (0, "", "")
  core = site / "tensorflow" / "core.py"
  text = core.read_text()
  for damage in (lambda: core.write_text("cut"), core.unlink):
    damage()
    status, out, _ = run(*check)
    assert status == 1 and "damaged: tensorflow/core.py" in out
  core.write_text(text)
  info = next(site.glob("tensorflow*.dist-info"))
  info.rename(site / "other-1.0.dist-info")
  status, out, _ = run(*check)
  assert status == 1 and "is gone or another version" in out
  (site / "other-1.0.dist-info").rename(info)
  assert run(*check)[0] == 0


def test_broken_environment_is_made_anew(made):
  shutil.rmtree(str(next(made.venv.glob("lib/*/site-packages/tensorflow"))))
  status, out, _ = made.setup()
  assert status == 0
  assert "is broken: package" in out and "ready" in out.splitlines()[-1]


def test_environment_without_its_interpreter_is_broken(made):
  link = made.venv / "bin" / "python"
  target = os.readlink(str(link))
  link.unlink()
  link.symlink_to("/nonexistent/python")
  status, _, err = made.setup(BERT_BASE_PYTHON="/nonexistent/python")
  assert status == 1
  assert "found no Python" in one_line(err)
  fault = "venv=%s\nstamp=$venv/setup-stamp\nenvironment_key() {\n" \
          "stamped key\n}\nenvironment_fault" % made.venv
  assert "its Python does not start" in function(fault)[1]
  link.unlink()
  link.symlink_to(target)
  assert function(fault)[1] == ""


def test_failed_renewal_puts_the_old_environment_back(made):
  made.write_lists("%s==99.0\n" % TENSORFLOW[0])
  status, out, err = made.setup()
  assert status == 1
  assert "was made from other lists" in out
  assert "pip could not install" in one_line(err)
  made.write_lists("%s==%s\n" % TENSORFLOW)
  status, out, _ = made.setup()
  assert status == 0
  assert "ready" in one_line(out)


def test_terminal_that_hangs_up_puts_the_old_environment_back(made):
  made.write_lists("%s==99.0\n" % TENSORFLOW[0])
  old = made.venv.parent / (STACK + ".old")
  process = made.start()
  while not old.exists():
    assert process.poll() is None
    time.sleep(0.01)
  os.killpg(process.pid, signal.SIGHUP)
  process.communicate(timeout=60)
  assert process.returncode == -signal.SIGHUP
  assert not old.exists() and made.stamp.exists()
  made.write_lists("%s==%s\n" % TENSORFLOW)
  status, out, _ = made.setup()
  assert status == 0
  assert "ready" in one_line(out)


def test_killed_setup_is_noticed_and_two_at_once_wait(tmp_path):
  checkout = Checkout(tmp_path)
  process = checkout.start()
  while not (checkout.venv / "bin" / "python").exists():
    assert process.poll() is None
    time.sleep(0.01)
  os.killpg(process.pid, signal.SIGKILL)
  process.communicate()
  assert not checkout.stamp.exists()
  results = [finish(one) for one in [checkout.start(), checkout.start()]]
  assert [status for status, _, _ in results] == [0, 0]
  outs = "".join(out for _, out, _ in results)
  # Which of the two comes first, and finds what, is the scheduler's choice.
  assert "half made" in outs
  assert outs.count("ready") == 2


# -- Finding Python


def linked_python(folder):
  folder.mkdir(parents=True)
  (folder / ("python" + VERSION)).symlink_to(BASE_PYTHON)
  return folder


def test_python_behind_a_shim_that_is_not_active(tmp_path, bare_path):
  executable(bare_path / ("python" + VERSION),
             "#!/bin/sh\necho 'pyenv: not active' >&2\nexit 127\n")
  env = {"PATH": str(bare_path), "HOME": str(tmp_path)}
  assert function("find_python %s" % STACK, env=env)[0] == 1
  linked_python(tmp_path / ".pyenv" / "versions" / (VERSION + ".99") / "bin")
  status, out, _ = function("find_python %s" % STACK, env=env)
  assert status == 0
  assert os.path.samefile(out, BASE_PYTHON)


def test_python_of_uv(tmp_path, bare_path):
  folder = linked_python(tmp_path / "uv")
  executable(bare_path / "uv", '#!/bin/sh\n[ "$*" = "python find %s" ] && '
             "echo %s/python%s\n" % (VERSION, folder, VERSION))
  env = {"PATH": str(bare_path), "HOME": str(tmp_path)}
  status, out, _ = function("find_python %s" % STACK, env=env)
  assert status == 0
  assert os.path.samefile(out, BASE_PYTHON)


def test_python_of_a_conda_environment(tmp_path, bare_path):
  conda = executable(tmp_path / "conda" / "bin" / "conda", "#!/bin/sh\n")
  (bare_path / "conda").symlink_to(conda)
  linked_python(tmp_path / "conda" / "envs" / "any" / "bin")
  env = {"PATH": str(bare_path), "HOME": str(tmp_path)}
  status, out, _ = function("find_python %s" % STACK, env=env)
  assert status == 0
  assert os.path.samefile(out, BASE_PYTHON)


UV = """#!/bin/sh
[ "$1 $2" = "python install" ] && ln -s %s "$UV_STORE/python$3" && exit
[ "$1 $2" = "python find" ] && [ "$UV_PYTHON_DOWNLOADS" = never ] &&
  [ -e "$UV_STORE/python$3" ] && echo "$UV_STORE/python$3"
""" % BASE_PYTHON
CONDA = """#!/bin/sh
[ "$1 $2 $3 $4" = "create -y -q -p" ] || exit 1
mkdir -p "$5/bin" && ln -s %s "$5/bin/$(echo "$6" | tr -d =)"
""" % BASE_PYTHON


@pytest.mark.parametrize("name, text", [("uv", UV), ("conda", CONDA)],
                         ids=["uv", "conda"])
def test_python_is_fetched_where_it_can_be(tmp_path, bare_path, name, text):
  env = {"PATH": str(bare_path), "HOME": str(tmp_path),
         "UV_STORE": str(tmp_path)}
  # On whatever version these tests run, that is the one to fetch.
  fetch = ("venv_root=%s/venv\npython_versions() { echo %s 2.0; }\n"
           "fetch_python x && find_python x" % (tmp_path, VERSION))
  assert function(fetch, env=env)[0] == 1
  assert function("possible_stacks", env=env)[1] == ""
  executable(bare_path / name, text)
  assert function("possible_stacks", env=env)[1].split() == ["tf1", "tf2"]
  # A named interpreter is the only one to try.
  assert function("possible_stacks", env=dict(
      env, BERT_BASE_PYTHON="/nonexistent"))[1] == ""
  status, out, err = function(fetch, env=env)
  assert status == 0, err
  said, python = out.splitlines()
  assert "Python %s through %s" % (VERSION, name) in said
  assert os.path.samefile(python, BASE_PYTHON)


def test_stacks_that_are_possible(tmp_path, bare_path):
  env = {"PATH": str(bare_path), "HOME": str(tmp_path)}
  linked_python(tmp_path / ".pyenv" / "versions" / (VERSION + ".1") / "bin")
  assert function("possible_stacks", env=env)[1] == STACK
  other = {"tf1": "tf2", "tf2": "tf1"}[STACK]
  (tmp_path / "venv" / other).mkdir(parents=True)
  (tmp_path / "venv" / other / "setup-stamp").write_text("")
  here = "venv_root=%s/venv\npossible_stacks" % tmp_path
  assert function(here, env=env)[1].split() == ["tf1", "tf2"]
  inside = dict(env, NVIDIA_TENSORFLOW_VERSION="23.12-tf2")
  assert function(here, env=inside)[1] == "tf2"


def test_stack_whose_python_cannot_be_fetched_is_left_out(tmp_path, bare_path):
  scripts = tmp_path / "checkout" / "scripts"
  shutil.copytree(str(ROOT / "scripts"), str(scripts))
  executable(bare_path / "uv", "exit 1")
  executable(scripts / "setup.sh", "[[ $* == *%s* ]]" % STACK)
  call = ["bash", str(scripts / "test.sh"), "--stack", "all"]
  env = {"PATH": str(bare_path), "HOME": str(tmp_path)}
  status, out, _ = run(*call, env=env)
  assert status == 1 and out.count("left out") == 2  # nothing was tested
  executable(tmp_path / ".pyenv" / "versions" / (VERSION + ".1") / "bin" /
             ("python" + VERSION), 'exec %s "$@"' % BASE_PYTHON)
  python = scripts.parent / ".venv" / STACK / "bin" / "python"
  executable(python, "exit 0")
  status, out, _ = run(*call, env=env)
  assert status == 0 and out.count("left out") == 1 and "passed" in out
  executable(python, "exit 1")
  assert run(*call, env=env)[0] == 1


def test_python_of_an_environment_leads_to_its_base(made, tmp_path, bare_path):
  call = "python_behind %s/bin/python %s" % (made.venv, VERSION)
  status, out, _ = function(call)
  assert status == 0
  assert out == BASE_PYTHON
  env = {"PATH": str(bare_path), "HOME": str(tmp_path)}
  call = "venv_root=%s\nfind_python %s" % (made.venv.parent, STACK)
  assert function(call, env=env)[1] == BASE_PYTHON
  other = "3.6" if STACK == "tf2" else "3.11"
  call = "python_behind %s/bin/python %s" % (made.venv, other)
  assert function(call)[0] == 1


def test_container_decides_the_stack():
  for release, stack in (("23.03-tf1", "tf1"), ("19.06", "tf1"),
                         ("23.12-tf2", "tf2")):
    env = clean_environment(NVIDIA_TENSORFLOW_VERSION=release)
    assert function("container_stack; machine_flavour", env=env)[1].split() == [
        stack, "container"]
  assert function("container_stack")[0] == 1


# -- Lists


def sections(name):
  """{section: [(pin, has a reason)]} of a list of packages."""
  found, current, before = {}, None, ""
  for line in (ROOT / name).read_text().splitlines():
    if line.startswith("# -- "):
      current = found.setdefault(line.split()[2].rstrip(":"), [])
    elif line.strip() and not line.startswith("#"):
      current.append((line, before.startswith("#")))
    before = line
  return found


@pytest.mark.parametrize("name", LISTS)
def test_lists_are_exact_and_reasoned(name):
  lists = sections(name)
  assert lists["Direct"] and lists["Transitive"]
  for pin, reason in lists["Direct"]:
    assert reason, "no reason for " + pin
  names = []
  for pins in lists.values():
    for pin, _ in pins:
      assert re.match(
          r"^[\w.-]+==[\w.]+( ; python_version < \"3\.\d+\")?$", pin)
      names.append(pin.split("==")[0].lower())
  assert len(names) == len(set(names))


@pytest.mark.parametrize("flavour", ["cpu", "gpu"])
def test_list_follows_the_machine(tmp_path, flavour):
  executable(tmp_path / "nvidia-smi", "#!/bin/sh\necho '%s'\n" % (
      "GPU 0: NVIDIA H200" if flavour == "gpu" else "No devices were found"))
  status, out, _ = function(
      "flavour=$(machine_flavour); pins \"$(requirements_file)\"",
      path=str(tmp_path))
  assert status == 0
  pins = out.splitlines()
  wanted = {"tf1": {"cpu": "tensorflow==1.15.5",
                    "gpu": "tensorflow-gpu==1.15.5"},
            "tf2": {"cpu": "tensorflow-cpu==2.15.1",
                    "gpu": "tensorflow==2.15.1"}}[STACK]
  assert [pin for pin in pins
          if re.match("tensorflow(-[cg]pu)?==", pin)] == [wanted[flavour]]
  libraries = [pin for pin in pins if pin.startswith("nvidia-")]
  assert bool(libraries) == (STACK == "tf2" and flavour == "gpu")
  assert not [pin for pin in pins if pin.startswith("horovod")]


def test_driver_that_does_not_answer_is_no_gpu(tmp_path):
  executable(tmp_path / "nvidia-smi", "#!/bin/sh\nexec sleep 600\n")
  executable(tmp_path / "timeout", '#!/bin/sh\nshift\nexec %s 0.2 "$@"\n' %
             shutil.which("timeout"))
  assert function("machine_flavour", path=str(tmp_path))[1] == "cpu"
  status, out, err = launch(tmp_path)
  assert status == 0 and "--gpus" not in out
  assert "no NVIDIA GPU" in one_line(err)


def test_driver_that_lists_its_gpus_slowly(tmp_path):
  executable(tmp_path / "nvidia-smi", "#!/bin/sh\necho 'GPU 0: V100'\n"
             "sleep 0.2\necho 'GPU 1: V100'\n")
  assert function("set -o pipefail\nmachine_flavour",
                  path=str(tmp_path))[1] == "gpu"
  assert "--gpus all" in launch(tmp_path)[1]


def launch(path):
  """A dry run of launch.sh with the programs in folder `path`."""
  return run("bash", "scripts/docker/launch.sh", "--dry_run",
             env=clean_environment(
                 PATH=str(path) + os.pathsep + os.environ["PATH"]))


# -- System packages and Horovod


PACKAGES = ["g++", "cmake", "make", "libopenmpi-dev", "openmpi-bin"]
BUILD_TOOLS = ["g++", "cmake", "make", "mpicxx", "mpirun"]
# Notes its words in a file and brings stand-ins of what it is to install.
APT_GET = """#!/bin/sh
echo "$*" >> %(calls)s
for word in "$@"; do
  case $word in
    -* | install | update) continue ;;
    libopenmpi-dev) word=mpicxx ;;
    openmpi-bin) word=mpirun ;;
  esac
  printf '#!/bin/sh\\necho 4.1.4\\n' > %(folder)s/$word
  chmod 755 %(folder)s/$word
done
"""


def put_tool(folder, tool, release="4.1.4"):
  executable(folder / tool, "#!/bin/sh\necho %s\n" % release)


def put_apt_get(folder, calls):
  executable(folder / "apt-get", APT_GET % {"folder": folder, "calls": calls})


def test_missing_packages_are_named(tmp_path, bare_path):
  env = {"PATH": str(bare_path), "HOME": str(tmp_path)}
  assert function("missing_packages", env=env)[1].split() == PACKAGES
  for tool in BUILD_TOOLS:
    put_tool(bare_path, tool)
  assert function("missing_packages", env=env)[1] == ""
  assert "mpi4.1.4" in function("build_tools", env=env)[1]


# For root and for anyone else, whoever runs the tests.
INSTALL = """is_root() { %s; }
venv_root=%s horovod=0.28.1 venv=/nonexistent
horovod_folder() { echo /nonexistent/folder; }
build_horovod() { return 1; }
install_horovod tensorflow==0
"""


def test_root_gets_the_missing_packages(tmp_path, bare_path):
  calls = tmp_path / "calls"
  put_apt_get(bare_path, calls)
  put_tool(bare_path, "cmake")
  env = {"PATH": str(bare_path), "HOME": str(tmp_path)}
  missing = " ".join(name for name in PACKAGES if name != "cmake")
  _, out, err = function(INSTALL % ("true", tmp_path), env=env)
  said, failed = out.splitlines()
  assert said.endswith("system packages: " + missing), err
  assert "Horovod could not be built" in failed
  assert calls.read_text().splitlines() == [
      "update -q", "install -y --no-install-recommends " + missing]
  calls.unlink()
  function(INSTALL % ("true", tmp_path), env=env)
  assert not calls.exists()  # nothing is missing any more


def test_who_is_not_root_gets_the_one_command(tmp_path, bare_path):
  calls = tmp_path / "calls"
  put_apt_get(bare_path, calls)
  env = {"PATH": str(bare_path), "HOME": str(tmp_path)}
  out = function(INSTALL % ("false", tmp_path), env=env)[1]
  assert ("sudo apt-get install -y --no-install-recommends " +
          " ".join(PACKAGES)) in out.splitlines()[0]
  assert not calls.exists()
  (bare_path / "apt-get").unlink()
  out = function(INSTALL % ("true", tmp_path), env=env)[1]
  assert ("missing (Debian's names): " + " ".join(PACKAGES)) in out


def test_root_is_who_the_system_says():
  assert function("is_root")[0] == int(os.geteuid() != 0)


def test_python_for_tf2_from_debian(tmp_path, bare_path):
  calls = tmp_path / "calls"
  put_apt_get(bare_path, calls)
  status, _, err = run(
      "bash", "scripts/setup.sh", "--stack", "tf2", env={
          "PATH": str(bare_path), "HOME": str(tmp_path),
          "BERT_VENV_DIR": str(tmp_path / "venv")})
  assert status == 1 and "found no Python" in one_line(err)
  installed = calls.exists() and "python3-venv" in calls.read_text()
  assert installed == (os.geteuid() == 0)


HOROVOD = """def init(): pass
def mpi_built(): return True
def gloo_built(): return True
def nccl_built(): return False
"""


def test_failed_horovod_is_tried_again_later(tmp_path, bare_path):
  for tool in BUILD_TOOLS:
    put_tool(bare_path, tool)
  checkout = Checkout(tmp_path)
  checkout.write_lists("horovod==0.28.1\n%s==%s\n" % TENSORFLOW)
  where = dict(PATH=str(bare_path), XDG_CACHE_HOME=str(tmp_path / "cache"))
  failed, missing = "Horovod could not be built", "Horovod is missing"

  def setup(*words):
    checkout.pip_log.write_text("")
    status, out, err = checkout.setup(*words, **where)
    assert status == 0, err
    return out, checkout.pip_log.read_text()

  def has_aged(seconds):
    then = time.time() - seconds
    os.utime(str(checkout.stamp), (then, then))

  out, _ = setup()
  assert failed in out and "Horovod no" in out.splitlines()[-1]
  has_aged(3000)
  for words in ([], ["--with_tests"]):  # nor does what else is new matter
    out, _ = setup(*words)
    assert missing in out and failed not in out
  has_aged(3000)
  out, pip = setup("--with_tests")
  assert len(out.splitlines()) == 2 and missing in out and not pip
  has_aged(3700)
  out, _ = setup()
  assert failed in out and missing not in out

  write_wheel(checkout.wheels, "horovod", "0.28.1", {
      "horovod/__init__.py": "__version__ = '0.28.1'\n",
      "horovod/tensorflow/__init__.py": HOROVOD})
  assert missing in setup()[0]
  put_tool(bare_path, "mpirun", "5.0.1")
  out, _ = setup()
  assert "Horovod 0.28.1 (MPI, Gloo)" in out.splitlines()[-1]
  has_aged(3700)
  out, pip = setup()
  assert "ready" in one_line(out) and not pip


RANKS = """
import horovod.tensorflow as hvd
import tensorflow.compat.v1 as tf
tf.disable_v2_behavior()
hvd.init()
total = hvd.allreduce(tf.constant(float(hvd.rank() + 1)), op=hvd.Sum)
with tf.Session() as session:
  print("rank %d of %d: %g" % (hvd.rank(), hvd.size(), session.run(total)))
"""


@pytest.mark.slow
@pytest.mark.parametrize("starter", ["mpirun", "gloo"])
def test_two_ranks_add_up(tmp_path, starter):
  pytest.importorskip("horovod")
  program = tmp_path / "ranks.py"
  program.write_text(RANKS)
  folder = os.path.dirname(sys.executable)
  command = {
      "mpirun": ["mpirun", "--allow-run-as-root", "--oversubscribe", "-np",
                 "2"],
      "gloo": [os.path.join(folder, "horovodrun"), "--gloo", "-np", "2"],
  }[starter]
  if not shutil.which(command[0]):
    pytest.skip("no %s here" % command[0])
  status, out, err = run(
      *(command + [sys.executable, str(program)]), env=clean_environment(
          PATH=folder + os.pathsep + os.environ["PATH"]))
  assert status == 0, err
  for rank in (0, 1):
    assert "rank %d of 2: 3" % rank in out


# -- Test runner, containers, all scripts


def test_test_runner_tells_how_and_refuses():
  status, out, _ = run("bash", "scripts/test.sh", "--help")
  assert status == 0
  assert "--stack tf1|tf2|all" in out
  for words in (["--stack", "tf9"], ["--stack"], ["--stack="]):
    status, _, err = run("bash", "scripts/test.sh", *words)
    assert status == 2
    assert "tf1, tf2 or all" in one_line(err)


def test_continuous_integration_tests_every_stack(tmp_path):
  executable(tmp_path / "scripts" / "test.sh", "#!/bin/sh\n"
             'read -r line || echo "no input"\necho "$0" "$@"\nexit 7\n')
  shutil.copytree(str(ROOT / ".ci"), str(tmp_path / ".ci"))
  status, out, err = run(str(tmp_path / ".ci" / "run"), cwd="/")
  assert status == 7, err
  words = out.splitlines()[-1].split()
  assert os.path.samefile(words[0], str(tmp_path / "scripts" / "test.sh"))
  assert out.splitlines()[0] == "no input" and words[1:] == ["--stack", "all"]


def ignored(path):
  """Whether .dockerignore keeps a path out of the image, as Docker reads it."""
  for line in (ROOT / ".dockerignore").read_text().splitlines():
    if not line or line.startswith("#"):
      continue
    assert not line.startswith("!") and not set(line) & set("[]\\?")
    pattern = "".join({"**/": "(.*/)?", "*": "[^/]*"}.get(part, re.escape(part))
                      for part in re.split(r"(\*\*/|\*)", line))
    if re.match(pattern + "(/|$)", path):
      return True
  return False


def test_image_holds_the_code_and_no_data():
  for path in (
      ".git/HEAD", ".venv/tf1/bin/python", "results/a/model.ckpt-1.index",
      "utils/__pycache__/a.pyc", "data/squad/v1.1/train-v1.1.json",
      "data/squad/v2.0/dev-v2.0.json", "a.tfrecord", "records/a.tfrecord-1",
      "records/deep/a.tfrecord.settings.json",
      "data/pretrained_models_google/uncased_L-12_H-768_A-12/vocab.txt",
      "data/pretrained_models_google/cased_L-12_H-768_A-12.zip",
      "data/bookcorpus/final_tfrecords_sharded/a",
      "data/wikipedia_corpus/final_tfrecords_sharded/a.0",
      "data/wikipedia_corpus/final_text_file_single/a.segmented.nltk.txt"):
    assert ignored(path), path
  kept = [str(path.relative_to(ROOT)) for part in ("scripts", "data/sample",
                                                   "utils", "tests")
          for path in (ROOT / part).rglob("*")
          if path.is_file() and "__pycache__" not in path.parts]
  for path in kept + [
      "run_squad.py", "requirements.txt", "data/squad/squad_download.sh",
      "data/pretrained_models_google/download_models.py",
      "data/wikipedia_corpus/preprocessing.sh", "data/bookcorpus/config.sh"]:
    assert not ignored(path), path


def test_container_commands(tmp_path):
  env = clean_environment(RESULTS_DIR=str(tmp_path / "out"))
  executable(tmp_path / "nvidia-smi", "#!/bin/sh\necho 'GPU 0: V100'\n")
  env["PATH"] = str(tmp_path) + os.pathsep + env["PATH"]
  status, out, _ = run("bash", "scripts/docker/launch.sh", "--dry_run", "bash",
                       "-c", "a b", env=env)
  assert status == 0
  assert one_line(out) == (
      "docker run --rm --shm-size=1g --ulimit memlock=-1 "
      "--ulimit stack=67108864 --gpus all --env NVIDIA_VISIBLE_DEVICES=all "
      "--volume %s:/workspace/bert --volume %s:/results "
      "--workdir /workspace/bert bert-tf1 bash -c a\\ b" % (
          ROOT, tmp_path / "out"))
  status, out, _ = run("bash", "scripts/docker/build.sh", "--dry_run",
                       env=dict(env, FROM_IMAGE_NAME="other:1"))
  assert status == 0
  assert one_line(out) == ("docker build --build-arg FROM_IMAGE_NAME=other:1 "
                           "--tag bert-tf1 %s" % ROOT)


@pytest.mark.parametrize("script", ["build.sh", "launch.sh"])
def test_container_scripts_without_an_engine(tmp_path, script):
  executable(tmp_path / "docker", "#!/bin/sh\nexit 1\n")
  executable(tmp_path / "nvidia-smi", "#!/bin/sh\necho 'GPU 0: V100'\n")
  path = str(tmp_path) + os.pathsep + os.environ["PATH"]
  status, _, err = run("bash", "scripts/docker/" + script,
                       env=clean_environment(PATH=path))
  assert status == 1
  assert "no Docker engine answers" in one_line(err)


def test_scripts_pass_shellcheck():
  scripts = sorted(str(path.relative_to(ROOT))
                   for path in (ROOT / "scripts").rglob("*.sh")
                   if path.read_text().startswith("#!"))
  shellcheck = os.path.join(os.path.dirname(sys.executable), "shellcheck")
  status, out, err = run(shellcheck, "-x", ".ci/run", *scripts)
  assert status == 0, out + err


def test_lines_fit_in_eighty_columns():
  for path in sorted((ROOT / "scripts").rglob("*.*")):
    if path.suffix in (".sh", ".py"):
      for number, line in enumerate(path.read_text().splitlines(), 1):
        assert len(line) <= 80, "%s:%d" % (path, number)
