"""What gpu_check.py checks and times of each kernel, and how.

A kernel's function here makes its arrays by `new` (`_Inputs`, `_Pattern`) and
returns (launch, outputs, expected): a function that launches it, {name:
array} and a function of {name: float64 array}, what was found, that returns
{name: float64 array}. Expected names that end in "=" have to be equal.
"""

import ctypes
import json
import zlib

import numpy as np

from fused_ops import gpu_device
from fused_ops import gpu_reference as reference

TYPES = gpu_device.TYPES
# The largest error, of the largest value: a rounding to the type and more.
LIMITS = {"float32": 4e-6, "float16": 1e-3, "bfloat16": 8e-3}
# Of sums, means and logarithms, which are float32 with all types.
_FLOAT_OUTPUTS = ("dbias", "dgamma", "dbeta", "mean", "scale", "loss",
                  "log_sum", "norm")
FLOAT_LIMIT = 1e-5
# Probabilities are rounded to the type, and gradients are differences.
ATTENTION_LIMITS = {"float32": 2e-5, "float16": 4e-3, "bfloat16": 3e-2}
_OPTIMIZERS = ("adam", "lamb", "global_norm")  # float32 alone
_ZEROES = 6554  # of 65536: a rate of 0.1


def _dropout(rng, zeroes):
  key, counter = (int(n) for n in rng.randint(0, 1 << 62, 2))
  return gpu_device.Dropout(key, counter, zeroes)


class _Inputs(object):
  """Makes a check's arrays, of random values.

  Attributes:
    rng: np.random.RandomState.
    values: {name: float64 array}, as the device has them.
  """

  def __init__(self, gpu, seed):
    self._gpu = gpu
    self.rng = np.random.RandomState(seed)
    self.values = {}

  def __call__(self, name, shape, kind, values=None, factor=1,
               is_positive=False):
    if values is None:
      values = (self.rng.uniform(0.1, 1, shape) if is_positive else
                factor * self.rng.normal(size=shape))
    self.values[name] = gpu_device.rounded(values, kind)
    return self._gpu.array(values, kind)


class _Pattern(object):
  """Makes what is timed: no values are known, and all of them are positive."""

  def __init__(self, gpu):
    self._gpu = gpu
    self.rng = np.random.RandomState(1)
    self.values = {}

  def __call__(self, name, shape, kind, values=None, **unused):
    return self._gpu.array(values, kind) if values is not None else (
        self._gpu.pattern(shape, kind))


# Kernels ---------------------------------------------------------------------


def bias_gelu(gpu, new, kind, rows, width, exact):
  """Returns (launch, outputs, expected); y [rows, width]."""
  x = new("x", [rows, width], kind, factor=3)
  bias = new("bias", [width], "float32")
  y = gpu.empty([rows, width], kind)
  def launch():
    gpu.call("bert_gpu_bias_gelu", TYPES.index(kind), x, bias, rows, width,
             exact, y, None)
  def expected(_):
    u = new.values["x"] + new.values["bias"]
    return {"y": reference.gelu_and_slope(u, exact)[0]}
  return launch, {"y": y}, expected


def bias_gelu_grad(gpu, new, kind, rows, width, exact):
  """Returns (launch, outputs, expected)."""
  dy = new("dy", [rows, width], kind)
  x = new("x", [rows, width], kind, factor=3)
  bias = new("bias", [width], "float32")
  dx, dbias = gpu.empty([rows, width], kind), gpu.empty([width], "float32")
  scratch = _scratch(gpu, rows, width, 1)
  def launch():
    gpu.call("bert_gpu_bias_gelu_grad", TYPES.index(kind), dy, x, bias, rows,
             width, exact, scratch, dx, dbias, None)
  def expected(_):
    slope = reference.gelu_and_slope(
        new.values["x"] + new.values["bias"], exact)[1]
    dx = new.values["dy"] * slope
    return {"dx": dx, "dbias": dx.sum(0)}
  return launch, {"dx": dx, "dbias": dbias}, expected


