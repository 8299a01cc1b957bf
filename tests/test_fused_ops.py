"""The kernels against float64, forward and backward, over odd shapes.

Outputs are compared where they are written; scratch and results come out of
memory that the allocator has filled before (`poisoned`).
"""

from concurrent import futures
import math

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

from fused_ops import library
from fused_ops import ops
from utils import stack

stack.configure()

RATE = 0.1
ZEROES = 6554 / 65536.0  # RATE in whole parts of 65536
SEED = [1234567890123456789, 77]


@pytest.fixture(autouse=True, scope="module")
def _built():
  if library.fault():
    pytest.fail("the kernels are " + library.fault())


def poisoned(session):
  """Fills memory that is about to be used again with NaN."""
  session.run([tf.reduce_sum(tf.fill([n], float("nan")))
               for n in (10, 300, 5000, 100000, 1000000)])


def run(make, *arrays):
  """Returns what `make` of placeholders gives for the arrays, float32 each."""
  with tf.Graph().as_default(), tf.Session() as session:
    inputs = [tf.placeholder(tf.as_dtype(a.dtype), a.shape) for a in arrays]
    outputs = make(*inputs)
    poisoned(session)
    return session.run(outputs, dict(zip(inputs, arrays)))


def with_gradients(make, dy, *arrays):
  """Returns [output, its gradients] of `make`, all of whose inputs count."""
  def built(*inputs):
    y = make(*inputs)
    return [y] + tf.gradients(y, list(inputs), dy)
  return run(built, *arrays)


def normal(seed, *shape):
  return np.random.RandomState(seed).normal(size=shape).astype(np.float32)


def close(found, expected, tolerance=2e-6, scale=1e-3):
  """Asserts that all is within `tolerance` of the largest expected value.

  Or of `scale`, where that is larger.
  """
  assert found.shape == expected.shape
  scale = max(np.abs(expected).max(), scale) if expected.size else scale
  np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * scale)


# Bias and GELU --------------------------------------------------------------


def gelu_and_slope(u, exact):
  if exact:
    cdf = 0.5 * (1 + np.vectorize(math.erf)(u / math.sqrt(2)))
    return u * cdf, cdf + u * np.exp(-u * u / 2) / math.sqrt(2 * math.pi)
  root = math.sqrt(2 / math.pi)
  tanh = np.tanh(root * (u + 0.044715 * u ** 3))
  return (0.5 * u * (1 + tanh),
          0.5 * (1 + tanh) + 0.5 * u * (1 - tanh ** 2) * root
          * (1 + 3 * 0.044715 * u * u))


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("rows, width", [
    (1, 1), (1, 8), (3, 7), (64, 33), (65, 4096), (200, 130)])
def test_bias_gelu(rows, width, exact):
  x, bias, dy = 4 * normal(1, rows, width), normal(2, width), normal(
      3, rows, width)
  y, dx, dbias = with_gradients(
      lambda x, bias: ops.bias_gelu(x, bias, exact), dy, x, bias)
  expected, slope = gelu_and_slope(x.astype(np.float64) + bias, exact)
  close(y, expected)
  close(dx, dy * slope)
  close(dbias, (dy * slope).sum(0))


def test_bias_gelu_far_out():
  x = np.array([[-1e30, -100, -20, 20, 100, 1e30, np.inf, np.nan]], np.float32)
  for exact in (False, True):
    y = run(lambda x, exact=exact: ops.bias_gelu(x, tf.zeros([8]), exact), x)
    np.testing.assert_allclose(y[0, 3:7], x[0, 3:7])
    assert np.abs(y[0, :3]).max() < 1e-6 and np.isnan(y[0, 7])


# Dropout, residual, layer norm ----------------------------------------------


def norm_of(z, gamma, beta):
  center = z.mean(1, keepdims=True)
  scale = 1 / np.sqrt(((z - center) ** 2).mean(1, keepdims=True) + 1e-12)
  n = (z - center) * scale
  return n * gamma + beta, n, scale


def row_mask(rows, width, rate=RATE, seed=SEED):
  """Returns the mask of `dropout_add_norm`, [rows, width]."""
  ones = np.ones([rows, width], np.float32)
  mask = library.load().bert_dropout_add_norm
  z = run(lambda x: mask(x=x, bias=tf.zeros([width]), residual=tf.zeros_like(x),
                         gamma=tf.ones([width]), beta=tf.zeros([width]),
                         seed=seed, rate=rate)[1], ones)
  return z.astype(np.float64)


