"""The CPU's kernels under the address and undefined-behaviour sanitizers."""

import subprocess

import pytest

from fused_ops import build
from fused_ops import library

SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


@pytest.fixture(name="compiler", scope="module")
def _compiler(tmp_path_factory, cxx):
  """A compiler that can link the sanitizers; skips where there is none."""
  folder = tmp_path_factory.mktemp("probe")
  (folder / "x.cc").write_text("int main() { return 0; }\n")
  probe = subprocess.run([cxx] + SANITIZERS + [
      str(folder / "x.cc"), "-o", str(folder / "x")], check=False,
                         stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
  if probe.returncode:
    pytest.skip("this compiler has no sanitizers: %s" % probe.stdout.decode())
  return cxx


def run(command):
  done = subprocess.run(command, cwd=str(library.ROOT), check=False,
                        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                        universal_newlines=True, timeout=300)
  assert done.returncode == 0, done.stdout[-4000:]
  return done.stdout


@pytest.mark.once
def test_kernels_stay_within_their_buffers(compiler, tmp_path):
  program = str(tmp_path / "check")
  objects = []
  for path, command in build.table_commands(compiler, str(tmp_path)):
    run(["-O1" if word == "-O3" else word for word in command] + SANITIZERS
        + ["-g"])
    objects.append(path)
  run([compiler, "-std=c++14", "-O1", "-I."] + SANITIZERS + [
      "fused_ops/kernels/check_kernels.cc"] + objects + ["-o", program])
  assert "generic" in run([program]).splitlines()
