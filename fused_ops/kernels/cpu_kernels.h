// The kernels' arithmetic on a CPU, without TensorFlow.
//
// One table of functions for each kind of processor, all compiled from
// cpu_kernels.cc. None of them starts a thread or allocates: the caller divides
// rows, sequences and parameters among its threads, and gives scratch memory.
// Sums over rows are made block by block (`kRowBlock`), so that they do not
// depend on the number of threads.

#ifndef FUSED_OPS_KERNELS_CPU_KERNELS_H_
#define FUSED_OPS_KERNELS_CPU_KERNELS_H_

#include <cstdint>

namespace bert {

// Rows whose gradients of biases are added up before the blocks are.
constexpr int64_t kRowBlock = 64;

// Which dropout mask, and how much of it is zero.
struct Dropout {
  uint64_t key;     // (seed, rank, place)
  uint64_t counter; // (step, micro-batch)
  // Zeroes in 65536, so that the mask is made of 16 bits a value; 0: none.
  uint32_t zeroes;
};

// An update of AdamW or the direction of LAMB; see optimization.py.
struct AdamStep {
  float beta_1, beta_2, epsilon, decay;
  float rate;          // 0 for LAMB, which applies its direction later
  float gradient_scale; // clips and unscales
  float correction_1, correction_2; // 1 - beta^t, or 1
};

struct Kernels {
  // y = gelu(x + bias), [rows, width].
  void (*bias_gelu)(const float* x, const float* bias, int64_t rows,
                    int64_t width, bool exact, float* y);
  // dx = dy gelu'(x + bias); dbias += the sum of dx over the rows.
  void (*bias_gelu_grad)(const float* dy, const float* x, const float* bias,
                         int64_t rows, int64_t width, bool exact, float* dx,
                         float* dbias);

  // z = dropout(x + bias) + residual; y = gamma (z - mean) / deviation + beta.
  // Row i of these is row first + i of the mask. Keeps z and, a row, the mean
  // and 1 / deviation.
  void (*dropout_add_norm)(const float* x, const float* bias,
                           const float* residual, const float* gamma,
                           const float* beta, const Dropout& dropout,
                           int64_t first, int64_t rows, int64_t width, float* z,
                           float* mean, float* scale, float* y);
  // dx of x, dz of residual; dbias, dgamma, dbeta get the rows' sums added.
  void (*dropout_add_norm_grad)(const float* dy, const float* z,
                                const float* mean, const float* scale,
                                const float* gamma, const Dropout& dropout,
                                int64_t first, int64_t rows, int64_t width,
                                float* dx, float* dz, float* dbias,
                                float* dgamma, float* dbeta);

  // One head of one sequence of `length` tokens: out = dropout(softmax(query
  // key^T * scale)) value. The matrices are [length, size] with `stride` floats
  // from row to row; `first` is the number of the first token in the batch.
  // Keeps log(sum(exp(scores))) a row. `scratch` has
  // attention_scratch(length, size) floats.
  void (*attention)(const float* query, const float* key, const float* value,
                    int64_t length, int64_t size, int64_t stride, float scale,
                    const Dropout& dropout, int64_t first, int64_t head,
                    float* scratch, float* out, float* log_sum);
  void (*attention_grad)(const float* dout, const float* query,
                         const float* key, const float* value,
                         const float* out, const float* log_sum,
                         int64_t length, int64_t size, int64_t stride,
                         float scale, const Dropout& dropout, int64_t first,
                         int64_t head, float* scratch, float* dquery,
                         float* dkey, float* dvalue);

  // Loss of one row of logits + bias, and its log(sum(exp)).
  void (*cross_entropy)(const float* logits, const float* bias, int64_t classes,
                        int32_t label, float* loss, float* log_sum);
  // dlogits = dloss (softmax(logits + bias) - one_hot(label)); added to dbias.
  void (*cross_entropy_grad)(float dloss, const float* logits,
                             const float* bias, int64_t classes, int32_t label,
                             float log_sum, float* dlogits, float* dbias);

  // w -= rate (m' / (sqrt(v') + epsilon) + decay w), in one pass.
  void (*adam)(const AdamStep& step, int64_t count, const float* gradient,
               float* m, float* v, float* w);
  // direction = m' / (sqrt(v') + epsilon) + decay w, and the sums of squares of
  // w and of the direction.
  void (*lamb)(const AdamStep& step, int64_t count, const float* gradient,
               float* m, float* v, const float* w, float* direction,
               double* square_w, double* square_direction);
  // w -= rate direction.
  void (*subtract)(float rate, int64_t count, const float* direction, float* w);
  // The sum of squares.
  double (*sum_of_squares)(int64_t count, const float* x);
};

// Rows of scores that attention works on at a time.
constexpr int64_t kAttentionRows = 48;

// Floats of scratch memory that either direction of attention needs.
inline int64_t attention_scratch(int64_t length, int64_t size) {
  const int64_t wide = (length + 15) / 16 * 16, deep = (size + 15) / 16 * 16;
  return 2 * size * wide + 3 * length * deep +
         kAttentionRows * (3 * wide + 2 * deep);
}

// The tables that were compiled; the processor may not have what one needs.
const Kernels& kernels_generic();
const Kernels& kernels_avx2();
const Kernels& kernels_avx512();

}  // namespace bert

#endif  // FUSED_OPS_KERNELS_CPU_KERNELS_H_
