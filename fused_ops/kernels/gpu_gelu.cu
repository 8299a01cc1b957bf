// Bias and GELU on a GPU; see gpu_kernels.h.

#include "fused_ops/kernels/gpu_sums.cuh"

namespace {

// 0.5 (1 + tanh(z)) = 1 / (1 + e^-2z), z = sqrt(2 / pi) (u + 0.044715 u^3).
constexpr float kGelu1 = 1.5957691216057308f;
constexpr float kGelu3 = 0.07135481282626036f;

// e^-2z; finite, so that its product with a gate of zero is no NaN.
__device__ __forceinline__ float gelu_rest(float u) {
  const float power = -u * (kGelu1 * kLog2E + kGelu3 * kLog2E * u * u);
  return power_of_2(fminf(power, 126.0f));
}

// The normal distribution, as in cpu_kernels.cc: Abramowitz and Stegun, 7.1.26.
__device__ __forceinline__ float normal_cdf(float u, float bell) {
  const float t =
      reciprocal(1.0f + 0.3275911f * 0.70710678118654752f * fabsf(u));
  const float tail = 0.5f * bell * t *
      (0.254829592f + t * (-0.284496736f + t * (1.421413741f +
       t * (-1.453152027f + t * 1.061405429f))));
  return u > 0.0f ? 1.0f - tail : tail;
}

__device__ __forceinline__ float bell_of(float u) {
  return power_of_2(-0.5f * kLog2E * u * u);
}

template <bool kExact>
__device__ __forceinline__ float gelu(float u) {
  return kExact ? u * normal_cdf(u, bell_of(u))
                : u * reciprocal(1.0f + gelu_rest(u));
}

template <bool kExact>
__device__ __forceinline__ float gelu_slope(float u) {
  if (kExact) {
    const float bell = bell_of(u);
    return normal_cdf(u, bell) + u * bell * 0.3989422804014327f;
  }
  const float rest = gelu_rest(u), gate = reciprocal(1.0f + rest);
  return gate +
      u * gate * (rest * gate) * (kGelu1 + 3.0f * kGelu3 * u * u);
}

template <typename T, int V, bool kExact>
__global__ void __launch_bounds__(kThreads, Flow<T, V>::kBlocks)
bias_gelu(const T* x, const float* bias, int64_t rows, int64_t width, T* y) {
  constexpr int kDepth = Flow<T, V>::kDepth;
  const int64_t column =
      (blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x) * V;
  if (column >= width) return;
  float b[V];
  load_floats<V>(bias + column, b);
  const int64_t step = static_cast<int64_t>(gridDim.y) * blockDim.y;
  for (int64_t first = blockIdx.y * blockDim.y + threadIdx.y; first < rows;
       first += kDepth * step) {
    Packed<T, V> packed[kDepth];
#pragma unroll
    for (int i = 0; i < kDepth; ++i) {
      const int64_t row = first + i * step;
      if (row < rows) packed[i] = fetch<V>(x + row * width + column);
    }
#pragma unroll
    for (int i = 0; i < kDepth; ++i) {
      const int64_t row = first + i * step;
      if (row >= rows) break;
      float u[V];
      unpack(packed[i], u);
#pragma unroll
      for (int k = 0; k < V; ++k) u[k] = gelu<kExact>(u[k] + b[k]);
      store<V>(u, y + row * width + column);
    }
  }
}

template <typename T, int V, bool kExact>
__global__ void __launch_bounds__(kThreads, Flow<T, V>::kBlocks)
bias_gelu_grad(const T* dy, const T* x, const float* bias, int64_t rows,
               int64_t width, float* partial, T* dx) {
  constexpr int kDepth = Flow<T, V>::kDepth / 2;
  const int64_t column =
      (blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x) * V;
  const bool is_there = column < width;
  float b[V], sum[V];
#pragma unroll
  for (int k = 0; k < V; ++k) sum[k] = 0.0f;
  if (is_there) load_floats<V>(bias + column, b);
  const int64_t step = static_cast<int64_t>(gridDim.y) * blockDim.y;
  for (int64_t first = blockIdx.y * blockDim.y + threadIdx.y;
       is_there && first < rows; first += kDepth * step) {
    Packed<T, V> packed_x[kDepth], packed_dy[kDepth];
#pragma unroll
    for (int i = 0; i < kDepth; ++i) {
      const int64_t row = first + i * step;
      if (row < rows) {
        packed_x[i] = fetch<V>(x + row * width + column);
        packed_dy[i] = fetch<V>(dy + row * width + column);
      }
    }
#pragma unroll
    for (int i = 0; i < kDepth; ++i) {
      const int64_t row = first + i * step;
      if (row >= rows) break;
      float u[V], d[V];
      unpack(packed_x[i], u);
      unpack(packed_dy[i], d);
#pragma unroll
      for (int k = 0; k < V; ++k) {
        d[k] *= gelu_slope<kExact>(u[k] + b[k]);
        sum[k] += d[k];
      }
      store<V>(d, dx + row * width + column);
    }
  }
  write_partial<V>(sum, blockIdx.x * static_cast<int64_t>(blockDim.x) * V,
                   width, partial + blockIdx.y * width);
}

// The arguments of either direction; without dy it is the forward one.
struct Arguments {
  const void *dy, *x;
  const float* bias;
  int64_t rows, width;
  void* scratch;
  void* to;
  float* dbias;
  cudaStream_t stream;
};

template <typename T, int V, bool kExact>
void launch(const Arguments& a) {
  const Columns columns(a.width, V);
  const int64_t strips =
      columns.strips(a.rows, a.width, Flow<T, V>::kBlocks);
  const dim3 grid(columns.parts, static_cast<unsigned>(strips));
  const T* x = static_cast<const T*>(a.x);
  T* to = static_cast<T*>(a.to);
  if (!a.dy) {
    if (!strips) return;
    bias_gelu<T, V, kExact><<<grid, columns.block, 0, a.stream>>>(
        x, a.bias, a.rows, a.width, to);
    return;
  }
  float* partial = static_cast<float*>(a.scratch);
  if (strips) {
    bias_gelu_grad<T, V, kExact><<<grid, columns.block, 0, a.stream>>>(
        static_cast<const T*>(a.dy), x, a.bias, a.rows, a.width, partial, to);
  }
  finish_sums(partial, strips, a.width, 1, {{a.dbias}}, a.stream);
}

template <typename T>
struct Launch {
  const Arguments& a;
  int exact;
  template <int V>
  void operator()(Values<V>) const {
    if (exact) {
      launch<T, V, true>(a);
    } else {
      launch<T, V, false>(a);
    }
  }
};

struct Typed {
  const Arguments& a;
  int exact;
  template <typename T>
  cudaError_t operator()(T*) const {
    if (a.width < 1) return cudaErrorInvalidValue;
    with_values<T>(a.width, {a.dy, a.x, a.bias, a.to}, Launch<T>{a, exact});
    return cudaGetLastError();
  }
};

}  // namespace

extern "C" {

int64_t bert_gpu_scratch(int64_t rows, int64_t width, int vectors) {
  return strips_of(rows, width) * width * vectors * sizeof(float);
}

cudaError_t bert_gpu_bias_gelu(int type, const void* x, const float* bias,
                               int64_t rows, int64_t width, int exact, void* y,
                               cudaStream_t stream) {
  const Arguments a = {nullptr, x, bias, rows, width, nullptr, y, nullptr,
                       stream};
  return with_type(type, Typed{a, exact});
}

cudaError_t bert_gpu_bias_gelu_grad(int type, const void* dy, const void* x,
                                    const float* bias, int64_t rows,
                                    int64_t width, int exact, void* scratch,
                                    void* dx, float* dbias,
                                    cudaStream_t stream) {
  const Arguments a = {dy, x, bias, rows, width, scratch, dx, dbias, stream};
  return with_type(type, Typed{a, exact});
}

}  // extern "C"
