// Sums over the rows of a matrix, for the gradients of biases.
//
// A block's threads (x, y) take columns by x and rows by y, and keep the sums
// of their columns. The blocks above each other make one strip each, whose sums
// are added up by a kernel of their own, always in the same order.

#ifndef FUSED_OPS_KERNELS_GPU_SUMS_CUH_
#define FUSED_OPS_KERNELS_GPU_SUMS_CUH_

#include "fused_ops/kernels/gpu_common.cuh"

namespace {

// Strips at most: enough to fill the device, few enough that their sums are
// little beside the matrix.
inline int64_t strips_of(int64_t rows, int64_t width) {
  const int64_t most = 8 * multiprocessors();
  const int64_t few = most * 1024 / larger(width, 1);
  return smaller(rows, larger(1, smaller(most, few)));
}

// Adds up what the block's threads of the same x have, V columns each, and
// writes what is within `width` to partial [width]; the block's first column is
// `begin`. All of a block's threads, kBlock at most, call it.
template <int V, int kBlock = kThreads>
__device__ __forceinline__ void write_partial(const float* mine, int64_t begin,
                                              int64_t width, float* partial) {
  constexpr int kPart = V < 4 ? V : 4;
  __shared__ __align__(16) float shared[kBlock * V];
  const int pitch = blockDim.x * V;
  const int thread = threadIdx.y * blockDim.x + threadIdx.x;
#pragma unroll
  for (int k = 0; k < V; k += kPart) {
    store<kPart>(mine + k, shared + thread * V + k);
  }
  __syncthreads();
  // Neighbours write neighbours.
  for (int i = thread; i < pitch; i += blockDim.x * blockDim.y) {
    float total = 0.0f;
    for (int y = 0; y < blockDim.y; ++y) total += shared[y * pitch + i];
    const int64_t column = begin + i;
    if (column >= 0 && column < width) partial[column] = total;
  }
  __syncthreads();
}

struct Sums {
  float* of[3];
};

constexpr int kAhead = 4;  // sums that a thread of add_strips reads at once

// sums.of[i] = the sum over strips of partial [vectors, strips, width].
__global__ void __launch_bounds__(kWarp * kWarp, 2)
add_strips(const float* partial, int64_t strips, int64_t width, Sums sums) {
  __shared__ float shared[kWarp][kWarp];
  const int64_t column = blockIdx.x * static_cast<int64_t>(kWarp) + threadIdx.x;
  partial += blockIdx.y * strips * width + column;
  float total = 0.0f;
  const int step = blockDim.y;
  for (int64_t i = threadIdx.y; column < width && i < strips;
       i += kAhead * step) {
    float x[kAhead];
#pragma unroll
    for (int k = 0; k < kAhead; ++k) {
      const int64_t strip = i + k * step;
      x[k] = strip < strips ? partial[strip * width] : 0.0f;
    }
#pragma unroll
    for (int k = 0; k < kAhead; ++k) total += x[k];
  }
  shared[threadIdx.y][threadIdx.x] = total;
  __syncthreads();
  if (threadIdx.y || column >= width) return;
  total = 0.0f;
#pragma unroll 8
  for (int i = 0; i < step; ++i) total += shared[i][threadIdx.x];
  float* sum = blockIdx.y == 0 ? sums.of[0]
                               : blockIdx.y == 1 ? sums.of[1] : sums.of[2];
  sum[column] = total;
}

inline cudaError_t finish_sums(const void* partial, int64_t strips,
                               int64_t width, int vectors, Sums sums,
                               cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(parts_of(width, kWarp)), vectors);
  // Few strips take small blocks, of which more run at once.
  const dim3 block(kWarp, strips <= 16 * kAhead ? 8 : kWarp);
  add_strips<<<grid, block, 0, stream>>>(
      static_cast<const float*>(partial), strips, width, sums);
  return cudaGetLastError();
}

// What kernels that work down columns, V at a time, have under way: rows of a
// thread that hide the latency, and blocks that share a multiprocessor.
template <typename T, int V>
struct Flow {
  static constexpr int kBytes = V * sizeof(T);
  static constexpr int kDepth = kBytes < 8 ? 8 : 4;
  static constexpr int kBlocks = kBytes == 16 ? 4 : 5;
};

// How a matrix's columns are divided among blocks, V at a time.
struct Columns {
  dim3 block;
  unsigned parts;  // blocks beside each other

  Columns(int64_t width, int values) {
    const int64_t packs = width / values;
    const int64_t x = smaller(kThreads, parts_of(packs, kWarp) * kWarp);
    // A power of two, so that the block has kThreads of them.
    unsigned threads = kWarp;
    while (threads < x) threads *= 2;
    block = dim3(threads, kThreads / threads);
    parts = static_cast<unsigned>(parts_of(packs, threads));
  }

  // As many as run at once, `blocks` on a multiprocessor.
  int64_t strips(int64_t rows, int64_t width, int blocks) const {
    const int64_t at_once = larger(1, blocks * multiprocessors() / parts);
    return smaller(smaller(at_once, strips_of(rows, width)),
                   parts_of(rows, block.y));
  }
};

}  // namespace

#endif  // FUSED_OPS_KERNELS_GPU_SUMS_CUH_
