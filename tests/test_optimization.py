"""Schedule, AdamW, clipping, guard and order of an update, by oracle."""

import inspect

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

import bert_oracle
import modeling
import optimization
from utils import stack
from utils.errors import UserError

stack.configure()


# Schedule -------------------------------------------------------------------


def schedule(step, init_lr, total, warmup, power):
  if step < warmup:
    return init_lr * step / warmup
  return init_lr * (max(total - step, 0) / (total - warmup)) ** power


def rates(steps, *args, **kwargs):
  with tf.Graph().as_default(), tf.Session() as session:
    step = tf.placeholder(tf.int64, [])
    rate = optimization.learning_rate(step, *args, **kwargs)
    assert rate.dtype == tf.float32 and rate.shape.as_list() == []
    return [session.run(rate, {step: value}) for value in steps]


@pytest.mark.parametrize("total, warmup, power", [
    (100, 10, 1.0), (100, 0, 1.0), (100, 99, 1.0), (1, 0, 1.0),
    (7038, 2000, 0.5), (30000001, 10, 1.0)])
def test_schedule_equals_the_formula(total, warmup, power):
  steps = sorted({0, 1, max(warmup - 1, 0), warmup, warmup + 1, total // 2,
                  total - 1, total, total + 5})
  expected = [schedule(step, 3e-4, total, warmup, power) for step in steps]
  np.testing.assert_allclose(rates(steps, 3e-4, total, warmup, power),
                             expected, rtol=2e-6, atol=0)


def test_schedule_has_its_top_at_the_end_of_warmup_and_no_jump():
  values = np.array(rates(range(51), 1.0, 50, 20))
  assert values[0] == 0 and values[20] == 1 and values[50] == 0
  assert np.argmax(values) == 20
  # Neither slope is steeper than its own length says: 1 / 20 and 1 / 30.
  assert np.abs(np.diff(values)).max() < 1 / 20 + 1e-6


@pytest.mark.parametrize("total, warmup, words", [
    (10, 10, "num_warmup_steps is 10"), (10, 11, "num_warmup_steps is 11"),
    (10, -1, "num_warmup_steps is -1"), (0, 0, "num_train_steps is 0")])
def test_impossible_schedule_is_one_line(total, warmup, words):
  with tf.Graph().as_default(), pytest.raises(UserError, match=words):
    optimization.learning_rate(0, 1e-4, total, warmup)


# AdamW ----------------------------------------------------------------------


# What float32 holds for 0.9 and 0.999; the computation is in float64.
BETA_1, BETA_2 = float(np.float32(0.9)), float(np.float32(0.999))


class AdamOracle(object):
  """Adam without bias correction, decay apart from the moments; float64."""

  def __init__(self, weights, decay):
    self.weight = np.array(weights, np.float64)
    self.m = np.zeros_like(self.weight)
    self.v = np.zeros_like(self.weight)
    self._decay = decay

  def step(self, grad, rate):
    self.m = BETA_1 * self.m + (1 - BETA_1) * grad
    self.v = BETA_2 * self.v + (1 - BETA_2) * grad ** 2
    update = self.m / (np.sqrt(self.v) + 1e-6) + self._decay * self.weight
    self.weight = self.weight - rate * update


@pytest.mark.parametrize("resource", [True, False])
def test_adam_equals_numpy(resource):
  """At steps 1, 2 and 1000; with and without decay; both kinds of variable."""
  random = np.random.RandomState(0)
  names = ["a/kernel", "a/bias", "a/LayerNorm/gamma", "a/layer_norm/beta"]
  start = {name: random.normal(size=[3, 4]) for name in names}
  oracles = {name: AdamOracle(start[name].astype(np.float32),
                              0.01 if name == "a/kernel" else 0.0)
             for name in names}
  with tf.Graph().as_default(), tf.Session() as session:
    variables = [tf.get_variable(
        name, use_resource=resource, initializer=tf.constant(
            start[name], tf.float32)) for name in names]
    grad = tf.placeholder(tf.float32, [3, 4])
    optimizer = optimization.AdamWeightDecayOptimizer(
        1e-3, weight_decay_rate=0.01,
        exclude_from_weight_decay=["LayerNorm", "layer_norm", "bias"])
    train_op = optimizer.apply_gradients([(grad, var) for var in variables])
    session.run(tf.global_variables_initializer())
    slots = {var.op.name: var for var in tf.global_variables()}
    for step in range(1, 1001):
      # Sparse and of very different sizes, as a word table's is.
      value = random.normal(size=[3, 4]) * 10.0 ** random.randint(-6, 2, [3, 4])
      value *= random.randint(0, 2, [3, 4])
      session.run(train_op, {grad: value})
      for name in names:
        oracles[name].step(value.astype(np.float32), 1e-3)
      if step not in (1, 2, 1000):
        continue
      for name in names:
        for found, expected in (
            (name, oracles[name].weight), (name + "/adam_m", oracles[name].m),
            (name + "/adam_v", oracles[name].v)):
          assert bert_oracle.relative_error(
              session.run(slots[found]), expected) < 3e-6, (step, found)


