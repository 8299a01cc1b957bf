"""LAMB by oracle; micro-batches, the loss scale and the sum over ranks."""

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

import bert_oracle
import optimization
from test_optimization import AdamOracle
from test_optimization import BETA_1
from test_optimization import BETA_2
from utils import stack

stack.configure()


# LAMB -----------------------------------------------------------------------


class LambOracle(object):
  """Algorithm 2 of 1904.00962 in float64; the ratio is 1 if not adapted."""

  def __init__(self, weights, decay, adapted):
    self.weight = np.array(weights, np.float64)
    self.m = np.zeros_like(self.weight)
    self.v = np.zeros_like(self.weight)
    self._decay, self._adapted, self._count = decay, adapted, 0

  def step(self, grad, rate):
    self._count += 1
    self.m = BETA_1 * self.m + (1 - BETA_1) * grad
    self.v = BETA_2 * self.v + (1 - BETA_2) * grad ** 2
    m = self.m / (1 - BETA_1 ** self._count)
    v = self.v / (1 - BETA_2 ** self._count)
    update = m / (np.sqrt(v) + 1e-6) + self._decay * self.weight
    norms = np.linalg.norm(self.weight), np.linalg.norm(update)
    ratio = norms[0] / norms[1] if self._adapted and all(norms) else 1.0
    self.weight = self.weight - rate * ratio * update


@pytest.mark.parametrize("resource", [True, False])
def test_lamb_equals_numpy(resource):
  """At steps 1, 2 and 1000: kernels, what is excluded, a kernel of zeros."""
  random = np.random.RandomState(0)
  start = {"a/kernel": random.normal(size=[3, 4]),
           "a/zero/kernel": np.zeros([3, 4]),
           "a/bias": random.normal(size=[3, 4]),
           "a/LayerNorm/gamma": random.normal(size=[3, 4])}
  oracles = {name: LambOracle(value.astype(np.float32), 0.01 * kernel, kernel)
             for name, value in start.items()
             for kernel in [name.endswith("kernel")]}
  with tf.Graph().as_default(), tf.Session() as session:
    variables = [tf.get_variable(
        name, use_resource=resource, initializer=tf.constant(
            value, tf.float32)) for name, value in sorted(start.items())]
    grad = tf.placeholder(tf.float32, [3, 4])
    step = tf.placeholder(tf.int64, [])
    train_op = optimization.make_optimizer(
        "lamb", tf.constant(1e-3), step).apply_gradients(
            [(grad, var) for var in variables])
    session.run(tf.global_variables_initializer())
    found = {var.op.name: var for var in tf.global_variables()}
    for count in range(1, 1001):
      value = random.normal(size=[3, 4]) * 10.0 ** random.randint(-6, 2, [3, 4])
      session.run(train_op, {grad: value, step: count - 1})
      for name, oracle in oracles.items():
        oracle.step(value.astype(np.float32), 1e-3)
        if count in (1, 2, 1000):
          assert bert_oracle.relative_error(
              session.run(found[name]), oracle.weight) < 1e-5, (count, name)
          assert bert_oracle.relative_error(
              session.run(found[name + "/adam_v"]), oracle.v) < 3e-6


def test_first_step_of_lamb_by_hand():
  """|w| = 5; u = sign(g), since m' = g and sqrt(v') = |g|; |u| = sqrt(2)."""
  with tf.Graph().as_default(), tf.Session() as session:
    var = tf.get_variable("w", initializer=tf.constant([3.0, 4.0]))
    train_op = optimization.LAMBOptimizer(0.1, 0).apply_gradients(
        [(tf.constant([2.0, -7.0]), var)])
    session.run(tf.global_variables_initializer())
    session.run(train_op)
    move = 0.1 * 5 / np.sqrt(2)
    np.testing.assert_allclose(session.run(var), [3 - move, 4 + move],
                               rtol=1e-5)


@pytest.mark.parametrize("weights, gradient", [
    ([0.0, 0.0], [1.0, 1.0]), ([1.0, 2.0], [0.0, 0.0])])
def test_lamb_without_a_norm_is_finite(weights, gradient):
  with tf.Graph().as_default(), tf.Session() as session:
    var = tf.get_variable("w", initializer=tf.constant(weights))
    train_op = optimization.LAMBOptimizer(0.1, 0).apply_gradients(
        [(tf.constant(gradient), var)])
    session.run(tf.global_variables_initializer())
    session.run(train_op)
    np.testing.assert_allclose(
        session.run(var), np.array(weights) - 0.1 * np.array(gradient),
        rtol=1e-4)


@pytest.mark.parametrize("optimizer_type, power", [("adam", 1), ("lamb", 0.5)])
def test_each_optimizer_has_its_own_fall(optimizer_type, power):
  with tf.Graph().as_default(), tf.Session() as session:
    step = tf.train.get_or_create_global_step()
    weight = tf.get_variable("w", initializer=tf.constant([1.0]))
    update = optimization.build_update(
        tf.reduce_sum(weight), 0.3, 100, 20, optimizer_type=optimizer_type)
    session.run(tf.global_variables_initializer())
    session.run(step.assign(60))
    assert session.run(update.learning_rate) == pytest.approx(
        0.3 * 0.5 ** power)


