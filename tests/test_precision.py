"""utils/precision: what runs on which hardware, bfloat16 by casts, XLA."""

import collections
from concurrent import futures
import ctypes
import logging
import multiprocessing
import os
import re
import subprocess

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from tensorflow.core.protobuf import rewriter_config_pb2

import modeling
import precision_models
import runners
from test_run_squad import place  # pylint: disable=unused-import
from test_run_squad import settings
from utils import precision
from utils import session
from utils import stack
from utils import training
from utils.errors import UserError

stack.configure()

ON = rewriter_config_pb2.RewriterConfig.ON
OFF = rewriter_config_pb2.RewriterConfig.OFF
DEFAULT = rewriter_config_pb2.RewriterConfig.DEFAULT
V100, T4, A100 = (7, 0), (7, 5), (8, 0)
needs_tf2 = pytest.mark.skipif(stack.IS_TF1, reason="tf2 stack only")


class Lines(logging.Handler):
  """Keeps what is logged, as a list of "LEVEL message"."""

  def __init__(self):
    super(Lines, self).__init__()
    self.lines = []

  def emit(self, record):
    self.lines.append("%s %s" % (record.levelname, record.getMessage()))

  def __enter__(self):
    logger = logging.getLogger("bert")
    self._level = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(self)
    return self.lines

  def __exit__(self, *unused):
    logger = logging.getLogger("bert")
    logger.removeHandler(self)
    logger.setLevel(self._level)


@pytest.fixture
def log():
  """The lines logged so far, each with its level."""
  with Lines() as lines:
    yield lines


@pytest.fixture
def hardware(monkeypatch):
  """Function that sets what this machine has."""
  def set_up(gpu=None, bfloat16=False, tensor_float_32=True):
    precision.settle.cache_clear()
    monkeypatch.setattr(stack, "gpu_available", lambda: gpu is not None)
    monkeypatch.setattr(stack, "compute_capability",
                        lambda: None if gpu == "unknown" else gpu)
    monkeypatch.setattr(stack, "cpu_has_bfloat16", lambda: bfloat16)
    monkeypatch.setattr(stack, "tensor_float_32", lambda: tensor_float_32)
  yield set_up
  precision.settle.cache_clear()


# What runs ------------------------------------------------------------------


@pytest.mark.parametrize("asked, machine, runs, warning", [
    ("fp32", dict(), "fp32", None),
    ("fp32", dict(gpu=V100), "fp32", None),
    ("fp16", dict(gpu=V100), "fp16", None),
    ("fp16", dict(gpu=T4), "fp16", None),
    ("fp16", dict(gpu="unknown"), "fp16", None),
    ("fp16", dict(gpu=(6, 1)), "fp32", "this GPU has compute capability 6.1, "
     "not 7.0, so this computes in float32 (training keeps the loss scale"),
    ("fp16", dict(), "fp32", "there is no GPU here, so this computes in "
     "float32 (training keeps the loss scale"),
    ("bf16", dict(gpu=A100), "bf16", None),
    ("bf16", dict(gpu=(9, 0)), "bf16", None),
    ("bf16", dict(gpu=T4), "fp32", "this GPU has compute capability 7.5, not "
     "8.0, so this computes in float32"),
    ("bf16", dict(gpu=T4, bfloat16=True), "fp32", "compute capability 7.5"),
    ("bf16", dict(bfloat16=True), "bf16", None),
    ("bf16", dict(), "fp32", "this CPU has neither AVX512_BF16 nor AMX, so "
     "this computes in float32"),
])
def test_what_runs(hardware, log, monkeypatch, asked, machine, runs, warning):
  monkeypatch.setattr(stack, "IS_TF1", False)
  hardware(**machine)
  settled = precision.settle(asked == "fp16", asked == "bf16", False)
  assert (settled.name, settled.computes) == (asked, runs)
  assert settled.scales_loss == (asked == "fp16")
  casts = runs == "bf16" and "gpu" in machine
  assert settled.matmul_dtype == (tf.bfloat16 if casts else None)
  lines = [line for line in log if line.startswith("WARNING")]
  assert len(lines) == (1 if warning else 0)
  if warning:
    assert lines[0].startswith("WARNING --use_%s: " % asked)
    assert warning in lines[0]
  again = len(log)
  assert precision.settle(asked == "fp16", asked == "bf16", False) == settled
  assert len(log) == again