def test_slots_have_the_published_names():
  with tf.Graph().as_default():
    var = tf.get_variable("bert/x/kernel", [2, 3])
    optimization.AdamWeightDecayOptimizer(0.1).apply_gradients(
        [(tf.ones([2, 3]), var), (None, tf.get_variable("unused", [1]))])
    found = {v.op.name: v.shape.as_list() for v in tf.global_variables()}
    assert found == {"bert/x/kernel": [2, 3], "unused": [1],
                     "bert/x/kernel/adam_m": [2, 3],
                     "bert/x/kernel/adam_v": [2, 3]}
    assert len(tf.trainable_variables()) == 2


def test_rows_of_a_table_that_repeat_are_added_up():
  with tf.Graph().as_default(), tf.Session() as session:
    grad = tf.IndexedSlices(tf.constant([[1.0], [2.0], [4.0]]),
                            tf.constant([2, 0, 2]), tf.constant([3, 1]))
    dense = session.run(optimization.dense_gradient(grad))
  np.testing.assert_array_equal(dense, [[2], [0], [5]])


@pytest.mark.parametrize("function", ["create_optimizer",
                                      "AdamWeightDecayOptimizer"])
def test_signatures_are_googles(function):
  from bert import optimization as google  # pylint: disable=import-outside-toplevel

  def names(module):
    target = getattr(module, function)
    if inspect.isclass(target):
      target = target.__init__
    parameters = inspect.signature(target).parameters.values()
    return [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]

  assert names(optimization) == names(google)


def test_googles_own_unit_test_passes(monkeypatch):
  from bert import optimization_test  # pylint: disable=import-outside-toplevel
  monkeypatch.setattr(optimization_test, "optimization", optimization)
  bert_oracle.run_googles_tests(optimization_test.OptimizationTest, 1)


@pytest.mark.parametrize("warmup", [None, 0])
def test_no_warmup(warmup):
  """Google's create_optimizer takes None for it."""
  with tf.Graph().as_default(), tf.Session() as session:
    weight = tf.get_variable("w", [], initializer=tf.zeros_initializer())
    train_op = optimization.create_optimizer(
        weight * 2.0, 0.5, 10, warmup, False)
    session.run(tf.global_variables_initializer())
    session.run(train_op)
    # Clipped to 1, so m = 0.1 and sqrt(v) = 0.001 ** 0.5; the whole rate.
    assert session.run(weight) == pytest.approx(
        -0.5 * 0.1 / (0.001 ** 0.5 + 1e-6), rel=1e-4)
  assert rates([0, 5], 0.5, 10, warmup) == [0.5, 0.25]


def test_no_tpu():
  with tf.Graph().as_default(), pytest.raises(ValueError, match="TPU"):
    optimization.create_optimizer(tf.constant(1.0), 1e-4, 10, 0, use_tpu=True)


def _train(session, module, total, warmup, steps):
  """Returns all variables after `steps` updates of a small model."""
  tf.set_random_seed(1)
  x = tf.constant(np.random.RandomState(0).normal(size=[6, 5]), tf.float32)
  kernel = tf.get_variable("kernel", [5, 4])
  bias = tf.get_variable("bias", [4])
  table = tf.get_variable("table", [7, 4])
  # No row twice: Google's code would clip by another norm.
  rows = tf.nn.embedding_lookup(table, [1, 2, 3, 6, 0, 5])
  loss = tf.reduce_sum(tf.square(tf.matmul(x, kernel) + bias + rows - 3))
  rate = tf.placeholder_with_default(0.0, [])
  if module is optimization:
    train_op = module.create_optimizer(loss, 1e-3, total, warmup, False)
  else:
    # As Google's create_optimizer does it, but that one reads its step beside
    # the increment, so that its rate is off by a step in some runs: here the
    # rate comes from outside.
    optimizer = module.AdamWeightDecayOptimizer(
        rate, weight_decay_rate=0.01,
        exclude_from_weight_decay=["LayerNorm", "layer_norm", "bias"])
    tvars = tf.trainable_variables()
    grads, _ = tf.clip_by_global_norm(tf.gradients(loss, tvars), 1.0)
    train_op = optimizer.apply_gradients(zip(grads, tvars))
  session.run(tf.global_variables_initializer())
  for step in range(steps):
    googles = step / warmup if step < warmup else 1 - step / total
    session.run(train_op, {rate: 1e-3 * googles})
  return session.run({v.op.name: v for v in tf.global_variables()})