@pytest.mark.parametrize("rate", [0.0, RATE])
@pytest.mark.parametrize("rows, width", [
    (1, 2), (1, 8), (3, 7), (64, 130), (65, 1024), (3, 4096), (200, 48)])
def test_dropout_add_norm(rows, width, rate):
  x, residual, dy = (normal(i, rows, width) for i in (1, 2, 3))
  bias, gamma, beta = (normal(i, width) for i in (4, 5, 6))
  y, dx, dbias, dresidual, dgamma, dbeta = with_gradients(
      lambda x, bias, residual, gamma, beta: ops.dropout_add_norm(
          x, bias, residual, gamma, beta, rate, SEED),
      dy, x, bias, residual, gamma, beta)
  mask = row_mask(rows, width, rate)
  assert set(np.unique(mask).round(6)) <= {0.0, round(1 / (1 - ZEROES), 6), 1.0}
  z = (x.astype(np.float64) + bias) * mask + residual
  expected, n, scale = norm_of(z, gamma, beta)
  g = dy.astype(np.float64) * gamma
  dz = scale * (g - g.mean(1, keepdims=True)
                - n * (g * n).mean(1, keepdims=True))
  tolerance = 2e-6 if width > 2 else 1e-3  # two values: n is 1 and -1
  close(y, expected, tolerance)
  close(dresidual, dz, tolerance)
  close(dx, dz * mask, tolerance)
  close(dbias, (dz * mask).sum(0), tolerance)
  close(dgamma, (dy * n).sum(0), tolerance)
  close(dbeta, dy.sum(0, dtype=np.float64))


# Attention ------------------------------------------------------------------


def attention_mask(starts, heads, rate=RATE, seed=SEED):
  """Returns [[mask of a head, [length, length]] of a sequence].

  With equal keys all probabilities are 1 / length, and a value that is one-hot
  shows those of one token.
  """
  masks = []
  total = starts[-1]
  for first, last in zip(starts[:-1], starts[1:]):
    length = last - first
    width = max(length, 1)
    value = np.zeros([total, heads * width], np.float32)
    for head in range(heads):
      value[first:last, head * width:head * width + length] = np.eye(length)
    zero = np.zeros_like(value)
    out = run(lambda q, k, v: ops.attention(q, k, v, starts, heads, rate, seed),
              zero, zero, value)[first:last]
    masks.append([out[:, head * width:head * width + length].astype(np.float64)
                  * length for head in range(heads)])
  return masks


@pytest.mark.parametrize("rate", [0.0, RATE])
@pytest.mark.parametrize("lengths, heads, size", [
    ([1], 1, 8), ([1, 1], 2, 3), ([5, 0, 3], 2, 4), ([16, 17, 15], 3, 64),
    ([40, 1, 7], 1, 80), ([130, 33], 2, 64), ([9, 2], 4, 1)])
def test_attention(lengths, heads, size, rate):
  starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
  width = heads * size
  query, key, value, dout = (2 * normal(i, starts[-1], width)
                             for i in (1, 2, 3, 4))
  out, dquery, dkey, dvalue = with_gradients(
      lambda q, k, v: ops.attention(q, k, v, starts, heads, rate, SEED),
      dout, query, key, value)
  masks = attention_mask(starts, heads, rate)
  expected = [np.zeros([starts[-1], width]) for _ in range(4)]
  for i, length in enumerate(lengths):
    rows = slice(starts[i], starts[i + 1])
    for head in range(heads if length else 0):
      columns = slice(head * size, (head + 1) * size)
      q, k, v, do = (a[rows, columns].astype(np.float64)
                     for a in (query, key, value, dout))
      scores = q @ k.T / math.sqrt(size)
      p = np.exp(scores - scores.max(1, keepdims=True))
      p /= p.sum(1, keepdims=True)
      mask = masks[i][head]
      o = (p * mask) @ v
      ds = p * (do @ v.T * mask - (do * o).sum(1, keepdims=True))
      for whole, part in zip(expected, (
          o, ds @ k / math.sqrt(size), ds.T @ q / math.sqrt(size),
          (p * mask).T @ do)):
        whole[rows, columns] = part
  # The gradients of scores are differences of what dout times value is.
  for found, wanted in zip((out, dquery, dkey, dvalue), expected):
    close(found, wanted, 4e-6, scale=np.abs(dout).max())