def test_bfloat16_needs_onednn(hardware, log, monkeypatch):
  monkeypatch.setattr(stack, "IS_TF1", False)
  monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", "0")
  hardware(bfloat16=True)
  assert precision.settle(False, True, False).computes == "fp32"
  assert "TF_ENABLE_ONEDNN_OPTS=0 switches" in log[0]


def test_wishes_that_cannot_be(hardware, monkeypatch):
  hardware(gpu=A100)
  with pytest.raises(UserError, match="--use_bf16: not together with "
                                      "--use_fp16"):
    precision.settle(True, True, False)
  monkeypatch.setattr(stack, "IS_TF1", True)
  with pytest.raises(UserError, match="--use_bf16: TensorFlow .* tf2 stack"):
    precision.settle(False, True, False)


@pytest.mark.parametrize("machine, line", [
    (dict(gpu=T4), None), (dict(), None), (dict(gpu="unknown"), None),
    (dict(gpu=A100), "on this GPU use it"),
    (dict(gpu=A100, tensor_float_32=False), "on this GPU do not use it"),
    (dict(gpu=A100, tensor_float_32=None), "unless NVIDIA_TF32_OVERRIDE=0")])
def test_tensor_float_32_is_told(hardware, log, machine, line):
  hardware(**machine)
  precision.settle(False, False, False)
  assert len(log) == (1 if line else 0)
  if line:
    assert log[0].startswith("INFO TF32: ") and line in log[0]


# What is switched on --------------------------------------------------------


@pytest.fixture
def no_lists(monkeypatch):
  """Keeps the pass's environment variables from other tests."""
  for kind in stack.PRECISION_LISTS.values():
    for change in ("ADD", "REMOVE"):
      monkeypatch.setenv("TF_AUTO_MIXED_PRECISION_GRAPH_REWRITE_%s_%s"
                         % (kind, change), "")


def switches(computes, matmul_dtype=None, xla=False):
  """Returns the graph options of a session of that precision."""
  settled = precision.Precision("asked", computes, False, matmul_dtype, xla)
  config = session.run_config("folder", 1, 2, settled).session_config
  assert config.intra_op_parallelism_threads == 2
  return config.graph_options


def test_switches(no_lists):
  fp32 = switches("fp32").rewrite_options
  assert fp32.auto_mixed_precision == DEFAULT
  fp16 = switches("fp16").rewrite_options
  assert fp16.auto_mixed_precision == ON
  assert fp16.remapping == DEFAULT
  xla = switches("fp16", xla=True)
  assert xla.rewrite_options.auto_mixed_precision == ON
  assert xla.rewrite_options.remapping == OFF
  for options in (switches("fp32"), switches("fp16")):
    assert (options.optimizer_options.global_jit_level
            == tf.OptimizerOptions.DEFAULT)
  assert xla.optimizer_options.global_jit_level == tf.OptimizerOptions.ON_1


@needs_tf2
def test_switches_of_bfloat16(no_lists):
  name = "auto_mixed_precision_onednn_bfloat16"
  for computes, dtype, value in [("bf16", None, ON), ("fp32", None, DEFAULT),
                                 ("bf16", tf.bfloat16, DEFAULT)]:
    options = switches(computes, dtype).rewrite_options
    assert getattr(options, name) == value
    assert options.auto_mixed_precision == DEFAULT


# What the hardware is asked -------------------------------------------------


class Driver(object):
  """Stands for libcuda.so.1 on a machine with these GPUs."""

  def __init__(self, gpus, failure=0):
    self._gpus = gpus
    self._failure = failure

  def cuInit(self, unused_flags):  # pylint: disable=invalid-name
    return self._failure

  def cuDeviceGetCount(self, count):  # pylint: disable=invalid-name
    count._obj.value = len(self._gpus)  # pylint: disable=protected-access
    return 0

  def cuDeviceGetAttribute(  # pylint: disable=invalid-name
      self, number, attribute, device):
    value = self._gpus[device][{75: 0, 76: 1}[attribute]]
    number._obj.value = value  # pylint: disable=protected-access
    return 0


