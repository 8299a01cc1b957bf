"""Set-up, test runner, container scripts: real processes, no network.

How set-up finds Python and packages has its tests in test_setup_python.py.
"""

import os
import re
import shutil
import signal
import sys
import time

import pytest

from setup_sandbox import bare_path  # pylint: disable=unused-import
from setup_sandbox import BASE_PYTHON
from setup_sandbox import Checkout
from setup_sandbox import clean_environment
from setup_sandbox import executable
from setup_sandbox import finish
from setup_sandbox import function
from setup_sandbox import log_of
from setup_sandbox import one_line
from setup_sandbox import ROOT
from setup_sandbox import run
from setup_sandbox import STACK
from setup_sandbox import TENSORFLOW
from setup_sandbox import VERSION

# scripts/test.sh itself sets up both stacks.
pytestmark = pytest.mark.once


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
  assert one_line(err).startswith(
      "setup tf1: BERT_BASE_PYTHON: there is no program /nonexistent/python")


def test_setup_without_an_interpreter_is_one_line(tmp_path, bare_path):
  env = {"PATH": str(bare_path), "HOME": str(tmp_path),
         "BERT_VENV_DIR": str(tmp_path / "venv")}
  for stack in ("tf1", "tf2"):
    status, _, err = run("bash", "scripts/setup.sh", "--stack", stack, env=env)
    assert status == 1
    assert "found no Python" in one_line(err)
    status, _, err = run("bash", "scripts/setup.sh", "--stack", stack,
                         env=dict(env, BERT_BASE_PYTHON="/bin/true"))
    assert status == 1
    assert "BERT_BASE_PYTHON: /bin/true is no Python 3." in one_line(err)


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


@pytest.fixture(name="kernels")
def _kernels(made):
  """The folder of kernels in `made`, with nothing built."""
  folder = made.write_kernels()
  yield folder
  shutil.rmtree(str(folder))


def calls(kernels):
  """Returns how often the kernels' build was started."""
  return len((kernels / "build" / "calls").read_text())


def test_kernels_are_built_once(made, kernels):
  before = made.venv.stat().st_ino
  status, out, _ = made.setup(CXX="")
  assert status == 0 and "kernels of fused_ops" in out
  assert "ready" in one_line(made.setup(CXX="")[1]) and calls(kernels) == 1
  (kernels / "kernels" / "x.cc").write_text("int two;\n")
  assert "kernels of fused_ops" in made.setup(CXX="")[1]
  assert calls(kernels) == 2
  (kernels / "build" / "lib.so").unlink()
  assert made.setup(CXX="")[0] == 0
  assert (kernels / "build" / "lib.so").exists() and calls(kernels) == 3
  assert "ready" in one_line(made.setup(CXX="")[1])
  assert made.venv.stat().st_ino == before


def test_kernels_that_cannot_be_built_are_one_line(made, kernels):
  status, out, err = made.setup(CXX="broken")
  assert (status, err) == (0, "")
  assert "ready" in out.splitlines()[-1]
  line, = [line for line in out.splitlines() if "not built" in line]
  assert line == (
      "setup %s: fused_ops: not built: broken failed (see x.log); the "
      "framework's own operations do the same, slower" % STACK)
  # Not tried again before something has changed: here there is a compiler.
  assert "ready" in one_line(made.setup(CXX="broken")[1])
  assert calls(kernels) == 1
  status, out, _ = made.setup(CXX="")
  assert status == 0 and "not built" not in out and calls(kernels) == 2


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
  assert "BERT_BASE_PYTHON: there is no program /nonexistent/python" in (
      one_line(err))
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
  # What is still dying of the first may hold the lock: a line about waiting.
  assert "ready" in one_line("\n".join(
      line for line in out.splitlines() if "waiting for it" not in line))


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
                   for folder in ("scripts", "data")
                   for path in (ROOT / folder).rglob("*.sh")
                   if path.read_text().startswith("#!"))
  shellcheck = os.path.join(os.path.dirname(sys.executable), "shellcheck")
  status, out, err = run(shellcheck, "-x", ".ci/run", *scripts)
  assert status == 0, out + err


def test_lines_fit_in_eighty_columns():
  paths = list((ROOT / "scripts").rglob("*.*"))
  paths += (ROOT / "data").rglob("*.sh")
  for path in sorted(paths):
    if path.suffix in (".sh", ".py"):
      for number, line in enumerate(path.read_text().splitlines(), 1):
        assert len(line) <= 80, "%s:%d" % (path, number)