# Softmax cross-entropy ------------------------------------------------------


@pytest.mark.parametrize("rows, classes", [
    (1, 1), (1, 2), (3, 7), (70, 130), (5, 30522)])
def test_cross_entropy(rows, classes):
  logits, bias, dloss = (3 * normal(1, rows, classes), normal(2, classes),
                         normal(3, rows))
  labels = np.random.RandomState(4).randint(0, classes, rows).astype(np.int32)
  loss, dlogits, dbias = with_gradients(
      lambda logits, bias: ops.cross_entropy(logits, bias, labels),
      dloss, logits, bias)
  x = logits.astype(np.float64) + bias
  p = np.exp(x - x.max(1, keepdims=True))
  p /= p.sum(1, keepdims=True)
  picked = np.arange(rows), labels
  close(loss, -np.log(p[picked]))
  p[picked] -= 1
  largest = np.abs(dloss).max()
  close(dlogits, dloss[:, None] * p, scale=largest)
  close(dbias, (dloss[:, None] * p).sum(0), scale=largest)


# Dropout's masks ------------------------------------------------------------


def assert_is_dropout(mask, rate):
  """The rate within 5 standard errors, by rows and columns too."""
  zero = mask == 0
  for part in (zero, zero[::2], zero[:, ::2], zero[:, :16], zero[:8]):
    error = math.sqrt(rate * (1 - rate) / part.size)
    assert abs(part.mean() - rate) < 5 * error


def correlation(a, b):
  """Returns the correlation of two masks in standard errors."""
  a, b = ((m == 0) - (m == 0).mean() for m in (a, b))
  return abs((a * b).mean() / (a.std() * b.std())) * math.sqrt(a.size)


def test_masks_are_dropout_and_independent():
  mask = row_mask(400, 768)
  assert_is_dropout(mask, ZEROES)
  assert correlation(mask[1:], mask[:-1]) < 5
  assert correlation(mask[:, 1:], mask[:, :-1]) < 5
  assert correlation(mask[:, 16:], mask[:, :-16]) < 5
  for other in ([SEED[0], 78], [SEED[0] + 1, 77], [SEED[0] + (1 << 40), 77],
                [SEED[0], 77 + (1 << 20)]):
    assert correlation(mask, row_mask(400, 768, seed=other)) < 5
  np.testing.assert_array_equal(mask, row_mask(400, 768))
  # A row's mask does not depend on how many there are.
  np.testing.assert_array_equal(mask[:7], row_mask(7, 768))


def test_masks_of_attention_are_dropout_and_independent():
  starts = np.array([0, 200, 400], np.int32)
  (one, two), (three, _) = attention_mask(starts, 2)
  assert_is_dropout(one, ZEROES)
  for other in (two, three):
    assert correlation(one, other) < 5
  assert correlation(one[1:], one[:-1]) < 5
  assert correlation(one[:, 1:], one[:, :-1]) < 5


# Optimizers -----------------------------------------------------------------


@pytest.mark.parametrize("kind", ["adam", "lamb"])
def test_optimizers(kind):
  sizes = [(3, 7), (1,), (40000,), (33000, 2)]
  decay, adapt = [0.01, 0.0, 0.01, 0.0], [True, False, True, True]
  gradients = [normal(i, *size) for i, size in enumerate(sizes)]
  with tf.Graph().as_default(), tf.Session() as session:
    variables, m, v = (
        [tf.get_variable("%s%d" % (name, i), size,
                         initializer=tf.random_normal_initializer(seed=i)
                         if name != "v" else tf.constant_initializer(0.5))
         for i, size in enumerate(sizes)] for name in ("w", "m", "v"))
    settings = dict(rate=0.1, gradient_scale=0.5, decay=decay, beta_1=0.9,
                    beta_2=0.999, epsilon=1e-6)
    if kind == "lamb":
      settings.update(corrections=(0.1, 0.2), adapt=adapt)
    # What has been read before keeps its value, in the same step too.
    early = [tf.identity(w.read_value()) for w in variables]
    with tf.control_dependencies(early):
      update = getattr(ops, kind)(variables, m, v, gradients, **settings)
    session.run(tf.global_variables_initializer())
    before = session.run([variables, m, v])
    with tf.control_dependencies([update]):
      late = [tf.identity(w) for w in early]
    kept = session.run(late)
    after = session.run([variables, m, v])
  for i, gradient in enumerate(gradients):
    w, m0, v0 = (part[i].astype(np.float64) for part in before)
    g = 0.5 * gradient.astype(np.float64)
    m1, v1 = 0.9 * m0 + 0.1 * g, 0.999 * v0 + 0.001 * g * g
    if kind == "adam":
      w1 = w - 0.1 * (m1 / (np.sqrt(v1) + 1e-6) + decay[i] * w)
    else:
      u = (m1 / 0.1) / (np.sqrt(v1 / 0.2) + 1e-6) + decay[i] * w
      ratio = np.linalg.norm(w) / np.linalg.norm(u) if adapt[i] else 1.0
      w1 = w - 0.1 * ratio * u
    for found, expected in zip((part[i] for part in after), (w1, m1, v1)):
      close(found, expected, 1e-6)
    np.testing.assert_array_equal(kept[i], before[0][i])


