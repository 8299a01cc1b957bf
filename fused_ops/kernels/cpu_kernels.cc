// See cpu_kernels.h. Compiled once a kind of processor: BERT_KERNELS is the name
// of the table, BERT_WIDTH the number of floats in its registers.
//
// The loops are plain: the compiler turns them into what its -m flags allow. It
// may reorder sums (-fassociative-math), but has to keep NaN and infinity, by
// which a bad update is known. All is in an unnamed namespace: what was compiled
// with other flags must never be linked in its place.

#include "fused_ops/kernels/cpu_kernels.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "fused_ops/kernels/cpu_products.h"
#include "fused_ops/kernels/cpu_random.h"

namespace bert {
namespace {

// Elementary functions -------------------------------------------------------

// e^x to 2 units in the last place: 2^n times a polynomial in what is left,
// at most log(2) / 2, for which Taylor's coefficients will do.
inline float exponential(float x) {
  x = x > 88.0f ? 88.0f : x;
  x = x < -87.0f ? -87.0f : x;
  const float n = __builtin_rintf(x * 1.44269504088896341f);
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.0f / 5040;
  p = p * r + 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  // Unsigned: what is no number has any exponent, and p keeps it as it is.
  const uint32_t bits = (static_cast<uint32_t>(static_cast<int32_t>(n)) + 127u)
                        << 23;
  float power;
  std::memcpy(&power, &bits, sizeof(power));
  return p * power;
}

// 0.5 (1 + tanh(z)) = 1 / (1 + e^-2z), z = sqrt(2 / pi) (x + 0.044715 x^3).
constexpr float kGelu1 = 1.5957691216057308f;
constexpr float kGelu3 = 0.07135481282626036f;

inline float gelu_gate(float x) {
  return 1.0f / (1.0f + exponential(-x * (kGelu1 + kGelu3 * x * x)));
}

inline float gelu_slope(float x) {
  const float rest = exponential(-x * (kGelu1 + kGelu3 * x * x));
  const float gate = 1.0f / (1.0f + rest);  // and 1 - gate = rest gate
  return gate + x * gate * (rest * gate) * (kGelu1 + 3.0f * kGelu3 * x * x);
}

// The normal distribution: 0.5 erfc(-x / sqrt(2)), by Abramowitz and Stegun,
// Handbook of Mathematical Functions, 7.1.26 (1.5e-7 at most, of 1).
inline float normal_cdf(float x, float density_times_root) {
  const float a = std::fabs(x) * 0.70710678118654752f;
  const float t = 1.0f / (1.0f + 0.3275911f * a);
  const float tail = 0.5f * density_times_root * t *
      (0.254829592f + t * (-0.284496736f + t * (1.421413741f +
       t * (-1.453152027f + t * 1.061405429f))));
  return x > 0.0f ? 1.0f - tail : tail;
}

// Bias and GELU --------------------------------------------------------------

void bias_gelu(const float* x, const float* bias, int64_t rows, int64_t width,
               bool exact, float* y) {
  for (int64_t i = 0; i < rows; ++i, x += width, y += width) {
    if (exact) {
      for (int64_t j = 0; j < width; ++j) {
        const float u = x[j] + bias[j];
        y[j] = u * normal_cdf(u, exponential(-0.5f * u * u));
      }
    } else {
      for (int64_t j = 0; j < width; ++j) {
        const float u = x[j] + bias[j];
        y[j] = u * gelu_gate(u);
      }
    }
  }
}

void bias_gelu_grad(const float* dy, const float* x, const float* bias,
                    int64_t rows, int64_t width, bool exact, float* dx,
                    float* dbias) {
  for (int64_t i = 0; i < rows; ++i, dy += width, x += width, dx += width) {
    if (exact) {
      for (int64_t j = 0; j < width; ++j) {
        const float u = x[j] + bias[j];
        const float bell = exponential(-0.5f * u * u);
        const float d = dy[j] * (normal_cdf(u, bell) +
                                 u * bell * 0.3989422804014327f);
        dx[j] = d;
        dbias[j] += d;
      }
    } else {
      for (int64_t j = 0; j < width; ++j) {
        const float d = dy[j] * gelu_slope(x[j] + bias[j]);
        dx[j] = d;
        dbias[j] += d;
      }
    }
  }
}

// Dropout, residual and layer norm -------------------------------------------

// The widest row whose mask fits on the stack; wider ones come in parts.
constexpr int64_t kPart = 1024;

void dropout_add_norm(const float* x, const float* bias, const float* residual,
                      const float* gamma, const float* beta,
                      const Dropout& dropout, int64_t first, int64_t rows,
                      int64_t width, float* z, float* mean, float* scale,
                      float* y) {
  float mask[kPart];
  for (int64_t i = 0; i < rows; ++i) {
    if (dropout.zeroes) {
      for (int64_t begin = 0; begin < width; begin += kPart) {
        const int64_t part = std::min(kPart, width - begin);
        row_mask(dropout, first + i, begin, part, mask);
        for (int64_t j = 0; j < part; ++j) {
          z[begin + j] = (x[begin + j] + bias[begin + j]) * mask[j] +
              residual[begin + j];
        }
      }
    } else {
      for (int64_t j = 0; j < width; ++j) z[j] = x[j] + bias[j] + residual[j];
    }
    float total = 0.0f;
    for (int64_t j = 0; j < width; ++j) total += z[j];
    const float center = total / static_cast<float>(width);
    float squares = 0.0f;
    for (int64_t j = 0; j < width; ++j) {
      squares += (z[j] - center) * (z[j] - center);
    }
    const float rate =
        1.0f / std::sqrt(squares / static_cast<float>(width) + 1e-12f);
    mean[i] = center;
    scale[i] = rate;
    for (int64_t j = 0; j < width; ++j) {
      y[j] = (z[j] - center) * rate * gamma[j] + beta[j];
    }
    x += width, residual += width, z += width, y += width;
  }
}

// With n = (z - mean) scale and g = dy gamma:
// dz = scale (g - mean(g) - n mean(g n)).
void dropout_add_norm_grad(const float* dy, const float* z, const float* mean,
                           const float* scale, const float* gamma,
                           const Dropout& dropout, int64_t first, int64_t rows,
                           int64_t width, float* dx, float* dz, float* dbias,
                           float* dgamma, float* dbeta) {
  float mask[kPart];
  for (int64_t i = 0; i < rows; ++i) {
    const float center = mean[i], rate = scale[i];
    float sum_g = 0.0f, sum_gn = 0.0f;
    for (int64_t j = 0; j < width; ++j) {
      const float n = (z[j] - center) * rate;
      const float g = dy[j] * gamma[j];
      sum_g += g;
      sum_gn += g * n;
      dgamma[j] += dy[j] * n;
      dbeta[j] += dy[j];
    }
    const float mean_g = sum_g / static_cast<float>(width);
    const float mean_gn = sum_gn / static_cast<float>(width);
    for (int64_t j = 0; j < width; ++j) {
      const float n = (z[j] - center) * rate;
      dz[j] = rate * (dy[j] * gamma[j] - mean_g - n * mean_gn);
    }
    for (int64_t begin = 0; begin < width; begin += kPart) {
      const int64_t part = std::min(kPart, width - begin);
      if (dropout.zeroes) {
        row_mask(dropout, first + i, begin, part, mask);
        for (int64_t j = 0; j < part; ++j) {
          const float d = dz[begin + j] * mask[j];
          dx[begin + j] = d;
          dbias[begin + j] += d;
        }
      } else {
        for (int64_t j = 0; j < part; ++j) {
          dx[begin + j] = dz[begin + j];
          dbias[begin + j] += dz[begin + j];
        }
      }
    }
    dy += width, z += width, dx += width, dz += width;
  }
}

// Attention ------------------------------------------------------------------

// Rows of scores that are worked on at a time: kAttentionRows, of whole blocks
// of `random_block` and whole tiles.
constexpr int64_t kGroup = kAttentionRows;
static_assert(kGroup % kValues == 0 && kGroup % kTile == 0, "parts of a block");
constexpr int64_t kPad = 16;

inline int64_t padded(int64_t n) { return (n + kPad - 1) / kPad * kPad; }

// to [rows, padded(size)] = factor * from [rows, size].
void copy_rows(const float* from, int64_t rows, int64_t size, int64_t stride,
               float factor, float* to) {
  const int64_t wide = padded(size);
  for (int64_t i = 0; i < rows; ++i, from += stride, to += wide) {
    for (int64_t j = 0; j < size; ++j) to[j] = from[j] * factor;
    for (int64_t j = size; j < wide; ++j) to[j] = 0.0f;
  }
}

// to [size, padded(rows)] = the transpose of from [rows, size].
void transpose(const float* from, int64_t rows, int64_t size, int64_t stride,
               float* to) {
  const int64_t wide = padded(rows);
  int64_t i = 0;
  for (; i + kWidth <= rows; i += kWidth, from += kWidth * stride) {
    for (int64_t j = 0; j < size; ++j) {
      for (int64_t r = 0; r < kWidth; ++r) {
        to[j * wide + i + r] = from[r * stride + j];
      }
    }
  }
  for (; i < rows; ++i, from += stride) {
    for (int64_t j = 0; j < size; ++j) to[j * wide + i] = from[j];
  }
  for (; i < wide; ++i) {
    for (int64_t j = 0; j < size; ++j) to[j * wide + i] = 0.0f;
  }
}

// The largest of at least one value that is a number.
float largest(const float* row, int64_t length) {
  float top = row[0];
  int64_t j = 0;
  if (length >= kWidth) {
    Vec tops = load(row);
    for (j = kWidth; j + kWidth <= length; j += kWidth) {
      const Vec next = load(row + j);
      tops = next > tops ? next : tops;
    }
    for (int i = 0; i < kWidth; ++i) top = tops[i] > top ? tops[i] : top;
  }
  for (; j < length; ++j) top = row[j] > top ? row[j] : top;
  return top;
}

// The masks of a group of rows of scores, [kGroup, wide]. `row` is the first
// one's number in the whole batch: it names the group.
void group_mask(const Dropout& dropout, int64_t head, int64_t row, int64_t wide,
                float* mask) {
  const float keep = keep_scale(dropout);
  uint32_t random[kValues][kLanes];
  for (int part = 0; part < kGroup / kValues; ++part, mask += kValues * wide) {
    for (int64_t j = 0; j < wide; j += kLanes) {
      random_block(dropout, static_cast<uint32_t>(j + (head << 16)),
                   static_cast<uint32_t>(row + part * kValues), random);
      for (int value = 0; value < kValues; ++value) {
        for (int i = 0; i < kLanes; ++i) {
          mask[value * wide + j + i] =
              random[value][i] < dropout.zeroes ? 0.0f : keep;
        }
      }
    }
  }
}

void attention(const float* query, const float* key, const float* value,
               int64_t length, int64_t size, int64_t stride, float scale,
               const Dropout& dropout, int64_t first, int64_t head,
               float* scratch, float* out, float* log_sum) {
  const int64_t wide = padded(length), deep = padded(size);
  float* keys = scratch;                       // [size, wide]
  float* values = keys + size * wide;          // [length, deep]
  float* left = values + length * deep;        // [kGroup, deep]
  float* scores = left + kGroup * deep;        // [kGroup, wide]
  float* mask = scores + kGroup * wide;        // [kGroup, wide]
  float* context = mask + kGroup * wide;       // [kGroup, deep]
  transpose(key, length, size, stride, keys);
  copy_rows(value, length, size, stride, 1.0f, values);
  for (int64_t i = 0; i < length; i += kGroup) {
    const int64_t rows = std::min(kGroup, length - i);
    copy_rows(query + i * stride, rows, size, stride, scale, left);
    multiply<false>({left, deep, 1}, keys, wide, rows, size, wide, scores,
                    wide);
    if (dropout.zeroes) group_mask(dropout, head, first + i, wide, mask);
    for (int64_t r = 0; r < rows; ++r) {
      float* row = scores + r * wide;
      const float top = largest(row, length);
      float total = 0.0f;
      for (int64_t j = 0; j < length; ++j) {
        row[j] = exponential(row[j] - top);
        total += row[j];
      }
      log_sum[i + r] = top + std::log(total);
      const float share = 1.0f / total;
      if (dropout.zeroes) {
        for (int64_t j = 0; j < length; ++j) row[j] *= share * mask[r * wide + j];
      } else {
        for (int64_t j = 0; j < length; ++j) row[j] *= share;
      }
    }
    multiply<false>({scores, wide, 1}, values, deep, rows, length, deep,
                    context, deep);
    for (int64_t r = 0; r < rows; ++r) {
      std::memcpy(out + (i + r) * stride, context + r * deep,
                  size * sizeof(float));
    }
  }
}

// With P the probabilities, M the mask and O = (P M) V:
// dV = (P M)^T dO;  dS = P (dO V^T M - sum(dO O));  dQ = dS K;  dK = dS^T Q
// (Dao et al., arXiv 2205.14135, appendix B.4).
void attention_grad(const float* dout, const float* query, const float* key,
                    const float* value, const float* out, const float* log_sum,
                    int64_t length, int64_t size, int64_t stride, float scale,
                    const Dropout& dropout, int64_t first, int64_t head,
                    float* scratch, float* dquery, float* dkey, float* dvalue) {
  const int64_t wide = padded(length), deep = padded(size);
  float* keys_t = scratch;                     // [size, wide]
  float* values_t = keys_t + size * wide;      // [size, wide]
  float* keys = values_t + size * wide;        // [length, deep]
  float* dkeys = keys + length * deep;         // [length, deep]
  float* dvalues = dkeys + length * deep;      // [length, deep]
  float* left = dvalues + length * deep;       // [kGroup, deep]
  float* dleft = left + kGroup * deep;         // [kGroup, deep]
  float* scores = dleft + kGroup * deep;       // [kGroup, wide]
  float* dscores = scores + kGroup * wide;     // [kGroup, wide]
  float* mask = dscores + kGroup * wide;       // [kGroup, wide]
  transpose(key, length, size, stride, keys_t);
  transpose(value, length, size, stride, values_t);
  copy_rows(key, length, size, stride, scale, keys);
  std::fill(dkeys, dkeys + 2 * length * deep, 0.0f);
  for (int64_t i = 0; i < length; i += kGroup) {
    const int64_t rows = std::min(kGroup, length - i);
    copy_rows(query + i * stride, rows, size, stride, scale, left);
    copy_rows(dout + i * stride, rows, size, stride, 1.0f, dleft);
    multiply<false>({left, deep, 1}, keys_t, wide, rows, size, wide, scores,
                    wide);
    multiply<false>({dleft, deep, 1}, values_t, wide, rows, size, wide, dscores,
                    wide);
    if (dropout.zeroes) group_mask(dropout, head, first + i, wide, mask);
    for (int64_t r = 0; r < rows; ++r) {
      float* row = scores + r * wide;
      float* drow = dscores + r * wide;
      const float* kept = mask + r * wide;
      const float* o = out + (i + r) * stride;
      float dot = 0.0f;
      for (int64_t d = 0; d < size; ++d) dot += dleft[r * deep + d] * o[d];
      const float level = log_sum[i + r];
      if (dropout.zeroes) {
        for (int64_t j = 0; j < length; ++j) {
          const float p = exponential(row[j] - level);
          drow[j] = p * (drow[j] * kept[j] - dot);
          row[j] = p * kept[j];
        }
      } else {
        for (int64_t j = 0; j < length; ++j) {
          const float p = exponential(row[j] - level);
          drow[j] = p * (drow[j] - dot);
          row[j] = p;
        }
      }
    }
    multiply<true>({scores, 1, wide}, dleft, deep, length, rows, deep, dvalues,
                   deep);
    multiply<true>({dscores, 1, wide}, left, deep, length, rows, deep, dkeys,
                   deep);
    multiply<false>({dscores, wide, 1}, keys, deep, rows, length, deep, dleft,
                    deep);
    for (int64_t r = 0; r < rows; ++r) {
      std::memcpy(dquery + (i + r) * stride, dleft + r * deep,
                  size * sizeof(float));
    }
  }
  for (int64_t i = 0; i < length; ++i) {
    std::memcpy(dkey + i * stride, dkeys + i * deep, size * sizeof(float));
    std::memcpy(dvalue + i * stride, dvalues + i * deep, size * sizeof(float));
  }
}

// Softmax cross-entropy ------------------------------------------------------

void cross_entropy(const float* logits, const float* bias, int64_t classes,
                   int32_t label, float* loss, float* log_sum) {
  float top = logits[0] + bias[0];
  for (int64_t j = 1; j < classes; ++j) {
    const float x = logits[j] + bias[j];
    top = x > top ? x : top;
  }
  float total = 0.0f;
  for (int64_t j = 0; j < classes; ++j) {
    total += exponential(logits[j] + bias[j] - top);
  }
  *log_sum = top + std::log(total);
  *loss = *log_sum - (logits[label] + bias[label]);
}

void cross_entropy_grad(float dloss, const float* logits, const float* bias,
                        int64_t classes, int32_t label, float log_sum,
                        float* dlogits, float* dbias) {
  for (int64_t j = 0; j < classes; ++j) {
    dlogits[j] = dloss * exponential(logits[j] + bias[j] - log_sum);
  }
  dlogits[label] -= dloss;
  for (int64_t j = 0; j < classes; ++j) dbias[j] += dlogits[j];
}

// Optimizers -----------------------------------------------------------------

void adam(const AdamStep& s, int64_t count, const float* gradient, float* m,
          float* v, float* w) {
  const float rest_1 = 1.0f - s.beta_1, rest_2 = 1.0f - s.beta_2;
  for (int64_t i = 0; i < count; ++i) {
    const float g = gradient[i] * s.gradient_scale;
    const float next_m = m[i] + rest_1 * (g - m[i]);
    const float next_v = v[i] + rest_2 * (g * g - v[i]);
    m[i] = next_m;
    v[i] = next_v;
    w[i] -= s.rate * (next_m / (std::sqrt(next_v) + s.epsilon) +
                      s.decay * w[i]);
  }
}

void lamb(const AdamStep& s, int64_t count, const float* gradient, float* m,
          float* v, const float* w, float* direction, double* square_w,
          double* square_direction) {
  const float rest_1 = 1.0f - s.beta_1, rest_2 = 1.0f - s.beta_2;
  const float factor_1 = 1.0f / s.correction_1;
  const float factor_2 = 1.0f / s.correction_2;
  float sum_w = 0.0f, sum_direction = 0.0f;
  for (int64_t i = 0; i < count; ++i) {
    const float g = gradient[i] * s.gradient_scale;
    const float next_m = m[i] + rest_1 * (g - m[i]);
    const float next_v = v[i] + rest_2 * (g * g - v[i]);
    m[i] = next_m;
    v[i] = next_v;
    const float u = next_m * factor_1 /
        (std::sqrt(next_v * factor_2) + s.epsilon) + s.decay * w[i];
    direction[i] = u;
    sum_w += w[i] * w[i];
    sum_direction += u * u;
  }
  *square_w = sum_w;
  *square_direction = sum_direction;
}

void subtract(float rate, int64_t count, const float* direction, float* w) {
  for (int64_t i = 0; i < count; ++i) w[i] -= rate * direction[i];
}

double sum_of_squares(int64_t count, const float* x) {
  float total = 0.0f;
  for (int64_t i = 0; i < count; ++i) total += x[i] * x[i];
  return total;
}

}  // namespace

const Kernels& BERT_KERNELS() {
  static const Kernels table = {
      bias_gelu, bias_gelu_grad, dropout_add_norm, dropout_add_norm_grad,
      attention, attention_grad, cross_entropy, cross_entropy_grad, adam, lamb,
      subtract, sum_of_squares};
  return table;
}

}  // namespace bert