@pytest.mark.parametrize("total, warmup, steps", [
    (20, 0, 20),  # Only the fall.
    (20, 19, 19)])  # Only the rise: Google's fall starts elsewhere.
def test_google_optimizer_does_the_same(total, warmup, steps):
  from bert import optimization as google  # pylint: disable=import-outside-toplevel
  results = []
  for module in (google, optimization):
    with tf.Graph().as_default(), tf.Session() as session:
      results.append(_train(session, module, total, warmup, steps))
  theirs, ours = results
  assert set(ours) == set(theirs) | {"global_step"}
  assert ours["global_step"] == steps
  for name, value in theirs.items():
    # Google's 1 - beta_2 is 0.001, the kernel's is what float32 leaves of it.
    limit = 2e-5 if name.endswith("adam_v") else 3e-6
    assert bert_oracle.relative_error(ours[name], value) < limit, name


@pytest.mark.parametrize("rate", [1e-3, 1e-6])
def test_small_decay_is_not_rounded_away(rate):
  """The weights of float32 follow the float64 oracle, step by small step."""
  with tf.Graph().as_default(), tf.Session() as session:
    start = np.linspace(0.5, 2.0, 64).astype(np.float32)
    var = tf.get_variable("kernel", initializer=tf.constant(start))
    optimizer = optimization.AdamWeightDecayOptimizer(
        rate, weight_decay_rate=0.01)
    grad = tf.placeholder(tf.float32, [64])
    train_op = optimizer.apply_gradients([(grad, var)])
    session.run(tf.global_variables_initializer())
    oracle = AdamOracle(start, 0.01)
    random = np.random.RandomState(0)
    decayed = start.astype(np.float64)
    for _ in range(1000):
      value = random.normal(size=64).astype(np.float32)
      session.run(train_op, {grad: value})
      oracle.step(value, rate)
      decayed -= rate * 0.01 * decayed
    # Of what decay alone has moved, on average over the weights.
    error = (session.run(var) - oracle.weight).mean()
    assert abs(error) < 0.1 * (start - decayed).mean()


# An update ------------------------------------------------------------------


class Model(object):
  """loss = sum(w * x) + bad, so that the gradient of w is x."""

  def __init__(self, session, **more):
    self.session = session
    self.x = tf.placeholder(tf.float32, [2])
    self.bad = tf.placeholder_with_default(0.0, [])
    self.step = tf.train.get_or_create_global_step()
    self.records = tf.get_variable("records_consumed", [], tf.int64,
                                   tf.zeros_initializer(), trainable=False)
    self.w = tf.get_variable("w", initializer=tf.constant([1.0, 2.0]))
    # Finite at w = bad, but its gradient is not: 1 / (2 sqrt(0)).
    self.root = tf.placeholder_with_default(0.0, [])
    loss = tf.reduce_sum(self.w * self.x) + self.bad
    loss += tf.cond(self.root > 0, lambda: tf.sqrt(self.w[0] - self.root),
                    lambda: 0.0)
    self.loss = loss
    self.update = optimization.build_update(
        loss, 0.1, 1000, 10, records=(self.records, 4), **more)
    session.run(tf.global_variables_initializer())

  def run(self, x, **feeds):
    feed = {getattr(self, name): value for name, value in feeds.items()}
    feed[self.x] = x
    return self.session.run([self.update.train_op, self.update.learning_rate,
                             self.update.grad_norm, self.update.is_finite],
                            feed)[1:]

  def state(self):
    """Returns all variables but the counter of records."""
    return self.session.run({v.op.name: v for v in tf.global_variables()
                             if v is not self.records})


@pytest.mark.parametrize("grad", [[3.0, 4.0], [0.3, 0.4], [0.0, 0.0],
                                  [3e15, 4e15]])
def test_clipping_equals_the_formula(grad):
  with tf.Graph().as_default(), tf.Session() as session:
    model = Model(session)
    _, norm, finite = model.run(grad)
    expected = np.linalg.norm(grad)
    assert finite and norm == pytest.approx(expected, rel=1e-6)
    np.testing.assert_allclose(
        model.state()["w/adam_m"],
        0.1 * np.array(grad) / max(1.0, expected), rtol=1e-6)


