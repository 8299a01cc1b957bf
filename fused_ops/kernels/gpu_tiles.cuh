// What attention on a GPU is made of: tiles of a head's rows in shared memory,
// their products, and the masks of their scores.

#ifndef FUSED_OPS_KERNELS_GPU_TILES_CUH_
#define FUSED_OPS_KERNELS_GPU_TILES_CUH_

#include "fused_ops/kernels/gpu_common.cuh"

namespace {

// Rows of a warp, and of the counters' groups (cpu_kernels.cc's kValues).
constexpr int kRows = 16;
constexpr int kGroup = 8;

// Products of a warp ----------------------------------------------------------
//
// c [16, 8 N] += a [16, kDepth] b [kDepth, 8 N]; with g = lane / 4 and
// t = lane % 4 a thread has the elements (g, 8 n + 2 t), the one right of it,
// and both 8 rows below, in c[n]: the tensor cores' layout. Rows of a and b lie
// `pitch` elements apart. With kAcross b's element (k, n) is b[k * pitch + n];
// else b is given transposed, and it is b[n * pitch + k].

template <bool kAcross, int N, int kDepth, typename T>
__device__ __forceinline__ void multiply_scalars(const T* a, int a_pitch,
                                                 const T* b, int b_pitch,
                                                 float (*c)[4]) {
  const int lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4;
#pragma unroll 1
  for (int k = 0; k < kDepth; k += 4) {
    float upper[4], lower[4];
    load<4>(a + g * a_pitch + k, upper);
    load<4>(a + (g + 8) * a_pitch + k, lower);
#pragma unroll
    for (int n = 0; n < N; ++n) {
      float left[4], right[4];
      if (kAcross) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          float pair[2];
          load<2>(b + (k + i) * b_pitch + 8 * n + 2 * t, pair);
          left[i] = pair[0];
          right[i] = pair[1];
        }
      } else {
        load<4>(b + (8 * n + 2 * t) * b_pitch + k, left);
        load<4>(b + (8 * n + 2 * t + 1) * b_pitch + k, right);
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        c[n][0] += upper[i] * left[i];
        c[n][1] += upper[i] * right[i];
        c[n][2] += lower[i] * left[i];
        c[n][3] += lower[i] * right[i];
      }
    }
  }
}

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800