@pytest.mark.parametrize("driver, capability", [
    (Driver([(8, 0), (7, 5), (8, 6)]), (7, 5)), (Driver([(9, 0)]), (9, 0)),
    (Driver([]), None), (Driver([(8, 0)], failure=100), None)])
def test_compute_capability_is_that_of_the_least(monkeypatch, driver,
                                                 capability):
  monkeypatch.setattr(ctypes, "CDLL", lambda name: driver)
  assert stack.compute_capability() == capability


def test_no_driver(monkeypatch):
  def missing(name):
    raise OSError(name)
  monkeypatch.setattr(ctypes, "CDLL", missing)
  assert stack.compute_capability() is None


@pytest.mark.parametrize("flags, found", [
    ("fpu sse2 avx2", False), ("avx512f avx512_bf16", True),
    ("amx_bf16 amx_tile", True), ("amx_tile amx_int8", False)])
def test_bfloat16_of_cpus(monkeypatch, flags, found):
  monkeypatch.setattr(stack, "_cpu_flags", lambda: set(flags.split()))
  assert stack.cpu_has_bfloat16() == found


def test_flags_of_this_cpu():
  assert "fpu" in stack._cpu_flags()  # pylint: disable=protected-access


def test_tensor_float_32(monkeypatch):
  monkeypatch.delenv("NVIDIA_TF32_OVERRIDE", raising=False)
  assert stack.tensor_float_32() is (None if stack.IS_TF1 else True)
  monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
  assert not stack.tensor_float_32()


# bfloat16 by casts ----------------------------------------------------------


def values_of(dtype):
  """Returns (loss, gradients, types of bfloat16 operations) of a step."""
  config = modeling.BertConfig(**dict(
      precision_models.TINY, num_hidden_layers=2, hidden_size=64,
      intermediate_size=128))
  with tf.Graph().as_default() as graph, tf.Session() as sess:
    tf.set_random_seed(1)
    step = precision_models.build_step("pretraining", config, batch=4,
                                       length=16, matmul_dtype=dtype)
    assert step.loss.dtype == tf.float32
    assert all(grad.dtype == tf.float32 for grad in step.grads)
    narrow = collections.Counter(
        op.type for op in graph.get_operations() for output in op.outputs
        if output.dtype == tf.bfloat16)
    sess.run(tf.global_variables_initializer())
    loss, grads = sess.run([step.loss, step.grads])
  return loss, grads, narrow


@needs_tf2
def test_bfloat16_by_casts():
  exact, exact_grads, none = values_of(None)
  loss, grads, narrow = values_of(tf.bfloat16)
  assert not none
  # Layers, pooler: products forward and twice that many backward.
  assert narrow["MatMul"] == 3 * (2 * 6 + 1)
  assert narrow["BatchMatMulV2"] == 3 * 2 * 2
  assert set(narrow) == {"MatMul", "BatchMatMulV2", "Cast"}
  # bfloat16 has 8 bits of mantissa.
  assert loss == pytest.approx(exact, rel=2 ** -8)
  assert loss != exact
  largest = max(np.abs(grad).max() for grad in exact_grads)
  for grad, exact_grad in zip(grads, exact_grads):
    np.testing.assert_allclose(grad, exact_grad, atol=2 ** -6 * largest)


# XLA ------------------------------------------------------------------------


# What XLA does to make the step fast makes the test slow.
COMPILE_FAST = dict(XLA_FLAGS="--xla_backend_optimization_level=0")


def let_xla_in():
  """Sets a process up as a runner does."""
  stack.configure(use_xla=True)
  os.environ.update(COMPILE_FAST)


@pytest.fixture(scope="module")
def apart():
  """Function that calls another in a process that lets XLA in.

  This one cannot on the tf1 stack, once another test has had a session.
  """
  context = multiprocessing.get_context("forkserver")
  with futures.ProcessPoolExecutor(1, context, let_xla_in) as pool:
    yield lambda function, *args: pool.submit(function, *args).result(300)


