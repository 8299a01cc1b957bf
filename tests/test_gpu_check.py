"""The GPU harness without a GPU: its references against the CPU's kernels.

What the references say is what gpu_check.py holds the CUDA kernels to, so that
both kinds of kernels mean the same, down to the bits of dropout's masks.
"""

import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

from fused_ops import cuda
from fused_ops import gpu_cases
from fused_ops import gpu_check
from fused_ops import gpu_device
from fused_ops import gpu_reference as reference
from fused_ops import library
from fused_ops import ops
from test_fused_ops import normal
from test_fused_ops import run
from test_fused_ops import with_gradients
from utils import stack

stack.configure()

SEED = [1234567890123456789, (5 << 40) + 77]
ZEROES = 6554
RATE = 0.1


@pytest.fixture(autouse=True, scope="module")
def _built():
  if library.fault():
    pytest.fail("the kernels are " + library.fault())


def doubles(*arrays):
  return [a.astype(np.float64) for a in arrays]


def close(found, expected, tolerance=2e-6, scale=1e-3):
  scale = max(np.abs(expected).max(), scale)
  np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("exact", [0, 1])
def test_gelu(exact):
  x, bias, dy = 4 * normal(1, 33, 130), normal(2, 130), normal(3, 33, 130)
  y, dx, dbias = with_gradients(
      lambda x, bias: ops.bias_gelu(x, bias, bool(exact)), dy, x, bias)
  wanted, slope = reference.gelu_and_slope(
      x.astype(np.float64) + bias, exact)
  close(y, wanted)
  close(dx, dy * slope)
  close(dbias, (dy * slope).sum(0))


@pytest.mark.parametrize("rows, width", [(1, 8), (3, 30), (20, 1001)])
def test_row_mask_has_the_bits_of_the_cpu(rows, width):
  mask = library.load().bert_dropout_add_norm
  z = run(lambda x: mask(x=x, bias=tf.zeros([width]), residual=tf.zeros_like(x),
                         gamma=tf.ones([width]), beta=tf.zeros([width]),
                         seed=SEED, rate=RATE)[1], np.ones([rows, width],
                                                          np.float32))
  np.testing.assert_array_equal(
      z, reference.row_mask(*SEED, ZEROES, rows, width).astype(np.float32))


def test_dropout_add_norm():
  rows, width = 21, 130
  x, residual, dy = (normal(i, rows, width) for i in (1, 2, 3))
  bias, gamma, beta = (normal(i, width) for i in (4, 5, 6))
  found = with_gradients(
      lambda x, bias, residual, gamma, beta: ops.dropout_add_norm(
          x, bias, residual, gamma, beta, RATE, SEED),
      dy, x, bias, residual, gamma, beta)
  x, residual, dy, bias, gamma, beta = doubles(x, residual, dy, bias, gamma,
                                               beta)
  mask = reference.row_mask(*SEED, ZEROES, rows, width)
  z = (x + bias) * mask + residual
  dx, dz, dbias, dgamma, dbeta = reference.norm_grad(dy, z, gamma, mask)
  for one, wanted in zip(found, (
      reference.norm_of(z)[0] * gamma + beta, dx, dbias, dz, dgamma, dbeta)):
    close(one, wanted)


def test_attention_mask_has_the_bits_of_the_cpu():
  starts, heads, width = np.array([0, 13, 13, 70], np.int32), 3, 57
  value = np.zeros([70, heads * width], np.float32)
  for first, end in zip(starts[:-1], starts[1:]):
    value[first:end] = np.tile(np.eye(end - first, width), [1, heads])
  zero = np.zeros_like(value)
  out = run(lambda q, k, v: ops.attention(q, k, v, starts, heads, RATE, SEED),
            zero, zero, value)
  for first, end in zip(starts[:-1], starts[1:]):
    for head in range(heads):
      np.testing.assert_array_equal(
          out[first:end, head * width:head * width + end - first] != 0,
          reference.attention_mask(*SEED, ZEROES, first, end - first,
                                   head) != 0)