def test_global_norm():
  tensors = [normal(1, 3, 70000), normal(2, 5), normal(3, 1, 1)]
  expected = math.sqrt(sum((t.astype(np.float64) ** 2).sum() for t in tensors))
  assert run(lambda *t: ops.global_norm(list(t)), *tensors) == pytest.approx(
      expected, rel=1e-6)
  tensors[1][3] = np.nan
  assert np.isnan(run(lambda *t: ops.global_norm(list(t)), *tensors))


# Threads --------------------------------------------------------------------


def step_of_all(copies):
  """Returns tensors of all kernels and their gradients, `copies` times."""
  starts = np.array([0, 40, 41, 150], np.int32)
  rows, width, classes = 150, 96, 50
  values = [tf.constant(normal(i, rows, width)) for i in range(3)]
  vector = tf.constant(normal(4, width))
  found = []
  for _ in range(copies):
    x = ops.attention(*values, starts=starts, heads=3, rate=RATE, seed=SEED)
    x = ops.dropout_add_norm(x, vector, values[0], vector, vector, RATE, SEED)
    x = ops.bias_gelu(x, vector, False)
    loss = ops.cross_entropy(x[:, :classes], vector[:classes],
                             np.arange(rows, dtype=np.int32) % classes)
    grads = tf.gradients(loss, values + [vector])
    found.append([x, loss, ops.global_norm(grads)] + grads)
  return found


def session_of(intra, inter):
  config = tf.ConfigProto(intra_op_parallelism_threads=intra,
                          inter_op_parallelism_threads=inter)
  # Equal copies are not to become one.
  config.graph_options.optimizer_options.opt_level = -1
  config.graph_options.rewrite_options.disable_meta_optimizer = True
  return tf.Session(config=config)


def test_many_threads_give_the_same_bits():
  """Within a step, between steps and sessions, and with other numbers."""
  with tf.Graph().as_default():
    steps = step_of_all(4)
    with session_of(1, 1) as one, session_of(3, 4) as many:
      expected = one.run(steps[0])
      with futures.ThreadPoolExecutor(6) as pool:
        done = [pool.submit(session.run, steps)
                for session in [one, many, many] * 6]
      for copies in done:
        for copy in copies.result():
          for found, wanted in zip(copy, expected):
            np.testing.assert_array_equal(found, wanted)


# What does not fit ----------------------------------------------------------


@pytest.mark.parametrize("make, words", [
    (lambda: ops.bias_gelu(tf.zeros([2, 3]), tf.zeros([4]), True), "not 3"),
    (lambda: ops.attention(*[tf.zeros([4, 6])] * 3, starts=[0, 3], heads=2,
                           rate=0.0, seed=SEED), "starts"),
    (lambda: ops.attention(*[tf.zeros([4, 6])] * 3, starts=[0, 5, 4], heads=2,
                           rate=0.0, seed=SEED), "starts"),
    (lambda: ops.cross_entropy(tf.zeros([1, 3]), tf.zeros([3]), [3]),
     "label 3 of 3")])
def test_what_does_not_fit_is_an_error_of_the_graph(make, words):
  with pytest.raises(tf.errors.InvalidArgumentError, match=words):
    run(make)
