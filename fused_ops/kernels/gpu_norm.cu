// Dropout, residual and layer norm on a GPU; see gpu_kernels.h.
//
// A block's threads (x, y) work on rows y, each thread on the same K columns of
// row after row, so that it keeps their parameters and sums. While a row is
// added up, the next one is under way.

#include "fused_ops/kernels/gpu_sums.cuh"

namespace {

// A block for accesses of V values and K columns a thread. Rows that cannot be
// read in wide accesses take more threads instead.
template <int V, int K>
struct Block {
  static constexpr int kThreads = V == 1 ? 1024 : ::kThreads;
  static constexpr int kWarps = kThreads / kWarp;
  // Rows of two warps or more, which need a barrier each: there are 15 beside
  // that of the whole block.
  static constexpr int kRows = kWarps / 2 < 15 ? kWarps / 2 : 15;
  // Blocks that share a multiprocessor, by the registers that they need.
  static constexpr int kShared =
      V == 1 ? 1 : K == 4 ? 4 : K == 8 ? 3 : K == 16 ? 2 : 1;
};

__device__ __forceinline__ float2 operator+(float2 a, float2 b) {
  return make_float2(a.x + b.x, a.y + b.y);
}

__device__ __forceinline__ float exchanged(float x, int offset) {
  return __shfl_xor_sync(kAllLanes, x, offset);
}

__device__ __forceinline__ float2 exchanged(float2 x, int offset) {
  return make_float2(exchanged(x.x, offset), exchanged(x.y, offset));
}

// The sum over a row's threads, known to all of them. `of_warps` may be used
// again after another call with other memory. Of rows of two warps or more a
// block has at most kRows.
template <int kRows, typename F>
__device__ __forceinline__ F row_sum(F x, F* of_warps) {
#pragma unroll
  for (int offset = kWarp / 2; offset; offset /= 2) {
    x = x + exchanged(x, offset);
  }
  if (blockDim.x == kWarp) return x;
  const int warps = blockDim.x / kWarp;
  of_warps += threadIdx.y * warps;
  if (threadIdx.x % kWarp == 0) of_warps[threadIdx.x / kWarp] = x;
  // A row's threads wait for each other alone. With constants the compiler
  // knows how many barriers that takes.
#pragma unroll
  for (int y = 0; y < kRows; ++y) {
    if (threadIdx.y == y) {
      asm volatile("bar.sync %0, %1;" : : "r"(y + 1), "r"(blockDim.x)
                   : "memory");
    }
  }
  x = of_warps[0];
  for (int i = 1; i < warps; ++i) x = x + of_warps[i];
  return x;
}

// The masks of V values of a row, 0 or 1 / (1 - rate); `column` is a multiple
// of V.
template <int V>
__device__ __forceinline__ void mask_of(const BertDropout& dropout, int column,
                                        int row, float keep, float* mask) {
  uint32_t words[4];
  random_words(dropout, static_cast<uint32_t>(column / 8),
               static_cast<uint32_t>(row), words);
  if (V < 8 && column & 4) {
    words[0] = words[2];
    words[1] = words[3];
  }
  if (V < 4 && column & 2) words[0] = words[1];
  if (V < 2 && column & 1) words[0] >>= 16;
#pragma unroll
  for (int k = 0; k < V; ++k) {
    // An odd value is the upper half, and the lower one decides nothing.
    const uint32_t value = k % 2 ? words[k / 2] : words[k / 2] << 16;
    mask[k] = value < dropout.zeroes << 16 ? 0.0f : keep;
  }
}

__device__ __forceinline__ int64_t place(int row, int width, int column) {
  return static_cast<int64_t>(row) * width + column;
}

template <typename T, int V, int K>
__global__ void __launch_bounds__(Block<V, K>::kThreads, Block<V, K>::kShared)
dropout_add_norm(const T* x, const float* bias, const T* residual,
                 const float* gamma, const float* beta, BertDropout dropout,
                 int rows, int width, T* z, float* mean, float* scale,
                 T* y) {
  constexpr int N = K / V, kRows = Block<V, K>::kRows;
  __shared__ float sums[2][Block<V, K>::kWarps];
  const float keep = keep_scale(dropout);
  const float share = 1.0f / static_cast<float>(width);
  const int step = gridDim.x * blockDim.y, begin = blockIdx.x * blockDim.y;
  const int first_row = begin + threadIdx.y;
  float b[K], g[K], shift[K];
  Packed<T, V> next_x[N], next_residual[N];
#pragma unroll
  for (int n = 0; n < N; ++n) {
    const int column = (n * blockDim.x + threadIdx.x) * V;
    if (column >= width) continue;
    load_floats<V>(bias + column, b + n * V);
    load_floats<V>(gamma + column, g + n * V);
    load_floats<V>(beta + column, shift + n * V);
    if (first_row < rows) {
      const int64_t at = place(first_row, width, column);
      next_x[n] = fetch<V>(x + at);
      next_residual[n] = fetch<V>(residual + at);
    }
  }
  for (int first = begin; first < rows; first += step) {
    const int row = first + threadIdx.y;
    float value[K];
    float total = 0.0f;
#pragma unroll
    for (int n = 0; n < N; ++n) {
      const int column = (n * blockDim.x + threadIdx.x) * V;
      if (column >= width || row >= rows) continue;
      float* here = value + n * V;
      float left[V], mask[V];
      unpack(next_x[n], here);
      unpack(next_residual[n], left);
#pragma unroll
      for (int k = 0; k < V; ++k) mask[k] = 1.0f;
      if (dropout.zeroes) mask_of<V>(dropout, column, row, keep, mask);
#pragma unroll
      for (int k = 0; k < V; ++k) {
        // As it is stored: the backward pass sees no other.
        here[k] = rounded<T>((here[k] + b[n * V + k]) * mask[k] + left[k]);
        total += here[k];
      }
      store<V>(here, z + place(row, width, column));
      if (row + step < rows) {
        const int64_t at = place(row + step, width, column);
        next_x[n] = fetch<V>(x + at);
        next_residual[n] = fetch<V>(residual + at);
      }
    }
    const float center = row_sum<kRows>(total, sums[0]) * share;
    float squares = 0.0f;
#pragma unroll
    for (int n = 0; n < N; ++n) {
      const int column = (n * blockDim.x + threadIdx.x) * V;
      if (column >= width || row >= rows) continue;
#pragma unroll
      for (int k = 0; k < V; ++k) {
        value[n * V + k] -= center;
        squares += value[n * V + k] * value[n * V + k];
      }
    }
    squares = row_sum<kRows>(squares, sums[1]);
    const float rate = rsqrtf(squares * share + 1e-12f);
    if (threadIdx.x == 0 && row < rows) {
      mean[row] = center;
      scale[row] = rate;
    }
#pragma unroll
    for (int n = 0; n < N; ++n) {
      const int column = (n * blockDim.x + threadIdx.x) * V;
      if (column >= width || row >= rows) continue;
      float* here = value + n * V;
#pragma unroll
      for (int k = 0; k < V; ++k) {
        here[k] = here[k] * rate * g[n * V + k] + shift[n * V + k];
      }
      store<V>(here, y + place(row, width, column));
    }
  }
}

// With n = (z - mean) scale and g = dy gamma:
// dz = scale (g - mean(g) - n mean(g n)).
template <typename T, int V, int K>
__global__ void __launch_bounds__(Block<V, K>::kThreads, Block<V, K>::kShared)
dropout_add_norm_grad(const T* dy, const T* z, const float* mean,
                      const float* scale, const float* gamma,
                      BertDropout dropout, int rows, int width,
                      float* partial, T* dx, T* dz) {
  constexpr int N = K / V, kRows = Block<V, K>::kRows;
  __shared__ float2 sums[2][Block<V, K>::kWarps];
  const float keep = keep_scale(dropout);
  const float share = 1.0f / static_cast<float>(width);
  const int step = gridDim.x * blockDim.y, begin = blockIdx.x * blockDim.y;
  const int first_row = begin + threadIdx.y;
  float gain[K], dbias[K], dgamma[K], dbeta[K];
  Packed<T, V> next_dy[N], next_z[N];
  float next_center = 0.0f, next_rate = 0.0f;
  if (first_row < rows) {
    next_center = mean[first_row];
    next_rate = scale[first_row];
  }
#pragma unroll
  for (int k = 0; k < K; ++k) dbias[k] = dgamma[k] = dbeta[k] = 0.0f;
#pragma unroll
  for (int n = 0; n < N; ++n) {
    const int column = (n * blockDim.x + threadIdx.x) * V;
    if (column >= width) continue;
    load_floats<V>(gamma + column, gain + n * V);
    if (first_row < rows) {
      const int64_t at = place(first_row, width, column);
      next_dy[n] = fetch<V>(dy + at);
      next_z[n] = fetch<V>(z + at);
    }
  }
  int turn = 0;
  for (int first = begin; first < rows; first += step) {
    const int row = first + threadIdx.y;
    const float center = next_center, rate = next_rate;
    if (row + step < rows) {
      next_center = mean[row + step];
      next_rate = scale[row + step];
    }
    Packed<T, V> this_dy[N], this_z[N];
    float2 both = make_float2(0.0f, 0.0f);
#pragma unroll
    for (int n = 0; n < N; ++n) {
      const int column = (n * blockDim.x + threadIdx.x) * V;
      if (column >= width || row >= rows) continue;
      this_dy[n] = next_dy[n];
      this_z[n] = next_z[n];
      if (row + step < rows) {
        const int64_t at = place(row + step, width, column);
        next_dy[n] = fetch<V>(dy + at);
        next_z[n] = fetch<V>(z + at);
      }
      float d[V], normal[V];
      unpack(this_dy[n], d);
      unpack(this_z[n], normal);
#pragma unroll
      for (int k = 0; k < V; ++k) {
        normal[k] = (normal[k] - center) * rate;
        dgamma[n * V + k] += d[k] * normal[k];
        dbeta[n * V + k] += d[k];
        d[k] *= gain[n * V + k];
        both.x += d[k];
        both.y += d[k] * normal[k];
      }
    }
    both = row_sum<kRows>(both, sums[turn]);
    turn ^= 1;
    const float shift = -rate * both.x * share;
    const float slope = -rate * rate * both.y * share;
#pragma unroll
    for (int n = 0; n < N; ++n) {
      const int column = (n * blockDim.x + threadIdx.x) * V;
      if (column >= width || row >= rows) continue;
      float d[V], normal[V], mask[V];
      unpack(this_dy[n], d);
      unpack(this_z[n], normal);
#pragma unroll
      for (int k = 0; k < V; ++k) {
        d[k] = d[k] * gain[n * V + k] * rate + shift +
            (normal[k] - center) * slope;
        mask[k] = 1.0f;
      }
      store<V>(d, dz + place(row, width, column));
      if (dropout.zeroes) mask_of<V>(dropout, column, row, keep, mask);
#pragma unroll
      for (int k = 0; k < V; ++k) {
        d[k] *= mask[k];
        dbias[n * V + k] += d[k];
      }
      store<V>(d, dx + place(row, width, column));
    }
  }
  partial += blockIdx.x * static_cast<int64_t>(width);
  const int64_t vector = gridDim.x * static_cast<int64_t>(width);
#pragma unroll
  for (int n = 0; n < N; ++n) {
    const int64_t left = n * blockDim.x * V;
    constexpr int kBlock = Block<V, K>::kThreads;
    write_partial<V, kBlock>(dbias + n * V, left, width, partial);
    write_partial<V, kBlock>(dgamma + n * V, left, width, partial + vector);
    write_partial<V, kBlock>(dbeta + n * V, left, width, partial + 2 * vector);
  }
}

// The arguments of either direction; without dy it is the forward one.
struct Arguments {
  const void *dy, *x, *residual, *z;
  const float *bias, *gamma, *beta;
  float *mean, *scale;
  BertDropout dropout;
  int64_t rows, width;
  void *scratch, *first, *second;  // z and y, or dx and dz
  Sums sums;
  cudaStream_t stream;
};

template <typename T, int V, int K>
cudaError_t launch(const Arguments& a) {
  // The threads of a row, K columns each.
  const int threads = static_cast<int>(
      parts_of(parts_of(a.width, K), kWarp) * kWarp);
  const int most = threads == kWarp ? kWarp : Block<V, K>::kRows;
  const dim3 block(threads, static_cast<unsigned>(smaller(
      most, Block<V, K>::kThreads / threads)));
  const int64_t strips = smaller(
      smaller(strips_of(a.rows, a.width), parts_of(a.rows, block.y)),
      Block<V, K>::kShared * multiprocessors());
  const unsigned grid = static_cast<unsigned>(strips);
  const int width = static_cast<int>(a.width);
  const int rows = static_cast<int>(a.rows);
  T *first = static_cast<T*>(a.first), *second = static_cast<T*>(a.second);
  if (!a.dy) {
    if (!strips) return cudaSuccess;
    dropout_add_norm<T, V, K><<<grid, block, 0, a.stream>>>(
        static_cast<const T*>(a.x), a.bias, static_cast<const T*>(a.residual),
        a.gamma, a.beta, a.dropout, rows, width, first, a.mean, a.scale,
        second);
    return cudaGetLastError();
  }
  float* partial = static_cast<float*>(a.scratch);
  if (strips) {
    dropout_add_norm_grad<T, V, K><<<grid, block, 0, a.stream>>>(
        static_cast<const T*>(a.dy), static_cast<const T*>(a.z), a.mean,
        a.scale, a.gamma, a.dropout, rows, width, partial, first, second);
  }
  return finish_sums(partial, strips, a.width, 3, a.sums, a.stream);
}

struct Typed {
  const Arguments& a;
  template <typename T>
  cudaError_t operator()(T*) const {
    constexpr int V = Widest<T>::value;
    if (a.width < 1 || a.width > 32 * kThreads || a.rows > 1 << 30) {
      return cudaErrorInvalidValue;
    }
    if (!divides(V, a.width, {a.dy, a.x, a.residual, a.z, a.bias, a.gamma,
                              a.beta, a.first, a.second})) {
      return launch<T, 1, 8>(a);
    }
    if (a.width <= V * kThreads) return launch<T, V, V>(a);
    if (a.width <= 16 * kThreads) return launch<T, V, 16>(a);
    return launch<T, V, 32>(a);
  }
};

}  // namespace

