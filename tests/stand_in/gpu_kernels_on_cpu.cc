// The functions of gpu_kernels.h, computed by cpu_kernels.h: shows without a GPU
// that the operations of gpu_ops.cc hand over what the kernels ask for.

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "fused_ops/kernels/cpu_kernels.h"
#include "fused_ops/kernels/gpu_kernels.h"
#include "tensorflow/core/framework/types.h"

const char* cudaGetErrorString(cudaError_t) { return "invalid value"; }

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes,
                            cudaMemcpyKind, cudaStream_t) {
  std::memcpy(to, from, bytes);
  return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t) {
  std::memset(to, value, bytes);
  return cudaSuccess;
}

namespace bert {
// The tables that the operations for CPUs, which nobody calls here, name.
const Kernels& kernels_avx2() { return kernels_generic(); }
const Kernels& kernels_avx512() { return kernels_generic(); }

namespace {

const Kernels& table() { return kernels_generic(); }

Dropout dropout_of(const BertDropout& dropout) {
  return {dropout.key, dropout.counter, dropout.zeroes};
}

// Values of a type as floats.
class Floats {
 public:
  Floats(int type, const void* values, int64_t count) : all_(count) {
    for (int64_t i = 0; i < count; ++i) {
      all_[i] =
          type == kBertHalf
              ? static_cast<float>(static_cast<const Eigen::half*>(values)[i])
              : type == kBertBfloat
                    ? static_cast<float>(
                          static_cast<const tensorflow::bfloat16*>(values)[i])
                    : static_cast<const float*>(values)[i];
    }
  }
  explicit Floats(int64_t count) : all_(count) {}
  operator float*() { return all_.data(); }
  void round_to(int type, void* values) const {
    for (size_t i = 0; i < all_.size(); ++i) {
      if (type == kBertHalf) {
        static_cast<Eigen::half*>(values)[i] = Eigen::half(all_[i]);
      } else if (type == kBertBfloat) {
        static_cast<tensorflow::bfloat16*>(values)[i] =
            tensorflow::bfloat16(all_[i]);
      } else {
        static_cast<float*>(values)[i] = all_[i];
      }
    }
  }

 private:
  std::vector<float> all_;
};

// All of the scratch memory that was asked for has to be there.
void use(void* scratch, int64_t bytes) { std::memset(scratch, 255, bytes); }

AdamStep step_of(const BertStep& step, bool is_lamb) {
  AdamStep result;
  result.beta_1 = step.beta_1;
  result.beta_2 = step.beta_2;
  result.epsilon = step.epsilon;
  result.rate = *step.rate;
  result.gradient_scale = *step.gradient_scale;
  result.correction_1 = is_lamb ? *step.correction_1 : 1.0f;
  result.correction_2 = is_lamb ? *step.correction_2 : 1.0f;
  return result;
}

// Calls work(first row, rows, head, its first column) for all heads.
template <typename Work>
void for_each_head(const int32_t* starts, int64_t batch, int heads, int size,
                   Work work) {
  for (int64_t i = 0; i < batch; ++i) {
    for (int head = 0; head < heads; ++head) {
      const int64_t row = starts[i], rows = starts[i + 1] - row;
      if (rows) work(row, rows, head, row * heads * size + head * size);
    }
  }
}

}  // namespace
}  // namespace bert

using namespace bert;  // NOLINT