@pytest.mark.parametrize("rate, zeroes", [(0.0, 0), (RATE, ZEROES)])
def test_attention(rate, zeroes):
  starts, heads = np.array([0, 40, 40, 41, 58], np.int32), 2
  inputs = [normal(i, 58, heads * 20) for i in (1, 2, 3, 4)]
  found = with_gradients(
      lambda q, k, v: ops.attention(q, k, v, starts, heads, rate, SEED),
      inputs[3], *inputs[:3])
  wanted = reference.attention(
      *doubles(*inputs), starts=starts, heads=heads,
      masks=lambda first, length, head: reference.attention_mask(
          *SEED, zeroes=zeroes, first=first, length=length, head=head))
  for one, expected in zip(found, (wanted[0],) + wanted[2:]):
    close(one, expected, 4e-6, scale=np.abs(inputs[3]).max())


def test_cross_entropy():
  logits, bias, dloss = 3 * normal(1, 9, 131), normal(2, 131), normal(3, 9)
  labels = np.random.RandomState(4).randint(0, 131, 9).astype(np.int32)
  found = with_gradients(
      lambda logits, bias: ops.cross_entropy(logits, bias, labels), dloss,
      logits, bias)
  loss, _, dlogits, dbias = reference.cross_entropy(
      logits.astype(np.float64) + bias, labels, dloss.astype(np.float64))
  for one, wanted in zip(found, (loss, dlogits, dbias)):
    close(one, wanted)


@pytest.mark.parametrize("kind", ["adam", "lamb"])
def test_update(kind):
  step = dict(beta_1=0.9, beta_2=0.999, epsilon=1e-6, rate=0.1,
              gradient_scale=0.5, correction_1=0.1, correction_2=0.2)
  arrays = [normal(1, 700), normal(2, 700), normal(3, 700) ** 2 + 0.1,
            normal(4, 700)]
  settings = {name: step[name] for name in (
      "beta_1", "beta_2", "epsilon", "rate", "gradient_scale")}
  if kind == "lamb":
    settings.update(corrections=(0.1, 0.2), adapt=[True])
  with tf.Graph().as_default(), tf.Session() as session:
    w, m, v = (tf.get_variable(name, initializer=values)
               for name, values in zip("wmv", arrays))
    operation = getattr(ops, kind)([w], [m], [v], [tf.constant(arrays[3])],
                                   decay=[0.01], **settings)
    session.run(tf.global_variables_initializer())
    session.run(operation)
    found = session.run([w, m, v])
  for one, wanted in zip(found, reference.update(
      kind, *doubles(*arrays), decay=0.01, adapt=True, step=step)):
    close(one, wanted, 1e-6)


# The harness -----------------------------------------------------------------


def test_types_round_to_the_nearest():
  values = np.concatenate([normal(1, 1000), np.float32(
      [1 + 2.0 ** -8, 1 + 3 * 2.0 ** -8, 1 + 2.0 ** -8 + 2.0 ** -20, np.inf])])
  wanted = run(lambda x: tf.cast(tf.cast(x, tf.bfloat16), tf.float32), values)
  np.testing.assert_array_equal(gpu_device.rounded(values, "bfloat16"), wanted)
  np.testing.assert_array_equal(gpu_device.rounded(values, "float16"),
                                values.astype(np.float16))


def test_what_is_no_number_is_no_match():
  compare = lambda found, wanted: gpu_cases.compare(
      "bias_gelu", "float32", {"y": np.float64(found), "z": np.ones([2])},
      {"y": np.float64(wanted), "z=": np.ones([2])})
  error, limit = compare([1, np.nan], [1, 2])
  assert error == float("inf") and error > limit
  error, limit = compare([1, 2], [1, 2.001])
  assert limit == 4e-6 and error == pytest.approx(5e-4, rel=1e-3)
  error, limit = compare([1, 2], [1, 2])
  assert error <= limit


def rows_of_a_run():
  timed = dict(timed="bias_gelu", type="float16", shape="16384 4096 0",
               microseconds=90.0, copy=3e12, memory_bound=True)
  return [{"device": "Some GPU"},
          {"check": "bias_gelu float16 1 8 0", "error": 1e-4, "limit": 1e-3},
          dict(timed, bandwidth=2.7e12), dict(timed, bandwidth=2.3e12)]


