"""What set-up needs: Python, lists of packages, system packages, Horovod.

Real processes, no network; package managers and drivers are stand-ins.
"""

import os
import re
import shutil
import sys
import time

import pytest

from setup_sandbox import bare_path  # pylint: disable=unused-import
from setup_sandbox import BASE_PYTHON
from setup_sandbox import Checkout
from setup_sandbox import clean_environment
from setup_sandbox import executable
from setup_sandbox import function
from setup_sandbox import LISTS
from setup_sandbox import one_line
from setup_sandbox import ROOT
from setup_sandbox import run
from setup_sandbox import STACK
from setup_sandbox import TENSORFLOW
from setup_sandbox import VERSION
from setup_sandbox import write_wheel


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
  executable(scripts / "trtis" / "setup.sh", "exit 0")
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


@pytest.mark.once
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
