// Runs each kernel of the CPU over odd shapes, for a build with sanitizers:
//
//   tests/test_kernel_sanitizers.py compiles and runs it.
//
// All buffers are exactly as long as they have to be and start out as NaN, so
// that what reads or writes beyond them, or leaves a place out, is found.
// Prints the tables that were run; a failure is one line and exit status 1.

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <initializer_list>
#include <limits>
#include <memory>

#include "fused_ops/kernels/cpu_kernels.h"

namespace {

using bert::AdamStep;
using bert::Dropout;
using bert::Kernels;

const float kPoison = std::numeric_limits<float>::quiet_NaN();

// Floats on the heap, with nothing to spare behind them.
class Floats {
 public:
  explicit Floats(int64_t count) : count_(count), data_(new float[count]) {
    for (int64_t i = 0; i < count; ++i) data_[i] = kPoison;
  }
  // Other values for each seed, between -1 and 1 and around `center`.
  Floats& fill(uint32_t seed, float center = 0.0f) {
    for (int64_t i = 0; i < count_; ++i) {
      seed = seed * 1664525u + 1013904223u;
      data_[i] = center + static_cast<float>(seed >> 8) / (1 << 23) - 1.0f;
    }
    return *this;
  }
  Floats& zero() {
    for (int64_t i = 0; i < count_; ++i) data_[i] = 0.0f;
    return *this;
  }
  operator float*() const { return data_.get(); }
  // Ends the program where a place was left out or is no number.
  void check(const char* kernel, const char* name) const {
    for (int64_t i = 0; i < count_; ++i) {
      if (!std::isfinite(data_[i])) {
        std::printf("%s: %s[%lld] of %lld is %f\n", kernel, name,
                    static_cast<long long>(i), static_cast<long long>(count_),
                    data_[i]);
        std::exit(1);
      }
    }
  }

 private:
  int64_t count_;
  std::unique_ptr<float[]> data_;
};

void check_rows(const Kernels& table, int64_t rows, int64_t width,
                const Dropout& dropout) {
  const int64_t all = rows * width;
  Floats x(all), residual(all), dy(all), bias(width), gamma(width), beta(width);
  x.fill(1), residual.fill(2), dy.fill(3);
  bias.fill(4), gamma.fill(5, 1.0f), beta.fill(6);
  for (bool exact : {false, true}) {
    Floats y(all), dx(all), dbias(width);
    table.bias_gelu(x, bias, rows, width, exact, y);
    y.check("bias_gelu", "y");
    table.bias_gelu_grad(dy, x, bias, rows, width, exact, dx, dbias.zero());
    dx.check("bias_gelu_grad", "dx");
    dbias.check("bias_gelu_grad", "dbias");
  }
  Floats z(all), mean(rows), scale(rows), y(all);
  table.dropout_add_norm(x, bias, residual, gamma, beta, dropout, 3, rows,
                         width, z, mean, scale, y);
  z.check("dropout_add_norm", "z");
  y.check("dropout_add_norm", "y");
  Floats dx(all), dz(all), dbias(width), dgamma(width), dbeta(width);
  table.dropout_add_norm_grad(dy, z, mean, scale, gamma, dropout, 3, rows,
                              width, dx, dz, dbias.zero(), dgamma.zero(),
                              dbeta.zero());
  dx.check("dropout_add_norm_grad", "dx");
  dz.check("dropout_add_norm_grad", "dz");
  dbias.check("dropout_add_norm_grad", "dbias");
  dgamma.check("dropout_add_norm_grad", "dgamma");
}

// One head alone: the row of the last token ends with its values.
void check_attention(const Kernels& table, int64_t length, int64_t size,
                     const Dropout& dropout) {
  const int64_t all = length * size;
  const float root = 1.0f / std::sqrt(static_cast<float>(size));
  Floats query(all), key(all), value(all), dout(all), out(all);
  Floats log_sum(length), dquery(all), dkey(all), dvalue(all);
  query.fill(1), key.fill(2), value.fill(3), dout.fill(4);
  {
    Floats scratch(bert::attention_scratch(length, size));
    table.attention(query, key, value, length, size, size, root, dropout, 5, 1,
                    scratch, out, log_sum);
  }
  out.check("attention", "out");
  log_sum.check("attention", "log_sum");
  Floats scratch(bert::attention_scratch(length, size));
  table.attention_grad(dout, query, key, value, out, log_sum, length, size,
                       size, root, dropout, 5, 1, scratch, dquery, dkey,
                       dvalue);
  dquery.check("attention_grad", "dquery");
  dkey.check("attention_grad", "dkey");
  dvalue.check("attention_grad", "dvalue");
}

void check_cross_entropy(const Kernels& table, int64_t classes) {
  Floats logits(classes), bias(classes), loss(1), log_sum(1);
  Floats dlogits(classes), dbias(classes);
  logits.fill(1), bias.fill(2);
  const int32_t label = static_cast<int32_t>(classes - 1);
  table.cross_entropy(logits, bias, classes, label, loss, log_sum);
  loss.check("cross_entropy", "loss");
  table.cross_entropy_grad(0.5f, logits, bias, classes, label, *log_sum,
                           dlogits, dbias.zero());
  dlogits.check("cross_entropy_grad", "dlogits");
  dbias.check("cross_entropy_grad", "dbias");
}

void check_optimizers(const Kernels& table, int64_t count) {
  const AdamStep step = {0.9f, 0.999f, 1e-6f, 0.01f, 0.1f, 0.5f, 0.1f, 0.2f};
  Floats gradient(count), m(count), v(count), w(count), direction(count);
  gradient.fill(1), m.fill(2), v.fill(3, 1.5f), w.fill(4);
  table.adam(step, count, gradient, m, v, w);
  w.check("adam", "w");
  double square_w = 0, square_direction = 0;
  table.lamb(step, count, gradient, m, v, w, direction, &square_w,
             &square_direction);
  direction.check("lamb", "direction");
  table.subtract(0.1f, count, direction, w);
  w.check("subtract", "w");
  if (!(square_w >= 0 && square_direction >= 0 &&
        table.sum_of_squares(count, w) >= 0)) {
    std::printf("lamb: the sums of squares are no numbers\n");
    std::exit(1);
  }
}

void check(const Kernels& table, const char* name) {
  for (uint32_t zeroes : {0u, 6554u}) {
    const Dropout dropout = {0x123456789abcdefull, 77, zeroes};
    for (int64_t rows : {1, 3, 64, 65}) {
      for (int64_t width : {1, 2, 7, 8, 17, 48, 130, 1024}) {
        check_rows(table, rows, width, dropout);
      }
    }
    for (int64_t length : {1, 2, 15, 16, 17, 33, 130}) {
      for (int64_t size : {1, 3, 8, 16, 64, 80}) {
        check_attention(table, length, size, dropout);
      }
    }
  }
  for (int64_t count : {1, 2, 7, 16, 31, 130, 4097}) {
    check_cross_entropy(table, count);
    check_optimizers(table, count);
  }
  std::printf("%s\n", name);
}

}  // namespace

int main() {
  check(bert::kernels_generic(), "generic");
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    check(bert::kernels_avx2(), "avx2");
  }
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl")) {
    check(bert::kernels_avx512(), "avx512");
  }
  return 0;
}
