"""What mixed precision makes of the real training graphs, without a GPU."""

import os
import subprocess
import sys

import pytest
import tensorflow.compat.v1 as tf

import modeling
import precision_models
import virtual_device
from utils import precision
from utils import stack

stack.configure()

# What computes layer norm's statistics and the losses.
LAYER_NORM = ("Mean", "Square", "Rsqrt", "RsqrtGrad", "Sub", "AddV2", "Add")
LOSSES = ("SparseSoftmaxCrossEntropyWithLogits", "Sum", "L2Loss", "Mean")
LENGTHS = {"pretraining": 128, "squad": 384}
# Casts that the pass adds to a step of BERT-large. On the tf1 stack two a layer
# more than with padding, on the other as many.
CASTS = {("pretraining", "tf1"): 1035, ("squad", "tf1"): 1020,
         ("pretraining", "tf2"): 963, ("squad", "tf2"): 948}


# With the kernels of fused_ops, on both stacks.
CASTS_OF_KERNELS = {"pretraining": 700, "squad": 685}


@pytest.fixture(autouse=True, scope="module")
def lists():
  """The pass's environment, as `precision.apply` leaves it."""
  with pytest.MonkeyPatch.context() as patch:
    for kind in stack.PRECISION_LISTS.values():
      for change in ("ADD", "REMOVE"):
        patch.setenv("TF_AUTO_MIXED_PRECISION_GRAPH_REWRITE_%s_%s"
                     % (kind, change), "")
    switch_on()
    yield patch


def switch_on():
  """Switches fp16 on as a GPU would, and returns the session's config."""
  config = tf.ConfigProto()
  precision.apply(precision.Precision("fp16", "fp16", True, None, False),
                  config)
  return config


@pytest.fixture(scope="module", params=["pretraining", "squad"])
def large(request):
  """(task, `Rewritten` training step of BERT-large)."""
  config = modeling.BertConfig(**precision_models.LARGE)
  with tf.Graph().as_default():
    step = precision_models.build_step(
        request.param, config, predictions=20, length=LENGTHS[request.param])
    return request.param, virtual_device.rewrite(step.train_op)


def test_all_products_of_bert_large_are_float16(large):
  task, rewritten = large
  # Six products and two of attention a layer, each with two gradients.
  assert rewritten.dtypes("MatMul", where="encoder/") == {"float16": 24 * 18}
  assert rewritten.dtypes("BatchMatMul", "BatchMatMulV2") == {
      "float16": 24 * 6}
  # As if all were tokens: 6 FLOPs a weight and token; attention's products
  # come on top.
  length = LENGTHS[task]
  tokens = 2 * length
  encoder, whole = (rewritten.flops(tokens, length, where)
                    for where in ("encoder/", ""))
  print("%s, %s: float16 %.4f of the encoder's %.1f GFLOP, %.4f of all %.1f"
        % (stack.NAME, task,
           encoder["float16"] / sum(encoder.values()),
           sum(encoder.values()) / 1e9,
           whole["float16"] / sum(whole.values()), sum(whole.values()) / 1e9))
  assert set(encoder) == {"float16"}
  assert set(whole) == {"float16"}
  weights = 24 * 12 * 1024 * 1024
  assert 1.0 < encoder["float16"] / (6.0 * weights * tokens) < 1.1


def test_what_needs_float32_in_bert_large_has_it(large):
  _, rewritten = large
  assert rewritten.dtypes("Softmax") == {"float32": 24}
  for op in LOSSES:
    assert set(rewritten.dtypes(op)) <= {"float32"}, op
  norms = 49 if large[0] == "squad" else 50
  for op in ("Rsqrt", "RsqrtGrad"):
    assert rewritten.dtypes(op) == {"float32": norms}
  assert rewritten.dtypes("Square", where="LayerNorm/Square") == {
      "float32": norms}
  assert rewritten.dtypes("Mean", where="LayerNorm/Mean") == {
      "float32": 2 * norms}
  assert set(rewritten.dtypes(*LAYER_NORM, where="LayerNorm/")) == {"float32"}


def test_number_of_casts_in_bert_large(large):
  task, rewritten = large
  print("%s, %s: %d casts added" % (stack.NAME, task, rewritten.casts))
  assert rewritten.casts == CASTS[task, stack.NAME]


@pytest.fixture(scope="module", params=["pretraining", "squad"])
def large_of_kernels(request):
  """(task, `Rewritten`) with the kernels of fused_ops."""
  config = modeling.BertConfig(**precision_models.LARGE)
  with tf.Graph().as_default():
    step = precision_models.build_step(
        request.param, config, predictions=20, length=LENGTHS[request.param],
        fused_ops=True)
    return request.param, virtual_device.rewrite(step.train_op)


def test_kernels_are_float16_between_products_of_bert_large(large_of_kernels):
  task, rewritten = large_of_kernels
  assert rewritten.dtypes("MatMul", where="encoder/") == {"float16": 24 * 18}
  assert not rewritten.dtypes("BatchMatMul", "BatchMatMulV2")
  for name, dtype, count in (
      ("BertBiasGelu", "float16", 24), ("BertAttention", "float16", 24),
      ("BertDropoutAddNorm", "float32", 48)):
    assert rewritten.dtypes(name) == {dtype: count}, name
    assert rewritten.dtypes(name + "Grad") == {dtype: count}, name
  for name in ("BertCrossEntropy", "BertCrossEntropyGrad"):
    assert rewritten.dtypes(name) == (
        {"float32": 1} if task == "pretraining" else {}), name
  tokens = 2 * LENGTHS[task]
  assert set(rewritten.flops(tokens, LENGTHS[task])) == {"float16"}
  for op in LOSSES + ("Rsqrt", "RsqrtGrad"):
    assert set(rewritten.dtypes(op)) <= {"float32"}, op
  print("%s, %s, kernels: %d casts added" % (stack.NAME, task, rewritten.casts))
  assert rewritten.casts == CASTS_OF_KERNELS[task]


