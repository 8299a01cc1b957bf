"""The operations for GPUs without a GPU: above kernels that run on the CPU.

fused_ops/op_check.py holds them to float64, as it does on a GPU; what remains
for a GPU to show are streams and memory, which build.py has it check there.
"""

import os
import pathlib
import re
import subprocess
import sys

import pytest
import tensorflow.compat.v1 as tf

from fused_ops import build
from fused_ops import cuda
from fused_ops import library

ROOT = pathlib.Path(__file__).resolve().parent.parent
STAND_IN = ROOT / "tests" / "stand_in"


@pytest.fixture(scope="module", name="operations")
def _operations(tmp_path_factory, cxx):
  """A library whose kernels of a GPU are for "/CPU:0"; its path."""
  folder = tmp_path_factory.mktemp("gpu_ops")
  flags = ["-O1", "-I%s" % STAND_IN, "-DBERT_GPU_DEVICE=DEVICE_CPU",
           "-DBERT_NO_CPU_KERNELS"]
  commands = build.table_commands(cxx, str(folder))[:1]
  commands += build.operation_commands(
      cxx, str(folder), ("cpu_ops", "cpu_optimizer_ops", "gpu_ops",
                              "gpu_optimizer_ops"), flags)
  path, command = commands[-1]
  stand_in = str(folder / "stand_in.o")
  commands.append((stand_in, [
      stand_in if word == path else
      str(STAND_IN / "gpu_kernels_on_cpu.cc") if word.endswith(".cc") else word
      for word in command]))
  log = folder / "log"
  cuda.run_all([command for _, command in commands], log)
  cuda.run_all([[cxx, "-shared"] + [one for one, _ in commands]
                + tf.sysconfig.get_link_flags()
                + ["-o", str(folder / "operations.so")]], log)
  return folder / "operations.so"


def check(operations, *arguments, **environment):
  """Runs op_check.py; returns (status, lines)."""
  done = subprocess.run(
      [sys.executable, str(ROOT / "fused_ops" / "op_check.py"),
       "--device=/CPU:0", "--library=%s" % operations] + list(arguments),
      stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True,
      check=False, timeout=600,
      env=dict(os.environ, CUDA_VISIBLE_DEVICES="", **environment))
  return done.returncode, (done.stdout.splitlines()
                           or done.stderr.splitlines()[-1:])


def test_operations_hand_over_what_kernels_ask_for(operations):
  status, lines = check(operations, "--quick")
  assert status == 0, lines
  found = re.match(r"(\d+) of (\d+) checks of operations on /CPU:0 passed$",
                   lines[-1])
  assert found.group(1) == found.group(2) and int(found.group(1)) > 150


def test_failed_kernel_is_said(operations):
  status, lines = check(operations, "--only", "bias_gelu", "adam", "--quick",
                        STAND_IN_FAILS="bert_gpu_bias_gelu")
  assert status == 1
  assert lines[0].startswith("FAIL bias_gelu float32 1 8 0: ")
  assert "BertBiasGelu: CUDA says 'invalid value'" in lines[0]
  assert all(" bias_gelu " in line for line in lines[:-1])
  assert lines[-1] == "1 of %d checks of operations on /CPU:0 passed" % (
      len(lines))


def test_no_gpu_is_one_line(operations):
  status, lines = check(operations, "--device=/GPU:0")
  assert (status, lines) == (
      2, ["op_check: TensorFlow has no GPU here"])


def test_no_library_is_one_line(tmp_path):
  (tmp_path / "empty.so").write_bytes(b"")
  for name, words in (("none.so", "cannot open shared object file"),
                      ("empty.so", "file too short")):
    status, lines = check(tmp_path / name)
    assert status == library.CHECK_UNKNOWN and len(lines) == 1
    assert lines[0].startswith("op_check: ") and name in lines[0]
    assert words in lines[0]


@pytest.mark.parametrize("status, recorded, words", [
    (0, True, None), (1, False, "their check on this GPU failed"),
    (library.CHECK_UNKNOWN, None, "op_check: what is amiss"),
    (None, False, "their check on this GPU failed")])
def test_a_check_on_a_gpu_is_done_once(monkeypatch, tmp_path, status, recorded,
                                       words):
  calls = []

  def call(unused_command, stdout, stderr, timeout):
    del stderr
    calls.append(1)
    if status is None:
      raise subprocess.TimeoutExpired("op_check", timeout)
    stdout.write(b"op_check: what is amiss\n")
    return status

  monkeypatch.setattr(subprocess, "call", call)
  monkeypatch.setattr(library, "path", lambda gpu=None: tmp_path / "lib.so")
  for _ in range(2):
    fault = build.check_on_gpu("sm_90")
    assert fault is None if words is None else fault.startswith(words)
    assert library.recorded("sm_90") is recorded
  assert len(calls) == (2 if recorded is None else 1)
  assert library.recorded("sm_80") is None
