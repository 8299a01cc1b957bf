// The kernels on a GPU, without TensorFlow: plain functions that take a stream.
//
// Matrices are row-major. `type` says what x, y and their gradients are made
// of; biases, gamma, beta, statistics and all sums are float32. Pointers are
// the device's unless said otherwise. Each function returns cudaGetLastError(),
// or cudaErrorInvalidValue for what it does not do. Nothing is allocated, and
// no function waits for the device. The same input gives the same bits: sums
// over rows are made strip by strip, without atomics. Dropout is as in
// cpu_kernels.h: the same masks from the same numbers.

#ifndef FUSED_OPS_KERNELS_GPU_KERNELS_H_
#define FUSED_OPS_KERNELS_GPU_KERNELS_H_

#include <cuda_runtime_api.h>

#include <cstdint>

extern "C" {

// kBertBfloat needs CUDA 11 at the build.
enum BertType { kBertFloat = 0, kBertHalf = 1, kBertBfloat = 2 };

struct BertDropout {
  uint64_t key, counter;
  uint32_t zeroes;  // in 65536
};

// Bytes of scratch memory for the sums over rows of a gradient, of `vectors`
// vectors: 1, or 3 for dropout_add_norm's.
int64_t bert_gpu_scratch(int64_t rows, int64_t width, int vectors);

cudaError_t bert_gpu_bias_gelu(int type, const void* x, const float* bias,
                               int64_t rows, int64_t width, int exact, void* y,
                               cudaStream_t stream);
cudaError_t bert_gpu_bias_gelu_grad(int type, const void* dy, const void* x,
                                    const float* bias, int64_t rows,
                                    int64_t width, int exact, void* scratch,
                                    void* dx, float* dbias,
                                    cudaStream_t stream);

// Widths up to 8192, and up to 2^30 rows.
cudaError_t bert_gpu_dropout_add_norm(
    int type, const void* x, const float* bias, const void* residual,
    const float* gamma, const float* beta, struct BertDropout dropout,
    int64_t rows, int64_t width, void* z, float* mean, float* scale, void* y,
    cudaStream_t stream);
cudaError_t bert_gpu_dropout_add_norm_grad(
    int type, const void* dy, const void* z, const float* mean,
    const float* scale, const float* gamma, struct BertDropout dropout,
    int64_t rows, int64_t width, void* scratch, void* dx, void* dz,
    float* dbias, float* dgamma, float* dbeta, cudaStream_t stream);

// Attention within each of `batch` packed sequences, whose rows begin at
// starts[i] and end before starts[i + 1]. query, key, value and out are
// [tokens, heads * size], size at most 128; log_sum is [heads, tokens].
cudaError_t bert_gpu_attention(int type, const void* query, const void* key,
                               const void* value, const int32_t* starts,
                               struct BertDropout dropout, int64_t batch,
                               int64_t tokens, int heads, int size, void* out,
                               float* log_sum, cudaStream_t stream);
// `scratch` has [heads, tokens] floats.
cudaError_t bert_gpu_attention_grad(
    int type, const void* dout, const void* query, const void* key,
    const void* value, const void* out, const float* log_sum,
    const int32_t* starts, struct BertDropout dropout, int64_t batch,
    int64_t tokens, int heads, int size, float* scratch, void* dquery,
    void* dkey, void* dvalue, cudaStream_t stream);

// A label that is not in [0, classes) makes its loss NaN.
cudaError_t bert_gpu_cross_entropy(int type, const void* logits,
                                   const float* bias, const int32_t* labels,
                                   int64_t rows, int64_t classes, float* loss,
                                   float* log_sum, cudaStream_t stream);
cudaError_t bert_gpu_cross_entropy_grad(
    int type, const float* dloss, const void* logits, const float* bias,
    const int32_t* labels, const float* log_sum, int64_t rows, int64_t classes,
    void* scratch, void* dlogits, float* dbias, cudaStream_t stream);

// A variable with its slots and gradient, all float32.
struct BertParameter {
  float *weight, *m, *v;
  const float* gradient;
  int64_t count;
  float decay;
  int32_t adapt;  // LAMB: whether its rate is adapted
};

// See AdamStep in cpu_kernels.h; what changes from step to step is read on the
// device. Adam has no corrections.
struct BertStep {
  float beta_1, beta_2, epsilon;
  const float *rate, *gradient_scale, *correction_1, *correction_2;
};

// The array of parameters is the host's, and free again on return.
cudaError_t bert_gpu_adam(const struct BertParameter* parameters, int count,
                          struct BertStep step, cudaStream_t stream);
// Scratch memory begins at a multiple of 8 bytes, here and below.
int64_t bert_gpu_lamb_scratch(const struct BertParameter* parameters,
                              int count);
cudaError_t bert_gpu_lamb(const struct BertParameter* parameters, int count,
                          struct BertStep step, void* scratch,
                          cudaStream_t stream);

struct BertTensor {
  const float* values;
  int64_t count;
};

// norm = sqrt(sum of squares) of all; the array of tensors is the host's.
int64_t bert_gpu_global_norm_scratch(const struct BertTensor* tensors,
                                     int count);
cudaError_t bert_gpu_global_norm(const struct BertTensor* tensors, int count,
                                 void* scratch, float* norm,
                                 cudaStream_t stream);

}  // extern "C"

#endif  // FUSED_OPS_KERNELS_GPU_KERNELS_H_
