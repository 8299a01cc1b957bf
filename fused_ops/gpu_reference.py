"""What the kernels compute, in float64 and numpy; for gpu_check.py.

Shapes: n rows (tokens), w and h widths.
"""

import math

import numpy as np


def philox(key, counter, place, row):
  """Returns eight values below 65536 of each counter, uint32 [..., 8].

  Philox 4 x 32 with 7 rounds (Salmon et al., 2011), as in cpu_kernels.cc.

  Args:
    key: int, 64 bits.
    counter: int, 64 bits, the counter's upper half.
    place: integer array, its lowest 32 bits.
    row: integer array of a shape that broadcasts, the next 32.
  """
  mask = np.uint64(0xffffffff)
  place, row = np.broadcast_arrays(place, row)
  c0, c1 = (a.astype(np.int64).astype(np.uint64) & mask for a in (place, row))
  c2 = np.full_like(c0, counter & 0xffffffff)
  c3 = np.full_like(c0, counter >> 32 & 0xffffffff)
  for i in range(7):
    key_0 = np.uint64((key + i * 0x9E3779B9) & 0xffffffff)
    key_1 = np.uint64(((key >> 32) + i * 0xBB67AE85) & 0xffffffff)
    a, b = np.uint64(0xD2511F53) * c0, np.uint64(0xCD9E8D57) * c2
    c0, c1, c2, c3 = ((b >> np.uint64(32)) ^ c1 ^ key_0, b & mask,
                      (a >> np.uint64(32)) ^ c3 ^ key_1, a & mask)
  halves = [part for c in (c0, c1, c2, c3)
            for part in (c & np.uint64(0xffff), c >> np.uint64(16))]
  return np.stack(halves, -1).astype(np.uint32)


def _mask(values, zeroes):
  return np.where(values < zeroes, 0.0, 65536.0 / (65536 - zeroes))


def row_mask(key, counter, zeroes, rows, width):
  """Returns the mask of dropout_add_norm, float64 [rows, width]."""
  values = philox(key, counter, np.arange((width + 7) // 8),
                  np.arange(rows)[:, None])
  return _mask(values.reshape([rows, -1])[:, :width], zeroes)


def attention_mask(key, counter, zeroes, first, length, head):
  """Returns the mask of a head of a sequence, float64 [length, length].

  Args:
    key: int, 64 bits.
    counter: int, 64 bits.
    zeroes: int, in 65536.
    first: int, the number of the sequence's first token in the batch.
    length: int.
    head: int.
  """
  groups = first + 8 * np.arange((length + 7) // 8)
  values = philox(key, counter, np.arange(length) + (head << 16),
                  groups[:, None])
  values = values.transpose([0, 2, 1]).reshape([8 * len(groups), length])
  return _mask(values[:length], zeroes)


def gelu_and_slope(u, exact):
  """Returns gelu and its derivative of a float64 array."""
  if exact:
    cdf = 0.5 * (1 + np.vectorize(math.erf, [float])(u / np.sqrt(2)))
    return u * cdf, cdf + u * np.exp(-u * u / 2) / np.sqrt(2 * np.pi)
  root = np.sqrt(2 / np.pi)
  tanh = np.tanh(root * (u + 0.044715 * u ** 3))
  return (0.5 * u * (1 + tanh),
          0.5 * (1 + tanh) + 0.5 * u * (1 - tanh ** 2) * root
          * (1 + 3 * 0.044715 * u * u))


def norm_of(z):
  """Returns (normalised z, mean, 1 / deviation) of rows, float64."""
  center = z.mean(1, keepdims=True)
  scale = 1 / np.sqrt(((z - center) ** 2).mean(1, keepdims=True) + 1e-12)
  return (z - center) * scale, center[:, 0], scale[:, 0]


def norm_grad(dy, z, gamma, mask):
  """Returns (dx, dz, dbias, dgamma, dbeta) of dropout_add_norm, float64."""
  n, _, scale = norm_of(z)
  g = dy * gamma
  dz = scale[:, None] * (g - g.mean(1, keepdims=True)
                         - n * (g * n).mean(1, keepdims=True))
  return (dz * mask, dz, (dz * mask).sum(0), (dy * n).sum(0), dy.sum(0))


def attention(query, key, value, dout, starts, heads, masks):
  """Returns (out, log_sum, dquery, dkey, dvalue), float64.

  Args:
    query: float64 [n, h]; so are key, value and dout.
    starts: ints [batch + 1].
    heads: int.
    masks: function of (first token, length, head) to [length, length].
  """
  size = query.shape[1] // heads
  results = [np.zeros_like(query) for _ in range(4)]
  log_sum = np.zeros([heads, len(query)])
  for first, end in zip(starts[:-1], starts[1:]):
    for head in range(heads if end > first else 0):
      at = slice(first, end), slice(head * size, (head + 1) * size)
      q, k, v, do = query[at], key[at], value[at], dout[at]
      scores = q @ k.T / np.sqrt(size)
      top = scores.max(1, keepdims=True)
      p = np.exp(scores - top)
      log_sum[head, first:end] = (top + np.log(p.sum(1, keepdims=True)))[:, 0]
      p /= p.sum(1, keepdims=True)
      mask = masks(first, end - first, head)
      o = (p * mask) @ v
      ds = p * (do @ v.T * mask - (do * o).sum(1, keepdims=True))
      for result, part in zip(results, (
          o, ds @ k / np.sqrt(size), ds.T @ q / np.sqrt(size),
          (p * mask).T @ do)):
        result[at] = part
  return (results[0], log_sum) + tuple(results[1:])


def cross_entropy(x, labels, dloss):
  """Returns (loss, log_sum, dx, dbias) of logits with bias, float64."""
  top = x.max(1, keepdims=True)
  log_sum = (top + np.log(np.exp(x - top).sum(1, keepdims=True)))[:, 0]
  dx = np.exp(x - log_sum[:, None])
  picked = np.arange(len(x)), labels
  dx[picked] -= 1
  dx *= dloss[:, None]
  return log_sum - x[picked], log_sum, dx, dx.sum(0)


def update(kind, w, m, v, g, decay, adapt, step):
  """Returns (w, m, v) after an update of "adam" or "lamb", float64."""
  m = m + (1 - step["beta_1"]) * (g * step["gradient_scale"] - m)
  v = v + (1 - step["beta_2"]) * ((g * step["gradient_scale"]) ** 2 - v)
  lamb = kind == "lamb"
  u = m / (step["correction_1"] if lamb else 1) / (
      np.sqrt(v / (step["correction_2"] if lamb else 1))
      + step["epsilon"]) + decay * w
  norms = np.linalg.norm(w), np.linalg.norm(u)
  ratio = norms[0] / norms[1] if lamb and adapt and all(norms) else 1.0
  return w - step["rate"] * ratio * u, m, v