def tiny(**more):
  """Returns a `Rewritten` training step of a tiny model."""
  with tf.Graph().as_default():
    step = precision_models.build_step(
        "pretraining", modeling.BertConfig(**precision_models.TINY), **more)
    return virtual_device.rewrite(step.train_op)


def test_loop_over_micro_batches():
  once, looped = tiny(), tiny(micro_batches=3)
  for types in (("MatMul",), ("BatchMatMulV2",)):
    number = once.dtypes(*types)["float16"]
    assert once.dtypes(*types) == {"float16": number}
    # Once in the loop's body, once for the last micro-batch.
    assert looped.dtypes(*types) == {"float16": 2 * number}
  assert (looped.flops(20, 10)["float16"]
          == 2 * once.flops(20, 10)["float16"])
  assert looped.dtypes("Softmax") == {"float32": 2}
  assert set(looped.dtypes(*LOSSES)) == {"float32"}


def test_sums_over_micro_batches_stay_float32():
  looped = tiny(micro_batches=3)
  for op in ("Enter", "Merge", "Switch", "NextIteration", "Exit"):
    dtypes = looped.dtypes(op)
    assert dtypes["float32"] > 30 and "float16" not in dtypes, op


def test_logits_keep_log_softmax_in_float32():
  with tf.Graph().as_default():
    x = tf.placeholder(tf.float32, [4, 4])
    kernel = tf.get_variable("kernel", [4, 4])
    scores = tf.nn.log_softmax(tf.matmul(x, kernel))
    target = tf.group(tf.reduce_sum(tf.matmul(scores, kernel)))
    rewritten = virtual_device.rewrite(target)
  assert rewritten.dtypes("MatMul") == {"float16": 2}
  assert rewritten.dtypes("LogSoftmax") == {"float32": 1}


class TestLists:

  @pytest.fixture
  def variable(self, monkeypatch):
    """Function that sets the list variables: none but the given."""
    def setter(**values):
      for role, kind in stack.PRECISION_LISTS.items():
        for change in ("ADD", "REMOVE"):
          monkeypatch.setenv(
              "TF_AUTO_MIXED_PRECISION_GRAPH_REWRITE_%s_%s" % (kind, change),
              values.get("%s_%s" % (role, change.lower()), ""))
    return setter

  def test_framework_alone(self, variable):
    """The stand-in kernels show what a GPU would do by default."""
    variable()
    assert tiny().dtypes("Softmax") == {
        "float32" if stack.IS_TF1 else "float16": 1}

  def test_what_the_user_lists_stays(self, variable):
    variable(allow_add="Softmax", deny_remove="Softmax",
             infer_remove="Softmax,Tanh", deny_add="Tanh")
    switch_on()
    switch_on()
    rewritten = tiny()
    assert rewritten.dtypes("Softmax") == {"float16": 1}
    assert rewritten.dtypes("Tanh") == {"float32": 1}
    assert set(rewritten.dtypes("MatMul")) == {"float16"}
    added = os.environ["TF_AUTO_MIXED_PRECISION_GRAPH_REWRITE_%s_ADD"
                       % stack.PRECISION_LISTS["deny"]]
    assert added == "Tanh,LogSoftmax"

  def test_rows_that_move_to_their_places_stay_float16(self, variable):
    variable()
    switch_on()
    forward = tiny().dtypes("ScatterNd", where="self/ScatterNd")
    assert forward == {"float16": 3}  # of query, key and value

  def test_an_operation_on_two_lists_stops_the_pass(self, variable):
    """Why `_complete_lists` takes such care."""
    variable(deny_add="MatMul")
    rewritten = tiny()
    assert set(rewritten.dtypes("MatMul")) == {"float32"}
    assert not rewritten.casts


@pytest.mark.skipif(stack.IS_TF1, reason="tf2 stack only")
@pytest.mark.parametrize("fused_ops, kinds", [
    (False, "bfloat16 bfloat16 float32 float32"),
    (True, "bfloat16  float32 float32")])
def test_bfloat16_on_a_cpu_that_has_it(fused_ops, kinds):
  """In a process whose oneDNN is on, as it is by default on such a CPU.

  The kernels are float32 and have taken the place of attention's products.
  """
  code = ("import test_mixed_precision_coverage as t; t.report_bfloat16(%s)"
          % fused_ops)
  environment = dict(os.environ, TF_ENABLE_ONEDNN_OPTS="1",
                     PYTHONPATH=os.pathsep.join(sys.path))
  out = subprocess.check_output([sys.executable, "-c", code],
                                env=environment)
  assert out.decode().splitlines()[-1] == kinds


def report_bfloat16(fused_ops):
  """Prints the dtypes of products, softmax or norms and losses under bf16."""
  config = tf.ConfigProto()
  precision.apply(precision.Precision("bf16", "bf16", False, None, False),
                  config)
  with tf.Graph().as_default():
    step = precision_models.build_step(
        "pretraining", modeling.BertConfig(**precision_models.TINY),
        fused_ops=fused_ops)
    rewritten = virtual_device.rewrite(
        step.train_op, virtual_device.CPU,
        "auto_mixed_precision_onednn_bfloat16")
  print(*[",".join(sorted(rewritten.dtypes(*types))) for types in (
      ("MatMul",), ("BatchMatMulV2",), ("Softmax", "Rsqrt"), LOSSES)])