def xla_config(settled):
  config = tf.ConfigProto()
  precision.apply(settled, config)
  return config


def losses_both_ways(task, micro_batches, dropout):
  """Returns [(losses of four steps, coverage)] without and with XLA."""
  settled = precision.settle(False, False, True)
  config = modeling.BertConfig(**dict(
      precision_models.TINY, hidden_dropout_prob=dropout,
      attention_probs_dropout_prob=dropout))
  found = []
  for xla in (False, True):
    with tf.Graph().as_default(), tf.Session(
        config=xla_config(settled._replace(xla=xla))) as sess:
      tf.set_random_seed(1)
      step = precision_models.build_step(
          task, config, micro_batches=micro_batches,
          row_buckets=training.ROW_BUCKETS)
      sess.run(tf.global_variables_initializer())
      metadata = tf.RunMetadata()
      fetches = (step.loss, step.train_op)
      losses = [sess.run(fetches, run_metadata=metadata, options=tf.RunOptions(
          output_partition_graphs=True))[0]]
      losses.extend(sess.run(fetches)[0] for _ in range(3))
    found.append((losses, tuple(precision.xla_coverage(fetches, metadata))))
  return found


def check_both_ways(found, clusters, products):
  """Checks equal losses, which fall, and that all products are compiled."""
  (plain, without), (compiled, coverage) = found
  np.testing.assert_allclose(compiled, plain, rtol=1e-4)
  assert compiled[-1] < 0.95 * compiled[0]
  assert precision.XlaCoverage(*without).clusters == 0
  coverage = precision.XlaCoverage(*coverage)
  assert coverage.clusters == clusters
  assert coverage.products == coverage.all_products == products
  assert coverage.outside < precision.XlaCoverage(*without).outside / 3


# A layer's 8 products, two of embeddings, pooler and heads; all but that of
# the embeddings have two gradients.
PRODUCTS = {"pretraining": 3 * (8 + 4) + 2, "squad": 3 * (8 + 1) + 2}


def test_same_losses_with_xla(apart):
  check_both_ways(apart(losses_both_ways, "pretraining", 1, 0.0), 1,
                  PRODUCTS["pretraining"])


def test_same_losses_with_xla_in_the_loop_over_micro_batches(apart):
  # Two clusters are the loop's body, which decides on its rows between them.
  check_both_ways(apart(losses_both_ways, "squad", 3, 0.0),
                  3, 2 * PRODUCTS["squad"])


def compile_into(folder):
  """Sets a process up in which XLA leaves what it compiles in a folder."""
  let_xla_in()
  os.environ["XLA_FLAGS"] += " --xla_dump_to=%s --xla_dump_hlo_as_text" % folder


def losses_of_many_lengths(steps):
  """Returns (losses of steps with other numbers of tokens, those numbers)."""
  settled = precision.settle(False, False, True)
  with tf.Graph().as_default(), tf.Session(config=xla_config(settled)) as sess:
    step = precision_models.build_step(
        "squad", modeling.BertConfig(**precision_models.TINY), batch=4,
        length=16, row_buckets=training.ROW_BUCKETS)
    sess.run(tf.global_variables_initializer())
    losses, counts = [], []
    for lengths in np.random.RandomState(0).randint(8, 17, [steps, 4]):
      losses.append(sess.run([step.loss, step.train_op], {
          step.features["input_mask"]:
              np.arange(16) < lengths[:, np.newaxis]})[0])
      counts.append(int(lengths.sum()))
  return losses, counts