extern "C" {

cudaError_t bert_gpu_dropout_add_norm(
    int type, const void* x, const float* bias, const void* residual,
    const float* gamma, const float* beta, BertDropout dropout, int64_t rows,
    int64_t width, void* z, float* mean, float* scale, void* y,
    cudaStream_t stream) {
  const Arguments a = {nullptr, x,     residual, nullptr, bias,    gamma,
                       beta,    mean,  scale,    dropout, rows,    width,
                       nullptr, z,     y,        {},      stream};
  return with_type(type, Typed{a});
}

cudaError_t bert_gpu_dropout_add_norm_grad(
    int type, const void* dy, const void* z, const float* mean,
    const float* scale, const float* gamma, BertDropout dropout, int64_t rows,
    int64_t width, void* scratch, void* dx, void* dz, float* dbias,
    float* dgamma, float* dbeta, cudaStream_t stream) {
  Arguments a = {};
  a.dy = dy;
  a.z = z;
  a.mean = const_cast<float*>(mean);
  a.scale = const_cast<float*>(scale);
  a.gamma = gamma;
  a.dropout = dropout;
  a.rows = rows;
  a.width = width;
  a.scratch = scratch;
  a.first = dx;
  a.second = dz;
  a.sums = {{dbias, dgamma, dbeta}};
  a.stream = stream;
  return with_type(type, Typed{a});
}

}  // extern "C"