def test_a_run_is_written_as_tables(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(gpu_check, "run_group", lambda *unused: rows_of_a_run())
  monkeypatch.setattr(gpu_cases, "groups", lambda: {"bias_gelu": None})
  options = gpu_check.argparse.Namespace(
      quick=True, output=str(tmp_path / "table.md"))
  about = {"device": "?", "driver": "580.1", "toolkit": "13.0",
           "architecture": "sm_90", "date": "2026-01-01"}
  assert gpu_check.check("library", options, about)
  written = (tmp_path / "table.md").read_text()
  assert "# CUDA kernels on Some GPU" in written and "580.1" in written
  assert "| 2700 | 90 % | PASS |" in written
  assert "| 2300 | 77 % | MISS |" in written
  assert "ok   bias_gelu float16 1 8 0" in capsys.readouterr().out
  rows = rows_of_a_run() + [
      {"check": "bias_gelu float32 3 7 0", "fault": "two runs differ"}]
  monkeypatch.setattr(gpu_check, "run_group", lambda *unused: rows)
  assert not gpu_check.check("library", options, about)
  assert "1 of 2" in (tmp_path / "table.md").read_text()
  assert "FAIL bias_gelu float32 3 7 0: two runs differ" in (
      capsys.readouterr().out)


def test_a_group_that_dies_is_a_failed_check(tmp_path):
  rows = gpu_check.run_group(str(tmp_path / "none.so"), "bias_gelu", True)
  assert rows[-1]["check"] == "bias_gelu" and "none.so" in rows[-1]["fault"]


def test_no_compiler_is_one_line(monkeypatch):
  monkeypatch.setattr(cuda.shutil, "which", lambda *unused, **more: None)
  with pytest.raises(cuda.CudaError, match="put nvcc on the PATH"):
    cuda.nvcc()


def test_output_in_no_folder_is_known_before_the_work(tmp_path):
  with pytest.raises(cuda.CudaError, match="--output=.*no such folder"):
    gpu_check.main(["--output=%s" % (tmp_path / "none" / "table.md")])


@pytest.mark.parametrize("program", ["gpu_check.py", "build.py"])
def test_no_architecture_is_one_line(program):
  done = subprocess.run(
      [sys.executable, "fused_ops/" + program, "--arch=sm_80,volta"],
      cwd=str(cuda.ROOT), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
      check=False)
  assert done.returncode == 1
  line = done.stderr.decode().splitlines()[-1]
  assert line.endswith(
      "--arch=sm_80,volta: 'volta' is no name such as sm_80"), line


def test_no_numpy_is_one_line(tmp_path):
  (tmp_path / "numpy.py").write_text("raise ImportError('no numpy here')\n")
  done = subprocess.run(
      [sys.executable, "fused_ops/gpu_check.py"], cwd=str(cuda.ROOT),
      env=dict(os.environ, PYTHONPATH=str(tmp_path)), stdout=subprocess.PIPE,
      stderr=subprocess.PIPE, check=False)
  assert done.returncode == 1
  assert done.stderr.decode().splitlines() == [
      "gpu_check: no numpy here: take a Python that has numpy"]


@pytest.mark.skipif(not shutil.which("nvcc"), reason="no nvcc on the PATH")
def test_compiles_here_and_says_for_what():
  newest = cuda.known_architectures(cuda.nvcc())[-1]
  done = subprocess.run(
      [sys.executable, "fused_ops/gpu_check.py", "--arch", newest,
       "--build_only"], cwd=str(cuda.ROOT), stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT, check=False)
  words = done.stdout.decode()
  assert done.returncode == 0, words
  assert words.startswith("built for %s by nvcc " % newest)


def test_no_gpu_is_said(monkeypatch, capsys):
  monkeypatch.setattr(cuda, "this_architecture", lambda: None)
  monkeypatch.setattr(cuda, "nvcc", lambda: "nvcc")
  monkeypatch.setattr(cuda, "toolkit", lambda _: "10.0")
  monkeypatch.setattr(cuda, "known_architectures",
                      lambda _: ["sm_70", "sm_75"])
  monkeypatch.setattr(gpu_check, "build",
                      lambda *unused: cuda.ROOT / "x.so")
  assert gpu_check.main([]) == 0
  assert capsys.readouterr().out.splitlines() == [
      "built for sm_70, sm_75 by nvcc 10.0: x.so",
      "no GPU here: nothing was run"]