extern "C" {

int64_t bert_gpu_scratch(int64_t rows, int64_t width, int vectors) {
  return 4 * (rows + width) * vectors;
}

cudaError_t bert_gpu_bias_gelu(int type, const void* x, const float* bias,
                               int64_t rows, int64_t width, int exact, void* y,
                               cudaStream_t) {
  const char* broken = std::getenv("STAND_IN_FAILS");
  if (broken && broken == std::string("bert_gpu_bias_gelu")) {
    return cudaErrorInvalidValue;
  }
  Floats from(type, x, rows * width), to(rows * width);
  table().bias_gelu(from, bias, rows, width, exact, to);
  to.round_to(type, y);
  return cudaSuccess;
}

cudaError_t bert_gpu_bias_gelu_grad(int type, const void* dy, const void* x,
                                    const float* bias, int64_t rows,
                                    int64_t width, int exact, void* scratch,
                                    void* dx, float* dbias, cudaStream_t) {
  use(scratch, bert_gpu_scratch(rows, width, 1));
  Floats above(type, dy, rows * width), from(type, x, rows * width),
      to(rows * width);
  std::fill(dbias, dbias + width, 0.0f);
  table().bias_gelu_grad(above, from, bias, rows, width, exact, to, dbias);
  to.round_to(type, dx);
  return cudaSuccess;
}

cudaError_t bert_gpu_dropout_add_norm(
    int type, const void* x, const float* bias, const void* residual,
    const float* gamma, const float* beta, BertDropout dropout, int64_t rows,
    int64_t width, void* z, float* mean, float* scale, void* y, cudaStream_t) {
  const int64_t count = rows * width;
  Floats from(type, x, count), left(type, residual, count), sum(count),
      to(count);
  table().dropout_add_norm(from, bias, left, gamma, beta, dropout_of(dropout),
                           0, rows, width, sum, mean, scale, to);
  sum.round_to(type, z);
  // Of z as it is stored.
  Floats stored(type, z, count), none(count), zero(count);
  table().dropout_add_norm(stored, none, zero, gamma, beta, Dropout{0, 0, 0}, 0,
                           rows, width, sum, mean, scale, to);
  to.round_to(type, y);
  return cudaSuccess;
}

cudaError_t bert_gpu_dropout_add_norm_grad(
    int type, const void* dy, const void* z, const float* mean,
    const float* scale, const float* gamma, BertDropout dropout, int64_t rows,
    int64_t width, void* scratch, void* dx, void* dz, float* dbias,
    float* dgamma, float* dbeta, cudaStream_t) {
  use(scratch, bert_gpu_scratch(rows, width, 3));
  const int64_t count = rows * width;
  Floats above(type, dy, count), sum(type, z, count), x(count), left(count);
  for (float* one : {dbias, dgamma, dbeta}) std::fill(one, one + width, 0.0f);
  table().dropout_add_norm_grad(above, sum, mean, scale, gamma,
                                dropout_of(dropout), 0, rows, width, x, left,
                                dbias, dgamma, dbeta);
  x.round_to(type, dx);
  left.round_to(type, dz);
  return cudaSuccess;
}

cudaError_t bert_gpu_attention(int type, const void* query, const void* key,
                               const void* value, const int32_t* starts,
                               BertDropout dropout, int64_t batch,
                               int64_t tokens, int heads, int size, void* out,
                               float* log_sum, cudaStream_t) {
  const int64_t width = heads * size, count = tokens * width;
  Floats q(type, query, count), k(type, key, count), v(type, value, count),
      to(count);
  std::vector<float> scratch(attention_scratch(tokens, size));
  for_each_head(starts, batch, heads, size, [&](
      int64_t row, int64_t rows, int64_t head, int64_t at) {
    table().attention(q + at, k + at, v + at, rows, size, width,
                      1 / std::sqrt(float(size)), dropout_of(dropout), row,
                      head, scratch.data(), to + at,
                      log_sum + head * tokens + row);
  });
  to.round_to(type, out);
  return cudaSuccess;
}

cudaError_t bert_gpu_attention_grad(
    int type, const void* dout, const void* query, const void* key,
    const void* value, const void* out, const float* log_sum,
    const int32_t* starts, BertDropout dropout, int64_t batch, int64_t tokens,
    int heads, int size, float* scratch, void* dquery, void* dkey, void* dvalue,
    cudaStream_t) {
  use(scratch, 4 * heads * tokens);
  const int64_t width = heads * size, count = tokens * width;
  Floats above(type, dout, count), q(type, query, count), k(type, key, count),
      v(type, value, count), o(type, out, count), dq(count), dk(count),
      dv(count);
  std::vector<float> memory(attention_scratch(tokens, size));
  for_each_head(starts, batch, heads, size, [&](
      int64_t row, int64_t rows, int64_t head, int64_t at) {
    table().attention_grad(above + at, q + at, k + at, v + at, o + at,
                           log_sum + head * tokens + row, rows, size, width,
                           1 / std::sqrt(float(size)), dropout_of(dropout), row,
                           head, memory.data(), dq + at, dk + at, dv + at);
  });
  dq.round_to(type, dquery);
  dk.round_to(type, dkey);
  dv.round_to(type, dvalue);
  return cudaSuccess;
}

cudaError_t bert_gpu_cross_entropy(int type, const void* logits,
                                   const float* bias, const int32_t* labels,
                                   int64_t rows, int64_t classes, float* loss,
                                   float* log_sum, cudaStream_t) {
  Floats from(type, logits, rows * classes);
  for (int64_t i = 0; i < rows; ++i) {
    table().cross_entropy(from + i * classes, bias, classes, labels[i],
                          loss + i, log_sum + i);
  }
  return cudaSuccess;
}

cudaError_t bert_gpu_cross_entropy_grad(
    int type, const float* dloss, const void* logits, const float* bias,
    const int32_t* labels, const float* log_sum, int64_t rows, int64_t classes,
    void* scratch, void* dlogits, float* dbias, cudaStream_t) {
  use(scratch, bert_gpu_scratch(rows, classes, 1));
  Floats from(type, logits, rows * classes), to(rows * classes);
  std::fill(dbias, dbias + classes, 0.0f);
  for (int64_t i = 0; i < rows; ++i) {
    table().cross_entropy_grad(dloss[i], from + i * classes, bias, classes,
                               labels[i], log_sum[i], to + i * classes, dbias);
  }
  to.round_to(type, dlogits);
  return cudaSuccess;
}

cudaError_t bert_gpu_adam(const BertParameter* parameters, int count,
                          BertStep step, cudaStream_t) {
  for (int i = 0; i < count; ++i) {
    const BertParameter& p = parameters[i];
    AdamStep one = step_of(step, false);
    one.decay = p.decay;
    table().adam(one, p.count, p.gradient, p.m, p.v, p.weight);
  }
  return cudaSuccess;
}

int64_t bert_gpu_lamb_scratch(const BertParameter* parameters, int count) {
  int64_t largest = 0;
  for (int i = 0; i < count; ++i) {
    largest = std::max(largest, parameters[i].count);
  }
  return 4 * largest;
}

cudaError_t bert_gpu_lamb(const BertParameter* parameters, int count,
                          BertStep step, void* scratch, cudaStream_t) {
  use(scratch, bert_gpu_lamb_scratch(parameters, count));
  for (int i = 0; i < count; ++i) {
    const BertParameter& p = parameters[i];
    AdamStep one = step_of(step, true);
    one.decay = p.decay;
    double w = 0, u = 0;
    float* direction = static_cast<float*>(scratch);
    table().lamb(one, p.count, p.gradient, p.m, p.v, p.weight, direction, &w,
                 &u);
    const double ratio = p.adapt && w > 0 && u > 0 ? std::sqrt(w / u) : 1.0;
    table().subtract(one.rate * ratio, p.count, direction, p.weight);
  }
  return cudaSuccess;
}

int64_t bert_gpu_global_norm_scratch(const BertTensor*, int count) {
  return 8 * count;
}

cudaError_t bert_gpu_global_norm(const BertTensor* tensors, int count,
                                 void* scratch, float* norm, cudaStream_t) {
  double* squares = static_cast<double*>(scratch);
  for (int i = 0; i < count; ++i) {
    squares[i] = table().sum_of_squares(tensors[i].count, tensors[i].values);
  }
  double total = 0;
  for (int i = 0; i < count; ++i) total += squares[i];
  *norm = std::sqrt(total);
  return cudaSuccess;
}

}  // extern "C"