__device__ __forceinline__ void multiply_fragments(const uint32_t* a,
                                                   const uint32_t* b, float* c,
                                                   __half) {
  asm(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

__device__ __forceinline__ void multiply_fragments(const uint32_t* a,
                                                   const uint32_t* b, float* c,
                                                   __nv_bfloat16) {
  asm(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

template <typename T>
__device__ __forceinline__ uint32_t pair_at(const T* from) {
  return *reinterpret_cast<const uint32_t*>(from);
}

// b's fragment where its rows are k: 16 rows of 8, transposed as they are read.
template <typename T>
__device__ __forceinline__ void load_across(const T* b, int pitch,
                                            uint32_t* fragment) {
  const uint32_t from = static_cast<uint32_t>(
      __cvta_generic_to_shared(b + threadIdx.x % 16 * pitch));
  asm volatile(
      "ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
      : "=r"(fragment[0]), "=r"(fragment[1]) : "r"(from) : "memory");
}

template <bool kAcross, int N, int kDepth, typename T>
__device__ __forceinline__ void multiply_tensors(const T* a, int a_pitch,
                                                 const T* b, int b_pitch,
                                                 float (*c)[4]) {
  const int lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4;
#pragma unroll
  for (int k = 0; k < kDepth; k += 16) {
    const T* upper = a + g * a_pitch + k + 2 * t;
    const T* lower = upper + 8 * a_pitch;
    const uint32_t left[4] = {pair_at(upper), pair_at(lower),
                              pair_at(upper + 8), pair_at(lower + 8)};
#pragma unroll
    for (int n = 0; n < N; ++n) {
      uint32_t right[2];
      if (kAcross) {
        load_across(b + k * b_pitch + 8 * n, b_pitch, right);
      } else {
        const T* from = b + (8 * n + g) * b_pitch + k + 2 * t;
        right[0] = pair_at(from);
        right[1] = pair_at(from + 8);
      }
      multiply_fragments(left, right, c[n], T());
    }
  }
}

#else

template <bool kAcross, int N, int kDepth, typename T>
__device__ __forceinline__ void multiply_tensors(const T* a, int a_pitch,
                                                 const T* b, int b_pitch,
                                                 float (*c)[4]) {
  multiply_scalars<kAcross, N, kDepth>(a, a_pitch, b, b_pitch, c);
}

#endif

template <bool kAcross, int N, int kDepth>
__device__ __forceinline__ void multiply(const float* a, int a_pitch,
                                         const float* b, int b_pitch,
                                         float (*c)[4]) {
  multiply_scalars<kAcross, N, kDepth>(a, a_pitch, b, b_pitch, c);
}

template <bool kAcross, int N, int kDepth, typename T>
__device__ __forceinline__ void multiply(const T* a, int a_pitch, const T* b,
                                         int b_pitch, float (*c)[4]) {
  multiply_tensors<kAcross, N, kDepth>(a, a_pitch, b, b_pitch, c);
}

// Tiles -----------------------------------------------------------------------

// The tiles of type T for heads of at most D: `kOwn` rows that a block has, and
// M rows of those it meets.
template <typename T, int D, int M>
struct Tiles {
  // What fits shared memory of 64 kB.
  static constexpr int kWarps = sizeof(T) == 4 && D == 128 ? 2 : 4;
  static constexpr int kBlock = kWarps * kWarp;
  static constexpr int kOwn = kWarps * kRows;
  // 16 bytes more than the row: rows of a column lie in different banks.
  static constexpr int kPitch = D + 16 / sizeof(T);
  static constexpr int kScores = M + 16 / sizeof(T);
  static constexpr int kKept = kRows * M / kGroup;  // bytes a warp

  // `own` and `other` tiles of either kind, the warps' scores and masks.
  static constexpr int bytes(int own, int other) {
    return ((own * kOwn + other * M) * kPitch + kOwn * kScores) * sizeof(T) +
        kWarps * kKept + 2 * M * sizeof(float);
  }
};

// Where a block's own tile lies.
struct Place {
  int64_t first;  // the sequence's first token
  int length;     // of the sequence
  int begin;      // of the tile, in the sequence
};

// The tile'th of all sequences' tiles of `rows`; false if there are fewer. All
// threads of a warp call it.
__device__ __forceinline__ bool find_place(const int32_t* starts, int64_t batch,
                                           int rows, int64_t tile,
                                           Place* place) {
  const int lane = threadIdx.x % kWarp;
  for (int64_t base = 0; base < batch; base += kWarp) {
    const int64_t i = base + lane;
    int first = 0, length = 0;
    if (i < batch) {
      first = starts[i];
      length = starts[i + 1] - first;
    }
    const int64_t mine = (length + rows - 1) / rows;
    int64_t up_to = mine;  // and with this lane's
#pragma unroll
    for (int offset = 1; offset < kWarp; offset *= 2) {
      const int64_t other = __shfl_up_sync(kAllLanes, up_to, offset);
      if (lane >= offset) up_to += other;
    }
    const unsigned has = __ballot_sync(kAllLanes, tile < up_to);
    if (has) {
      const int source = __ffs(has) - 1;
      place->first = __shfl_sync(kAllLanes, first, source);
      place->length = __shfl_sync(kAllLanes, length, source);
      const int64_t before = __shfl_sync(kAllLanes, up_to - mine, source);
      place->begin = static_cast<int>(tile - before) * rows;
      return true;
    }
    tile -= __shfl_sync(kAllLanes, up_to, kWarp - 1);
  }
  return false;
}

// One head's columns of a matrix.
struct Head {
  int64_t stride;  // of rows
  int64_t column;
  int size;
  bool is_aligned;  // for accesses of 16 bytes
};

// to [R, D] = `rows` rows from row `first` on, and zeroes.
template <int R, int D, int kBlock, typename T>
__device__ __forceinline__ void load_tile(const T* matrix, int64_t first,
                                          int rows, const Head& head, T* to) {
  constexpr int V = Widest<T>::value, kPacks = D / V, kPitch = D + V;
  const T* from = matrix + first * head.stride + head.column;
  for (int i = threadIdx.x; i < R * kPacks; i += kBlock) {
    const int row = i / kPacks, column = i % kPacks * V;
    const T* at = from + row * head.stride + column;
    Packed<T, V> packed = {};
    if (row < rows && head.is_aligned && column < head.size) {
      packed = fetch<V>(at);
    } else if (row < rows && !head.is_aligned) {
      float values[V];
#pragma unroll
      for (int k = 0; k < V; ++k) {
        values[k] = column + k < head.size ? to_float(at[k]) : 0.0f;
      }
      packed = pack<T, V>(values);
    }
    put(packed, to + row * kPitch + column);
  }
}

// A warp's `c` times factors of the upper and lower rows, to the matrix; the
// warp's first row is `first`, of which `rows` exist.
template <int D, typename T>
__device__ __forceinline__ void write_rows(const float (*c)[4], float upper,
                                           float lower, T* matrix,
                                           int64_t first, int rows,
                                           const Head& head) {
  const int lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = g + 8 * half;
    if (row >= rows) continue;
    const float factor = half ? lower : upper;
    T* to = matrix + (first + row) * head.stride + head.column;
#pragma unroll
    for (int n = 0; n < D / 8; ++n) {
      const int column = 8 * n + 2 * t;
      const float pair[2] = {c[n][2 * half] * factor,
                             c[n][2 * half + 1] * factor};
      if (head.is_aligned) {
        if (column < head.size) store<2>(pair, to + column);
      } else {
        if (column < head.size) from_floats<1>(pair, to + column);
        if (column + 1 < head.size) from_floats<1>(pair + 1, to + column + 1);
      }
    }
  }
}

// The warp's scores to shared memory, as the next product's left side.
template <int N, typename T>
__device__ __forceinline__ void write_scores(const float (*c)[4], T* to,
                                             int pitch) {
  const int lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4;
#pragma unroll
  for (int n = 0; n < N; ++n) {
    store<2>(c[n], to + g * pitch + 8 * n + 2 * t);
    store<2>(c[n] + 2, to + (g + 8) * pitch + 8 * n + 2 * t);
  }
}

template <int N>
__device__ __forceinline__ void clear(float (*c)[4]) {
#pragma unroll
  for (int n = 0; n < N; ++n) c[n][0] = c[n][1] = c[n][2] = c[n][3] = 0.0f;
}

// Bit i: whether the probability of key `key` in row `row` + i stays; `row` is
// the number of a group's first query in the batch (cpu_kernels.cc's
// group_mask).
__device__ __forceinline__ uint8_t kept_bits(const BertDropout& dropout,
                                             int head, int key, int64_t row) {
  uint32_t words[4], bits = 0;
  random_words(dropout,
               static_cast<uint32_t>(key) + (static_cast<uint32_t>(head) << 16),
               static_cast<uint32_t>(row), words);
#pragma unroll
  for (int i = 0; i < kGroup; ++i) {
    const uint32_t value = i % 2 ? words[i / 2] >> 16 : words[i / 2] & 0xffffu;
    bits |= (value >= dropout.zeroes ? 1u : 0u) << i;
  }
  return static_cast<uint8_t>(bits);
}

// The masks of a warp's 16 queries from `row` on and M keys: kept [2, M].
template <int M>
__device__ __forceinline__ void keep_queries(const BertDropout& dropout,
                                             int head, int key, int64_t row,
                                             uint8_t* kept) {
  for (int i = threadIdx.x % kWarp; i < 2 * M; i += kWarp) {
    kept[i] = kept_bits(dropout, head, key + i % M, row + i / M * kGroup);
  }
}

// The masks of a warp's 16 keys and M queries: kept [M / 8, 16].
template <int M>
__device__ __forceinline__ void keep_keys(const BertDropout& dropout, int head,
                                          int key, int64_t row,
                                          uint8_t* kept) {
  for (int i = threadIdx.x % kWarp; i < 2 * M; i += kWarp) {
    kept[i] = kept_bits(dropout, head, key + i % kRows,
                        row + i / kRows * kGroup);
  }
}

// Over the four threads that share rows.
__device__ __forceinline__ float row_highest(float x) {
  x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, 1));
  return fmaxf(x, __shfl_xor_sync(kAllLanes, x, 2));
}

__device__ __forceinline__ float row_total(float x) {
  x += __shfl_xor_sync(kAllLanes, x, 1);
  return x + __shfl_xor_sync(kAllLanes, x, 2);
}

}  // namespace

#endif  // FUSED_OPS_KERNELS_GPU_TILES_CUH_