def test_xla_compiles_a_handful_of_programs(tmp_path):
  context = multiprocessing.get_context("forkserver")
  with futures.ProcessPoolExecutor(1, context, compile_into,
                                   (str(tmp_path),)) as pool:
    losses, counts = pool.submit(losses_of_many_lengths, 24).result(300)
  programs = collections.Counter(
      re.search(r"HloModule (cluster_\d+)", path.read_text()).group(1)
      for path in tmp_path.iterdir()
      if path.name.endswith(".before_optimizations.txt"))
  assert np.isfinite(losses).all() and len(set(counts)) > 12
  used = {-(-count // 8) for count in counts}  # buckets of 4 * 16 / 8 rows
  # It waits until a number of rows comes again.
  assert 2 <= max(programs.values()) <= len(used) <= training.ROW_BUCKETS
  assert len(programs) < 4, programs  # masks and initial values have their own


def test_same_dropout_with_xla(apart):
  (plain, _), (compiled, coverage) = apart(losses_both_ways, "squad", 1, 0.5)
  assert coverage[1] == PRODUCTS["squad"]
  np.testing.assert_allclose(compiled, plain, rtol=1e-4)


class Watch(tf.train.SessionRunHook):
  """Counts the graphs that each step returns."""

  def __init__(self):
    self.graphs = []

  def before_run(self, run_context):
    return tf.train.SessionRunArgs(None)

  def after_run(self, run_context, run_values):
    self.graphs.append(len(run_values.run_metadata.partition_graphs))


def report(use_xla):
  """Returns (lines, graphs returned by each of three steps)."""
  settled = precision.settle(False, False, True)._replace(xla=use_xla)
  with tf.Graph().as_default(), Lines() as lines:
    x = tf.placeholder_with_default(np.eye(8, dtype=np.float32), [8, 8])
    y = tf.matmul(tf.tanh(tf.matmul(x, x)), x)
    watch = Watch()
    creator = tf.train.ChiefSessionCreator(config=xla_config(settled))
    with tf.train.MonitoredSession(creator, [
        precision.XlaReportHook(), watch]) as sess:
      for _ in range(3):
        sess.run({"y": y})
  return lines, watch.graphs


def test_xla_is_reported_once(apart):
  lines, graphs = apart(report, True)
  assert len(lines) == 1
  assert lines[0].startswith(
      "INFO --use_xla: 1 clusters hold 2 of 2 matrix products; ")
  assert graphs == [1, 0, 0]


def test_xla_that_compiles_nothing_is_told(apart):
  lines, _ = apart(report, False)
  assert len(lines) == 1
  assert lines[0].startswith("WARNING --use_xla: 0 clusters")


def steps_until_stop():
  """Returns the steps that Estimator's hook lets run where two are asked."""
  settled = precision.settle(False, False, True)
  with tf.Graph().as_default():
    step = precision_models.build_step(
        "squad", modeling.BertConfig(**precision_models.TINY))
    creator = tf.train.ChiefSessionCreator(
        session.training_scaffold(None), config=xla_config(settled))
    hook = tf.train.StopAtStepHook(last_step=2)
    with tf.train.MonitoredSession(creator, [hook]) as sess:
      for number in range(5):
        if sess.should_stop():
          return number
        sess.run(step.train_op)


def test_training_stops_with_xla(apart):
  assert apart(steps_until_stop) == 2


def test_runner_compiles(place, tmp_path):
  done = subprocess.run(
      runners.command("run_squad", settings(
          place, tmp_path / "run", do_predict=None, num_train_epochs=0.4,
          use_xla=True, use_fp16=True)),
      stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=300,
      env=dict(os.environ, **COMPILE_FAST))
  log = done.stderr.decode()
  assert done.returncode == 0, log
  line, = [line for line in log.splitlines() if "--use_xla: " in line]
  words = line[line.index("--use_xla: "):].split()
  clusters, inside, products = (int(words[i]) for i in (1, 4, 6))
  assert clusters >= 1 and inside == products > 30, line
  assert "step 2/2" in log and "step 3/2" not in log
  assert log.count("--use_fp16: there is no GPU here") == 1


@pytest.mark.parametrize("gpu, use_xla, after", [
    (False, True, "--mine --tf_xla_cpu_global_jit"),
    (False, False, "--mine"), (True, True, "--mine")])
def test_who_lets_xla_in(hardware, monkeypatch, gpu, use_xla, after):
  """By what the tf1 stack reads, the environment."""
  hardware(gpu=V100 if gpu else None)
  monkeypatch.setattr(stack, "IS_TF1", True)
  monkeypatch.setenv("TF_XLA_FLAGS", "--mine")
  stack.configure(use_xla)
  stack.configure(use_xla)
  assert os.environ["TF_XLA_FLAGS"] == after
