"""fused_ops/build.py: built once, rebuilt when a source changes, one line."""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from utils import stack

ROOT = pathlib.Path(__file__).resolve().parent.parent
# Stands for a compiler: notes its calls, and makes what it is asked for.
COMPILER = """#!/bin/sh
echo "$*" >> "$CALLS"
[ -z "$BROKEN" ] || { echo "x.cc:1: error: it is broken"; exit 1; }
while [ "$1" != -o ]; do shift; done
echo > "$2"
"""


class Build(object):
  """A copy of the sources, to be built by a compiler that makes nothing."""

  def __init__(self, folder):
    self.root = folder / "checkout"
    self.calls = folder / "calls"
    self.calls.write_text("")
    for name in ("fused_ops", "utils"):
      shutil.copytree(str(ROOT / name), str(self.root / name),
                      ignore=shutil.ignore_patterns("build", "__pycache__"))
    self.compiler = folder / "compiler"
    self.compiler.write_text(COMPILER)
    self.compiler.chmod(0o755)

  def run(self, **more):
    """Returns (exit status, last line of output, lines of errors)."""
    environment = dict(os.environ, CXX=str(self.compiler),
                       CALLS=str(self.calls), BROKEN="", **{
                           "TF_CPP_MIN_LOG_LEVEL": "2"})
    environment.update(more)
    done = subprocess.run(
        [sys.executable, str(self.root / "fused_ops" / "build.py")], cwd="/",
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        universal_newlines=True, timeout=120)
    return (done.returncode, done.stdout.strip().split("\n")[-1],
            [line for line in done.stderr.splitlines() if "Warning" not in line
             and not line.startswith(" ")])

  @property
  def count(self):
    """How many times the compiler was called."""
    return len(self.calls.read_text().splitlines())


@pytest.fixture(name="build")
def _build(tmp_path):
  return Build(tmp_path)


def test_built_once_and_again_when_a_source_changes(build):
  status, first, _ = build.run()
  assert status == 0 and os.path.isfile(first), first
  assert build.count == 6  # three tables, two of operations, the library
  assert build.run()[:2] == (0, first) and build.count == 6
  source = build.root / "fused_ops" / "kernels" / "cpu_kernels.cc"
  source.write_text(source.read_text() + "// changed\n")
  status, second, _ = build.run()
  assert status == 0 and second != first and build.count == 12
  left = os.listdir(os.path.dirname(second))
  assert sorted(left) == sorted(os.path.basename(p) for p in (first, second))


def test_compiler_that_fails_is_one_line(build):
  status, out, err = build.run(BROKEN="1")
  assert (status, out, len(err)) == (1, "", 1), err
  line = err[0]
  assert line.startswith("fused_ops: not built: %s failed (see "
                         % build.compiler)
  log = line[line.index("(see ") + 5:-1]
  assert "it is broken" in pathlib.Path(log).read_text()
  assert build.run()[0] == 0


def test_no_compiler_is_one_line(build, tmp_path):
  (tmp_path / "bin").mkdir()
  status, _, err = build.run(CXX="", PATH=str(tmp_path / "bin"))
  assert status == 1
  assert err == ["fused_ops: not built: no C++ compiler (g++) here"]


def test_other_stacks_have_other_libraries(build):
  assert os.path.basename(build.run()[1]).startswith(
      "libbert_1.15" if stack.IS_TF1 else "libbert_2.15")