def test_clip_norm_is_an_argument():
  with tf.Graph().as_default(), tf.Session() as session:
    model = Model(session, clip_norm=2.0)
    model.run([3.0, 4.0])
    np.testing.assert_allclose(model.state()["w/adam_m"], [0.12, 0.16],
                               rtol=1e-6)


def test_step_and_rate_go_together():
  with tf.Graph().as_default(), tf.Session() as session:
    model = Model(session)
    oracle = AdamOracle([1.0, 2.0], 0.01)
    for step in range(60):
      rate, _, _ = model.run([0.5, -0.5])
      assert rate == pytest.approx(schedule(step, 0.1, 1000, 10, 1), rel=1e-6)
      oracle.step(np.array([0.5, -0.5]), schedule(step, 0.1, 1000, 10, 1))
      state = model.state()
      assert state["global_step"] == step + 1
      np.testing.assert_allclose(state["w"], oracle.weight, rtol=1e-5)
    assert session.run(model.records) == 60 * 4


@pytest.mark.parametrize("x, feeds", [
    ([1.0, 1.0], dict(bad=np.nan)), ([1.0, 1.0], dict(bad=np.inf)),
    ([np.inf, 1.0], {}), ([1.0, np.nan], {}),
    ([3e38, 3e38], {}), ([1.0, 1.0], dict(root=1.0))])
def test_a_bad_update_changes_nothing_but_the_records(x, feeds):
  with tf.Graph().as_default(), tf.Session() as session:
    model = Model(session)
    before = model.state()
    _, norm, finite = model.run(x, **feeds)
    assert not finite
    assert "bad" in feeds or not np.isfinite(norm)
    after = model.state()
    assert after["global_step"] == 0
    for name, value in before.items():
      np.testing.assert_array_equal(after[name], value)
    assert session.run(model.records) == 4
    # The next good one is the first.
    rate, _, finite = model.run([1.0, 1.0])
    assert finite and rate == 0.0
    assert model.state()["global_step"] == 1
    assert session.run(model.records) == 8


def test_gradient_may_be_bad_where_the_loss_is_not():
  with tf.Graph().as_default(), tf.Session() as session:
    model = Model(session)
    feed = {model.x: [1.0, 1.0], model.root: 1.0}
    assert np.isfinite(session.run(model.loss, feed))
    assert not np.isfinite(session.run(model.update.grad_norm, feed))


def test_loss_without_variables_is_an_error():
  with tf.Graph().as_default():
    tf.get_variable("w", [1])
    with pytest.raises(ValueError, match="no trainable variable"):
      optimization.build_update(tf.constant(1.0), 0.1, 10, 0)


def test_twenty_steps_twice_are_the_same_bits():
  """A model with dropout and a tied word table, two threads of each kind."""
  settings = tf.ConfigProto(intra_op_parallelism_threads=2,
                            inter_op_parallelism_threads=2)
  config = modeling.BertConfig(
      vocab_size=300, hidden_size=32, num_hidden_layers=2,
      num_attention_heads=2, intermediate_size=64, type_vocab_size=2)
  inputs = bert_oracle.random_inputs(config, 8, 32)
  with tf.Graph().as_default(), tf.Session(config=settings) as session:
    step = tf.train.get_or_create_global_step()
    model = modeling.BertModel(
        config, True, *[tf.constant(x) for x in inputs],
        options=modeling.ModelOptions(modeling.DropoutKey(1, step)))
    logits = tf.matmul(
        modeling.reshape_to_matrix(model.get_sequence_output()),
        model.get_embedding_table(), transpose_b=True)
    loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(
        labels=tf.reshape(tf.constant(inputs[0]), [-1]), logits=logits))
    update = optimization.build_update(loss, 1e-3, 100, 5)
    initialize = tf.global_variables_initializer()
    weights = bert_oracle.random_weights(tf.trainable_variables())
    runs = []
    for _ in range(2):
      session.run(initialize)
      bert_oracle.assign(session, weights)
      losses = [session.run([loss, update.train_op])[0] for _ in range(20)]
      runs.append((losses, session.run(tf.global_variables())))
  (losses, ends), (losses_again, ends_again) = runs
  assert losses == losses_again and losses[-1] < losses[0]
  for one, other in zip(ends, ends_again):
    assert one.tobytes() == other.tobytes()