# Micro-batches --------------------------------------------------------------


ROWS = np.random.RandomState(3).normal(size=[12, 5]).astype(np.float32)


def loss_of_rows(k, micro_rows=None):
  """A loss with dense, gathered and unused variables, for `k` micro-batches."""
  rows = tf.reshape(tf.constant(ROWS), [k, 12 // k, 5])
  numbers = tf.reshape(tf.range(12), [k, 12 // k])

  def loss_of(number):
    x = rows[number]
    if micro_rows is not None:
      micro_rows.append(x)
    kernel = tf.get_variable("kernel", [5, 4], initializer=(
        tf.truncated_normal_initializer(seed=1)))
    tf.get_variable("unused", [3], initializer=tf.zeros_initializer())
    table = tf.get_variable("table", [4, 4], initializer=(
        tf.truncated_normal_initializer(seed=2)))
    looked_up = tf.nn.embedding_lookup(table, numbers[number] % 3)
    value = tf.reduce_sum(tf.square(tf.matmul(x, kernel) + looked_up)) / 12.0
    return value, {"rows": tf.cast(tf.shape(x)[0], tf.float32)}
  return loss_of


def window_of(k, scale=None):
  """Returns the window's (names of variables, values of its sums)."""
  with tf.Graph().as_default(), tf.Session() as session:
    variables, window = optimization.window_gradients(
        loss_of_rows(k), k, scale)
    session.run(tf.global_variables_initializer())
    return [v.op.name for v in variables], session.run(window._asdict())


@pytest.mark.parametrize("k", [2, 3, 12])
def test_a_window_is_one_batch(k):
  names, whole = window_of(1)
  assert names == ["kernel", "table"]
  found_names, found = window_of(k)
  assert found_names == names
  assert found["sums"] == {"rows": 12.0}
  assert found["loss"] == pytest.approx(whole["loss"], rel=1e-6)
  for one, other in zip(found["grads"], whole["grads"]):
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
  # The row of the table that nobody looks up.
  assert not found["grads"][1][3].any() and found["grads"][1][2].any()


def test_the_graph_does_not_grow_with_the_window():
  sizes = []
  for k in (2, 4, 12):
    with tf.Graph().as_default() as graph:
      optimization.window_gradients(loss_of_rows(k), k)
      sizes.append(len(graph.get_operations()))
  assert len(set(sizes)) == 1


def test_the_window_is_clipped_once():
  """Two gradients of norm 5 and 0.5 are clipped as their sum, by hand."""
  x = np.array([[[3.0, 4.0]], [[0.3, 0.4]]], np.float32)
  with tf.Graph().as_default(), tf.Session() as session:
    def loss_of(number):
      w = tf.get_variable("w", initializer=tf.constant([1.0, 1.0]))
      return tf.reduce_sum(w * tf.constant(x)[number]), {}
    update = optimization.build_update(
        loss_of, 0.1, 10, 0, num_accumulation_steps=2)
    session.run(tf.global_variables_initializer())
    norm, _ = session.run([update.grad_norm, update.train_op])
    slots = {v.op.name: session.run(v) for v in tf.global_variables()}
  assert norm == pytest.approx(5.5)
  np.testing.assert_allclose(slots["w/adam_m"], [0.06, 0.08], rtol=1e-6)
  assert slots["global_step"] == 1


def test_the_last_micro_batch_waits_for_the_others():
  """Their activations are never in memory at the same time."""
  with tf.Graph().as_default():
    micro_rows = []
    optimization.window_gradients(loss_of_rows(3, micro_rows), 3)
    last = micro_rows[0].op  # Built first.
    waits_for = set()
    queue = [last]
    while queue:
      op = queue.pop()
      for source in list(op.control_inputs) + [t.op for t in op.inputs]:
        if source not in waits_for:
          waits_for.add(source)
          queue.append(source)
    assert "Exit" in {op.type for op in waits_for}


# Loss scale -----------------------------------------------------------------


class Scaled(object):
  """loss = sum(w * x), whose gradient is x times `factor`."""

  def __init__(self, session, **more):
    self.session = session
    self.x = tf.placeholder(tf.float32, [2])
    w = tf.get_variable("w", initializer=tf.constant([1.0, 2.0]))
    self.update = optimization.build_update(
        tf.reduce_sum(w * self.x), 0.1, 1000, 0, **more)
    session.run(tf.global_variables_initializer())

  def run(self, x):
    self.session.run(self.update.train_op, {self.x: x})
    return self.session.run({v.op.name: v for v in tf.global_variables()})


def test_scaled_updates_are_the_same_bits():
  states = []
  for scaled in (False, True):
    with tf.Graph().as_default(), tf.Session() as session:
      model = Scaled(session, loss_scale=scaled)
      for x in ([3.0, 4.0], [0.1, -0.7], [1e-9, 3e-3]):
        state = model.run(x)
      states.append(state)
  plain, scaled = states
  assert set(scaled) - set(plain) == {"current_loss_scale", "good_steps"}
  for name, value in plain.items():
    assert np.array_equal(value, scaled[name]), name


def test_scale_halves_at_an_overflow_and_grows_after_good_steps(monkeypatch):
  monkeypatch.setattr(optimization.LossScale.__init__, "__defaults__",
                      (2.0 ** 15, 3))
  with tf.Graph().as_default(), tf.Session() as session:
    model = Scaled(session, loss_scale=True)
    good, bad = [1.0, 1.0], [3e38, 1.0]
    seen = []
    for x in (good, good, bad, good, good, good, good):
      state = model.run(x)
      seen.append((state["global_step"], state["current_loss_scale"],
                   state["good_steps"]))
    assert seen == [(1, 2 ** 15, 1), (2, 2 ** 15, 2), (2, 2 ** 14, 0),
                    (3, 2 ** 14, 1), (4, 2 ** 14, 2), (5, 2 ** 15, 0),
                    (6, 2 ** 15, 1)]


def test_scale_stays_at_one_and_finite():
  with tf.Graph().as_default(), tf.Session() as session:
    model = Scaled(session, loss_scale=True)
    scale = [v for v in tf.global_variables()
             if v.op.name == "current_loss_scale"][0]
    session.run(scale.assign(1.0))
    assert model.run([np.inf, 1.0])["current_loss_scale"] == 1.0
    good = [v for v in tf.global_variables() if v.op.name == "good_steps"][0]
    session.run([scale.assign(2.0 ** 127), good.assign(1999)])
    state = model.run([0.0, 0.0])
    assert state["current_loss_scale"] == 2.0 ** 127
    assert state["good_steps"] == 0


def test_scaled_gradients_keep_what_float16_would_lose():
  """Through a float16 cast, as mixed precision has it: 1e-8 is 0 there."""
  with tf.Graph().as_default(), tf.Session() as session:
    w = tf.get_variable("w", initializer=tf.constant([1.0]))
    half = tf.cast(w, tf.float16)
    loss = tf.reduce_sum(tf.cast(half, tf.float32)) * 1e-8
    update = optimization.build_update(loss, 0.1, 10, 0, loss_scale=True)
    unscaled = tf.gradients(loss, w)[0]
    session.run(tf.global_variables_initializer())
    norm, lost = session.run([update.grad_norm, unscaled])
  assert lost == 0.0
  assert norm == pytest.approx(1e-8, rel=1e-3)


# The sum over ranks ---------------------------------------------------------


def test_exchange_gets_the_scaled_sums_of_the_window():
  """What the ranks add up: once a window, scaled, not yet clipped."""
  seen = []

  def exchange(grads, scalars):
    seen.append((grads, scalars))
    return [grad * 2.0 for grad in grads], scalars * 2.0

  with tf.Graph().as_default(), tf.Session() as session:
    update = optimization.build_update(
        loss_of_rows(3), 0.1, 10, 0, num_accumulation_steps=3,
        loss_scale=True, exchange=exchange)
    session.run(tf.global_variables_initializer())
    grads, scalars = seen[0]
    values, sums, loss, rows, norm = session.run(
        [grads, scalars, update.loss, update.sums["rows"], update.grad_norm])
  _, whole = window_of(1)
  assert len(seen) == 1
  assert sums[1] == 12.0 and rows == 24.0
  assert loss == pytest.approx(2 * whole["loss"], rel=1e-6)
  for value, expected in zip(values, whole["grads"]):
    np.testing.assert_allclose(value, 2.0 ** 15 * expected, rtol=1e-4,
                               atol=0.1)
  assert norm == pytest.approx(2 * np.sqrt(sum(
      np.sum(np.square(g, dtype=np.float64)) for g in whole["grads"])),
                               rel=1e-5)


def test_optimizers_know_the_published_checkpoints():
  """A run can change over: both keep Adam's moments under one name."""
  for name in ("adam", "lamb"):
    with tf.Graph().as_default():
      var = tf.get_variable("bert/x/kernel", [2, 3])
      optimization.make_optimizer(
          name, tf.constant(0.1), tf.constant(0)).apply_gradients(
              [(tf.ones([2, 3]), var)])
      assert sorted(v.op.name for v in tf.global_variables()) == [
          "bert/x/kernel", "bert/x/kernel/adam_m", "bert/x/kernel/adam_v"]


def test_adam_oracle_is_not_lamb():
  """The two oracles above differ, or the tests would prove nothing."""
  adam, lamb = AdamOracle([1.0], 0.01), LambOracle([1.0], 0.01, True)
  for oracle in (adam, lamb):
    oracle.step(np.array([0.5]), 0.1)
  assert abs(adam.weight - lamb.weight) > 0.01