def _scratch(gpu, rows, width, vectors):
  size = gpu.ask("bert_gpu_scratch", rows, width, vectors)
  return gpu.empty([size // 4], "float32")


def dropout_add_norm(gpu, new, kind, rows, width, zeroes):
  """Returns (launch, outputs, expected)."""
  x, residual = (new(name, [rows, width], kind) for name in ("x", "residual"))
  bias, gamma, beta = (new(name, [width], "float32")
                       for name in ("bias", "gamma", "beta"))
  dropout = _dropout(new.rng, zeroes)
  y, z = (gpu.empty([rows, width], kind) for _ in range(2))
  mean, scale = (gpu.empty([rows], "float32") for _ in range(2))
  def launch():
    gpu.call("bert_gpu_dropout_add_norm", TYPES.index(kind), x, bias, residual,
             gamma, beta, dropout, rows, width, z, mean, scale, y, None)
  def expected(found):
    v = new.values
    mask = reference.row_mask(dropout.key, dropout.counter, zeroes, rows, width)
    # What follows is of z as it is stored.
    n, mean, scale = reference.norm_of(found["z"])
    return {"z": (v["x"] + v["bias"]) * mask + v["residual"], "mean": mean,
            "scale": scale, "y": n * v["gamma"] + v["beta"]}
  return launch, {"z": z, "mean": mean, "scale": scale, "y": y}, expected


def row_mask(gpu, new, kind, rows, width):
  """Returns (launch, outputs, expected): z is dropout_add_norm's mask."""
  x = new("x", [rows, width], kind, np.ones([rows, width]))
  zero = new("zero", [rows, width], kind, np.zeros([rows, width]))
  bias = new("bias", [width], "float32", np.zeros([width]))
  dropout = _dropout(new.rng, _ZEROES)
  y, z = (gpu.empty([rows, width], kind) for _ in range(2))
  mean, scale = (gpu.empty([rows], "float32") for _ in range(2))
  def launch():
    gpu.call("bert_gpu_dropout_add_norm", TYPES.index(kind), x, bias, zero,
             bias, bias, dropout, rows, width, z, mean, scale, y, None)
  def expected(_):
    mask = reference.row_mask(dropout.key, dropout.counter, _ZEROES, rows,
                              width)
    return {"z=": gpu_device.rounded(mask, kind)}
  return launch, {"z": z}, expected


def dropout_add_norm_grad(gpu, new, kind, rows, width, zeroes):
  """Returns (launch, outputs, expected)."""
  dy, z = (new(name, [rows, width], kind) for name in ("dy", "z"))
  gamma = new("gamma", [width], "float32")
  _, mean, scale = reference.norm_of(new.values["z"]) if new.values else (
      None, np.zeros(rows), np.ones(rows))
  mean, scale = (new(name, [rows], "float32", values)
                 for name, values in (("mean", mean), ("scale", scale)))
  dropout = _dropout(new.rng, zeroes)
  dx, dz = (gpu.empty([rows, width], kind) for _ in range(2))
  sums = [gpu.empty([width], "float32") for _ in range(3)]
  scratch = _scratch(gpu, rows, width, 3)
  names = ("dx", "dz", "dbias", "dgamma", "dbeta")
  def launch():
    gpu.call("bert_gpu_dropout_add_norm_grad", TYPES.index(kind), dy, z, mean,
             scale, gamma, dropout, rows, width, scratch, dx, dz, *sums, None)
  def expected(_):
    v = new.values
    mask = reference.row_mask(dropout.key, dropout.counter, zeroes, rows, width)
    return dict(zip(names, reference.norm_grad(v["dy"], v["z"], v["gamma"],
                                               mask)))
  return launch, dict(zip(names, [dx, dz] + sums)), expected


def cross_entropy(gpu, new, kind, rows, classes):
  """Returns (launch, outputs, expected)."""
  logits, bias, labels, _ = _logits(new, kind, rows, classes)
  loss, log_sum = (gpu.empty([rows], "float32") for _ in range(2))
  def launch():
    gpu.call("bert_gpu_cross_entropy", TYPES.index(kind), logits, bias, labels,
             rows, classes, loss, log_sum, None)
  def expected(_):
    found = _cross_entropy_of(new)
    return {"loss": found[0], "log_sum": found[1]}
  return launch, {"loss": loss, "log_sum": log_sum}, expected


def cross_entropy_grad(gpu, new, kind, rows, classes):
  """Returns (launch, outputs, expected)."""
  logits, bias, labels, dloss = _logits(new, kind, rows, classes)
  log_sum = new("log_sum", [rows], "float32", _cross_entropy_of(new)[1]
                if new.values else np.full([rows], 12.0))
  dlogits = gpu.empty([rows, classes], kind)
  dbias = gpu.empty([classes], "float32")
  scratch = _scratch(gpu, rows, classes, 1)
  def launch():
    gpu.call("bert_gpu_cross_entropy_grad", TYPES.index(kind), dloss, logits,
             bias, labels, log_sum, rows, classes, scratch, dlogits, dbias,
             None)
  def expected(_):
    found = _cross_entropy_of(new)
    return {"dlogits": found[2], "dbias": found[3]}
  return launch, {"dlogits": dlogits, "dbias": dbias}, expected


def _logits(new, kind, rows, classes):
  labels = new.rng.randint(0, classes, rows)
  return (new("logits", [rows, classes], kind, factor=3),
          new("bias", [classes], "float32"),
          new("labels", [rows], "int32", labels),
          new("dloss", [rows], "float32"))


def _cross_entropy_of(new):
  v = new.values
  return reference.cross_entropy(v["logits"] + v["bias"],
                                 v["labels"].astype(np.int64), v["dloss"])


def _starts(new, lengths):
  starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
  return starts, new("starts", [len(starts)], "int32", starts)


def attention(gpu, new, kind, lengths, heads, size, zeroes):
  """Returns (launch, outputs, expected)."""
  starts, on_device = _starts(new, lengths)
  tokens = int(starts[-1])
  query, key, value = (new(name, [tokens, heads * size], kind)
                       for name in ("query", "key", "value"))
  dropout = _dropout(new.rng, zeroes)
  out = gpu.empty([tokens, heads * size], kind)
  log_sum = gpu.empty([heads, tokens], "float32")
  def launch():
    gpu.call("bert_gpu_attention", TYPES.index(kind), query, key, value,
             on_device, dropout, len(lengths), tokens, heads, size, out,
             log_sum, None)
  def expected(_):
    v = new.values
    found = reference.attention(v["query"], v["key"], v["value"], v["query"],
                                starts, heads, _masks(dropout))
    return {"out": found[0], "log_sum": found[1]}
  return launch, {"out": out, "log_sum": log_sum}, expected


def _masks(dropout):
  return lambda first, length, head: reference.attention_mask(
      dropout.key, dropout.counter, dropout.zeroes, first, length, head)


def attention_mask(gpu, new, kind, lengths, heads):
  """Returns (launch, outputs, expected): which probabilities are zero.

  With no scores all probabilities are equal, and one-hot values show them.
  """
  starts, on_device = _starts(new, lengths)
  tokens, size = int(starts[-1]), max(lengths)
  ones = np.concatenate([np.tile(np.eye(n, size), [1, heads])
                         for n in lengths])
  zero = new("zero", ones.shape, kind, np.zeros(ones.shape))
  value = new("value", ones.shape, kind, ones)
  dropout = _dropout(new.rng, _ZEROES)
  out = gpu.empty(ones.shape, kind)
  log_sum = gpu.empty([heads, tokens], "float32")
  def launch():
    gpu.call("bert_gpu_attention", TYPES.index(kind), zero, zero, value,
             on_device, dropout, len(lengths), tokens, heads, size, out,
             log_sum, None)
  def expected(found):
    found["kept"] = found["out"] != 0
    kept = np.zeros(ones.shape)
    for first, n in zip(starts, lengths):
      for head in range(heads):
        kept[first:first + n, head * size:head * size + n] = (
            _masks(dropout)(first, n, head) != 0)
    return {"kept=": kept}
  return launch, {"out": out}, expected


def attention_grad(gpu, new, kind, lengths, heads, size, zeroes):
  """Returns (launch, outputs, expected)."""
  starts, on_device = _starts(new, lengths)
  tokens = int(starts[-1])
  inputs = [new(name, [tokens, heads * size], kind)
            for name in ("dout", "query", "key", "value")]
  dropout = _dropout(new.rng, zeroes)
  v = new.values
  found = reference.attention(
      v["query"], v["key"], v["value"], v["dout"], starts, heads,
      _masks(dropout)) if v else (np.zeros([tokens, heads * size]),
                                  np.full([heads, tokens], 6.0))
  out = new("out", found[0].shape, kind, found[0])
  log_sum = new("log_sum", found[1].shape, "float32", found[1])
  scratch = gpu.empty([heads, tokens], "float32")
  names = ("dquery", "dkey", "dvalue")
  outputs = [gpu.empty([tokens, heads * size], kind) for _ in names]
  def launch():
    gpu.call("bert_gpu_attention_grad", TYPES.index(kind), *(inputs + [
        out, log_sum, on_device, dropout, len(lengths), tokens, heads, size,
        scratch] + outputs + [None]))
  return launch, dict(zip(names, outputs)), lambda _: dict(
      zip(names, found[2:]))


def _update(gpu, new, kind, sizes):
  """Returns (launch, outputs, expected) of "adam" or "lamb"."""
  step = dict(beta_1=0.9, beta_2=0.999, epsilon=1e-6, rate=0.1,
              gradient_scale=0.5, correction_1=0.1, correction_2=0.2)
  scalars = {name: new(name, [1], "float32", np.full([1], step[name]))
             for name in ("rate", "gradient_scale", "correction_1",
                          "correction_2")}
  arrays, copies, parameters = {}, [], (gpu_device.Parameter * len(sizes))()
  for i, size in enumerate(sizes):
    decay, adapt = (0.01, 1) if i % 3 else (0.0, 0)
    parameters[i].count = size
    parameters[i].decay, parameters[i].adapt = decay, adapt
    for name in "wmvg":
      label = "%s%d" % (name, i)
      array = new(label, [size], "float32", is_positive=name == "v")
      if name != "g" and new.values:  # an update begins with these
        copies.append((array, gpu.empty([size], "float32")))
        arrays[label] = array = copies[-1][1]
      setattr(parameters[i], name, array.pointer)
  device_step = gpu_device.Step(
      step["beta_1"], step["beta_2"], step["epsilon"],
      *(scalars[name].pointer for name in (
          "rate", "gradient_scale", "correction_1", "correction_2")))
  scratch = _doubles(gpu, gpu.ask("bert_gpu_lamb_scratch", parameters,
                                  len(sizes)))
  extra = (scratch,) if kind == "lamb" else ()
  def launch():
    for before, array in copies:
      gpu.call("harness_copy", array, before, array.bytes)
    gpu.call("bert_gpu_" + kind, parameters, len(sizes), device_step,
             *extra, None)
  def expected(_):
    wanted = {}
    for i in range(len(sizes)):
      w, m, v, g = (new.values["%s%d" % (name, i)] for name in "wmvg")
      decay, adapt = (0.01, True) if i % 3 else (0.0, False)
      for name, values in zip("wmv", reference.update(
          kind, w, m, v, g, decay, adapt, step)):
        wanted["%s%d" % (name, i)] = values
    return wanted
  return launch, arrays, expected


def _doubles(gpu, size):
  # Shifted by whole doubles, which such scratch memory has to hold.
  return gpu.empty([(size + 7) // 8], "float64")


def adam(gpu, new, _, sizes):
  """Returns (launch, outputs, expected)."""
  return _update(gpu, new, "adam", sizes)


def lamb(gpu, new, _, sizes):
  """Returns (launch, outputs, expected)."""
  return _update(gpu, new, "lamb", sizes)


def global_norm(gpu, new, _, sizes):
  """Returns (launch, outputs, expected)."""
  arrays = [new("t%d" % i, [size], "float32") for i, size in enumerate(sizes)]
  tensors = (gpu_device.Tensor * len(sizes))()
  for tensor, array in zip(tensors, arrays):
    tensor.values, tensor.count = array.pointer, array.count
  scratch = _doubles(gpu, gpu.ask("bert_gpu_global_norm_scratch", tensors,
                                  len(sizes)))
  norm = gpu.empty([1], "float32")
  def launch():
    gpu.call("bert_gpu_global_norm", tensors, len(sizes), scratch, norm, None)
  def expected(_):
    return {"norm": np.sqrt([sum((v ** 2).sum() for v in new.values.values())])}
  return launch, {"norm": norm}, expected


# Shapes ----------------------------------------------------------------------

_MATRICES = [(1, 8), (1, 1024), (3, 30), (65, 768), (33, 1000), (129, 1024),
             (37, 4096), (1025, 40), (7, 1), (19, 4095), (6, 8192)]
_NORM_MATRICES = [shape for shape in _MATRICES if shape[1] > 1] + [(999, 1024)]
_LOGITS = [(1, 1), (1, 2), (3, 7), (70, 130), (5, 30522), (129, 1024),
           (9, 4097), (11, 30528)]
_HEADS = [([1], 1, 8), ([1, 1], 2, 3), ([5, 0, 3], 2, 4),
          ([16, 17, 15], 3, 64), ([40, 1, 7], 1, 80), ([130, 33], 2, 64),
          ([9, 2], 4, 1), ([257, 0, 63, 64, 65], 2, 64), ([77], 2, 128),
          ([99, 31], 2, 33), ([3] * 70, 1, 16)]
_SIZES = [21, 1, 40000, 66001, 8192, 4, 8193] + [5 + i for i in range(80)]
_BERT_LARGE = ([30522 * 1024, 512 * 1024, 2 * 1024, 1024, 1024] + 24 * (
    4 * [1024 * 1024, 1024] + 2 * [1024, 1024] +
    [4096 * 1024, 4096, 4096 * 1024, 1024]) + [
        1024 * 1024, 1024, 1024 * 1024, 1024, 1024, 1024, 30522, 2 * 1024, 2])
_SEQUENCES = [384, 200, 128, 171, 300, 64, 384, 99] * 4


def groups():
  """Returns {group: (kernel, [checked arguments], [timed arguments])}."""
  both = lambda shapes, extra: [s + (e,) for s in shapes for e in extra]
  return {
      "bias_gelu": (bias_gelu, both(_MATRICES, (0, 1)),
                    [(16384, 4096, 0), (16384, 4096, 1)]),
      "bias_gelu_grad": (bias_gelu_grad, both(_MATRICES, (0, 1)),
                         [(16384, 4096, 0), (16384, 4096, 1)]),
      "dropout_add_norm": (
          dropout_add_norm, both(_NORM_MATRICES, (0, _ZEROES)),
          [(16384, 1024, _ZEROES)]),
      "row_mask": (row_mask, [(3, 30), (65, 1001), (33, 1024), (5, 4096)], []),
      "dropout_add_norm_grad": (
          dropout_add_norm_grad, both(_NORM_MATRICES, (0, _ZEROES)),
          [(16384, 1024, _ZEROES)]),
      "cross_entropy": (cross_entropy, _LOGITS,
                        [(2560, 30522), (2560, 30528)]),
      "cross_entropy_grad": (cross_entropy_grad, _LOGITS,
                             [(2560, 30522), (2560, 30528)]),
      "attention": (attention, both(_HEADS, (0, _ZEROES)),
                    [(_SEQUENCES, 16, 64, _ZEROES)]),
      "attention_mask": (attention_mask, [([1], 1), ([33, 7, 64], 3),
                                          ([128, 9], 2)], []),
      "attention_grad": (attention_grad, both(_HEADS, (0, _ZEROES)),
                         [(_SEQUENCES, 16, 64, _ZEROES)]),
      "adam": (adam, [(_SIZES,)], [(_BERT_LARGE,)]),
      "lamb": (lamb, [(_SIZES,)], [(_BERT_LARGE,)]),
      "global_norm": (global_norm, [(_SIZES,), ([7],)], [(_BERT_LARGE,)]),
  }


# Runs ------------------------------------------------------------------------


def kinds_of(kernel, types):
  """Returns the names of the types that a kernel is made for.

  Args:
    kernel: function of this module.
    types: int, how many of `TYPES` there are.
  """
  return TYPES[:1] if kernel.__name__ in _OPTIMIZERS else TYPES[:types]


def _limit(kernel, kind, name):
  if name.endswith("="):
    return 0.0
  if name in _FLOAT_OUTPUTS:
    return FLOAT_LIMIT
  return (ATTENTION_LIMITS if kernel.startswith("attention") else LIMITS)[kind]


def compare(kernel, kind, found, expected):
  """Returns (error, limit) of the output that is nearest to its limit.

  An error is the largest difference as a share of the largest expected value,
  or of 1; infinite where something is not a number.
  """
  worst = (0.0, FLOAT_LIMIT)
  for name, wanted in expected.items():
    limit = _limit(kernel, kind, name)
    got = np.asarray(found[name.rstrip("=")], np.float64)
    if not wanted.size:
      continue
    error = np.abs(got - wanted).max() / max(np.abs(wanted).max(), 1)
    error = float("inf") if np.isnan(error) else float(error)
    if limit == 0.0:
      error, limit = (0.0 if error == 0.0 else float("inf")), FLOAT_LIMIT
    if error / limit >= worst[0] / worst[1]:
      worst = error, limit
  return worst


def check_case(gpu, kernel, kind, arguments, shift):
  """Runs a kernel twice on poisoned outputs and compares it.

  Returns:
    dict with "check", and "error" and "limit", or "fault", a line.
  """
  label = "%s %s %s%s" % (kernel.__name__, kind, _words(arguments),
                          " shifted" if shift else "")
  gpu.shift = shift
  try:
    new = _Inputs(gpu, zlib.crc32(label.encode()))
    launch, outputs, expected = kernel(gpu, new, kind, *arguments)
    runs = []
    for _ in range(2):
      for array in outputs.values():
        gpu.poison(array)
      launch()
      gpu.wait()
      runs.append({name: gpu.raw(array) for name, array in outputs.items()})
    found = {name: gpu_device.decode(runs[0][name], array.kind, array.shape)
             for name, array in outputs.items()}
    error, limit = compare(kernel.__name__, kind, found, expected(found))
    fault = ("two runs differ" if runs[0] != runs[1] else
             "error %.1e of %.0e" % (error, limit) if error > limit else None)
    row = {"check": label, "error": min(error, 1e30), "limit": limit}
    return dict(row, fault=fault) if fault else row
  except gpu_device.GpuError as error:
    return {"check": label, "fault": str(error)}
  finally:
    gpu.shift = 0


def _words(arguments):
  words = [str(one) for one in arguments]
  return " ".join(word if len(word) < 40 else word[:36] + "..."
                  for word in words)


def traffic(kernel, kind, arguments):
  """Returns the bytes that a kernel has to move: each input and output once.

  LAMB reads its moments and weights twice: the norms of all of a tensor are
  known only after that.
  """
  size = 4 if kind == "float32" else 2
  name = kernel.__name__
  if name in _OPTIMIZERS:
    return {"adam": 28, "lamb": 40, "global_norm": 4}[name] * sum(arguments[0])
  if name.startswith("attention"):
    lengths, heads, width = arguments[:3]
    return (8 if name.endswith("grad") else 4) * size * (
        sum(lengths) * heads * width)
  rows, width = arguments[:2]
  matrices = {"bias_gelu": 2, "bias_gelu_grad": 3, "dropout_add_norm": 4,
              "dropout_add_norm_grad": 4, "cross_entropy": 1,
              "cross_entropy_grad": 2}[name]
  return matrices * size * rows * width


def time_case(gpu, kernel, kind, arguments, copy, rounds):
  """Returns the dict of a timed kernel.

  Args:
    gpu: gpu_device.Gpu.
    kernel: function of this module.
    kind: one of TYPES.
    arguments: its shape.
    copy: float, bytes a second of the copy.
    rounds: int, whose median counts.
  """
  name, moved = kernel.__name__, traffic(kernel, kind, arguments)
  # So many sets of arrays that none of them is in the cache again.
  sets = 1 + (1 << 28) // moved
  launches = [kernel(gpu, _Pattern(gpu), kind, *arguments)[0]
              for _ in range(sets)]
  def work():
    for launch in launches:
      launch()
  seconds = gpu.median_seconds(work, gpu.copy_block, rounds, 2) / sets
  is_attention = name.startswith("attention")
  shape = _words(arguments)
  if name in _OPTIMIZERS:
    shape = "%d values in %d tensors" % (sum(arguments[0]), len(arguments[0]))
  if is_attention:
    lengths, heads, width = arguments[:3]
    operations = (10 if name.endswith("grad") else 4) * heads * width * sum(
        n * n for n in lengths)
    shape = "%d sequences, %d tokens, %d heads of %d: %.1f TFLOP/s" % (
        len(lengths), sum(lengths), heads, width, operations / seconds / 1e12)
  return {"timed": name, "type": kind, "shape": shape,
          "microseconds": seconds * 1e6, "bandwidth": moved / seconds,
          "copy": copy, "memory_bound": not is_attention}


def run(library, group, quick):
  """Prints a line of JSON for each check and time of a group.

  Args:
    library: path of the compiled kernels.
    group: key of `groups()`.
    quick: bool, one seed and few rounds.
  """
  def show(row):
    print(json.dumps(row), flush=True)
  gpu = gpu_device.Gpu(library)
  show({"device": gpu.device})
  kernel, shapes, timed = groups()[group]
  kinds = kinds_of(kernel, gpu.types)
  for kind in kinds:
    for i, arguments in enumerate(shapes):
      for shift in ((0,) if quick or i % 4 else (0, 1)):
        row = check_case(gpu, kernel, kind, arguments, shift)
        show(row)
        if "fault" in row:
          gpu.wait()  # after some faults nothing runs any more
        gpu.release()
  rounds = 5 if quick else 15
  copy = gpu.copy_bandwidth(rounds) if timed else None
  for kind in kinds:
    for arguments in timed:
      show(time_case(gpu, kernel, kind, arguments, copy, rounds))
      gpu.release()
