// Softmax cross-entropy on a GPU; see gpu_kernels.h.

#include "fused_ops/kernels/gpu_sums.cuh"

namespace {

// Blocks of a size that fills a multiprocessor with what these kernels need.
constexpr int kBlockThreads = 192;
constexpr int kBlockWarps = kBlockThreads / kWarp;
constexpr int kBlocks = 5;
constexpr int kDepth = 2;  // accesses of a thread and row under way
constexpr int kPair = 2;   // rows of a block, which share the bias

// Rows of any width are read 16 bytes at a time, beginning with the part that
// the row shares with the one before. Values by which it does not begin there:
template <typename T>
__host__ __device__ __forceinline__ int values_before(const T* row) {
  return static_cast<int>(reinterpret_cast<uintptr_t>(row) % 16 / sizeof(T));
}

__device__ __forceinline__ bool is_within(int column, int classes) {
  return column >= 0 && column < classes;
}

// V columns of a row, of which those from 0 to classes exist. They are not kept
// in the cache, where the bias is.
template <int V, typename T>
__device__ __forceinline__ Packed<T, V> fetch_columns(const T* row, int column,
                                                      int classes,
                                                      bool is_whole) {
  Packed<T, V> packed = {};
  if (is_whole) {
    typedef typename Packed<T, V>::Word Word;
    packed.word = __ldcs(reinterpret_cast<const Word*>(row + column));
  } else if (column < classes) {
    T values[V];
    memcpy(values, &packed.word, sizeof(values));
#pragma unroll
    for (int k = 0; k < V; ++k) {
      if (is_within(column + k, classes)) values[k] = row[column + k];
    }
    memcpy(&packed.word, values, sizeof(values));
  }
  return packed;
}

template <int V, typename T>
__device__ __forceinline__ void store_columns(const float* from, T* row,
                                              int column, int classes,
                                              bool is_whole) {
  if (is_whole) {
    store<V>(from, row + column);
    return;
  }
#pragma unroll
  for (int k = 0; k < V; ++k) {
    if (is_within(column + k, classes)) from_floats<1>(from + k,
                                                       row + column + k);
  }
}

template <int V, int kPart>
__device__ __forceinline__ void load_parts(const float* from, float* to) {
#pragma unroll
  for (int i = 0; i < V; i += kPart) load<kPart>(from + i, to + i);
}

// V columns of the bias; it is `outside` where there are none.
template <int V>
__device__ __forceinline__ void load_bias(const float* bias, int column,
                                          int classes, float outside,
                                          float* to) {
  const float* from = bias + column;
  const bool is_whole = column >= 0 && column + V <= classes;
  if (is_whole && reinterpret_cast<uintptr_t>(from) % 16 == 0) {
    load_parts<V, 4>(from, to);
  } else if (is_whole && reinterpret_cast<uintptr_t>(from) % 8 == 0) {
    load_parts<V, 2>(from, to);
  } else {
#pragma unroll
    for (int k = 0; k < V; ++k) {
      to[k] = is_within(column + k, classes) ? from[k] : outside;
    }
  }
}

__device__ __forceinline__ float sum_of(float x) {
#pragma unroll
  for (int offset = kWarp / 2; offset; offset /= 2) {
    x += __shfl_xor_sync(kAllLanes, x, offset);
  }
  return x;
}

__device__ __forceinline__ float highest_of(float x) {
#pragma unroll
  for (int offset = kWarp / 2; offset; offset /= 2) {
    x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, offset));
  }
  return x;
}

// What sums of exponentials are taken relative to: without a finite value yet
// there is nothing to subtract.
__device__ __forceinline__ float level_of(float highest) {
  return highest == -INFINITY ? 0.0f : highest;
}

// A maximum so far, and the sum of exponentials relative to it.
struct Running {
  float top, total;

  template <int V>
  __device__ __forceinline__ void add(const float* x) {
    float highest = x[0];
#pragma unroll
    for (int k = 1; k < V; ++k) highest = fmaxf(highest, x[k]);
    if (highest > top) {
      total *= exponential(top - highest);
      top = highest;
    }
    const float level = level_of(top) * kLog2E;
#pragma unroll
    for (int k = 0; k < V; ++k) total += power_of_2(x[k] * kLog2E - level);
  }
};

// The logarithm of the sum of exponentials, of all warps' parts.
__device__ __forceinline__ float log_sum_of(const Running* parts) {
  float highest = parts[0].top, total = 0.0f;
#pragma unroll
  for (int i = 1; i < kBlockWarps; ++i) highest = fmaxf(highest, parts[i].top);
  const float level = level_of(highest);
#pragma unroll
  for (int i = 0; i < kBlockWarps; ++i) {
    total += parts[i].total * exponential(parts[i].top - level);
  }
  return level + logf(total);
}

// A block works on two rows that begin alike; where the second does not exist,
// on the first one twice.
template <typename T>
__global__ void __launch_bounds__(kBlockThreads, kBlocks)
cross_entropy(const T* logits, const float* bias, const int32_t* labels,
              int64_t rows, int classes, float* loss, float* log_sum) {
  constexpr int V = Widest<T>::value, kStep = kBlockThreads * V;
  const int64_t first = blockIdx.x / V * (kPair * V) + blockIdx.x % V;
  if (first >= rows) return;
  const int64_t between = first + V < rows ? V : 0;
  const T* row = logits + first * classes;
  const T* row_2 = row + between * classes;
  const int begin = static_cast<int>(threadIdx.x) * V - values_before(row);
  const auto fetch_at = [&](int column, Packed<T, V>* pair) {
    const bool is_whole = column >= 0 && column + V <= classes;
    pair[0] = fetch_columns<V>(row, column, classes, is_whole);
    pair[1] = fetch_columns<V>(row_2, column, classes, is_whole);
  };
  Packed<T, V> packed[kDepth][kPair];
#pragma unroll
  for (int i = 0; i < kDepth; ++i) fetch_at(begin + i * kStep, packed[i]);
  // The thread's row in the end, if it has one.
  const int64_t mine = first + (threadIdx.x ? between : 0);
  float hot = NAN;
  if (threadIdx.x < kPair) {
    const int32_t label = labels[mine];
    if (is_within(label, classes)) {
      hot = to_float(logits[mine * classes + label]) + bias[label];
    }
  }
  Running running[kPair] = {{-INFINITY, 0.0f}, {-INFINITY, 0.0f}};
  for (int from = begin; from < classes; from += kDepth * kStep) {
#pragma unroll
    for (int i = 0; i < kDepth; ++i) {
      const int column = from + i * kStep;
      if (column >= classes) break;
      float b[V], x[kPair][V];
      load_bias<V>(bias, column, classes, -INFINITY, b);
#pragma unroll
      for (int r = 0; r < kPair; ++r) unpack(packed[i][r], x[r]);
      fetch_at(column + kDepth * kStep, packed[i]);
#pragma unroll
      for (int r = 0; r < kPair; ++r) {
#pragma unroll
        for (int k = 0; k < V; ++k) x[r][k] += b[k];
        running[r].template add<V>(x[r]);
      }
    }
  }
  __shared__ Running parts[kPair][kBlockWarps];
#pragma unroll
  for (int r = 0; r < kPair; ++r) {
    const float top = highest_of(running[r].top);
    const float total = sum_of(
        running[r].total * exponential(running[r].top - level_of(top)));
    if (threadIdx.x % kWarp == 0) parts[r][threadIdx.x / kWarp] = {top, total};
  }
  __syncthreads();
  if (threadIdx.x >= kPair) return;
  const float sum = log_sum_of(parts[threadIdx.x]);
  log_sum[mine] = sum;
  loss[mine] = sum - hot;
}

// What a row's gradient needs beside its logits.
template <typename T, int V>
struct GradRow {
  Packed<T, V> packed;
  float d, level;
  int hot;
};

// dlogits = dloss (softmax(logits + bias) - one_hot(label)). With `is_wide` all
// rows of a block begin alike.
template <typename T>
__global__ void __launch_bounds__(kBlockThreads, kBlocks)
cross_entropy_grad(const float* dloss, const T* logits, const float* bias,
                   const int32_t* labels, const float* log_sum, int64_t rows,
                   int classes, bool is_wide, float* partial, T* dlogits) {
  constexpr int V = Widest<T>::value;
  const int64_t step = gridDim.y;
  const int left = static_cast<int>(blockIdx.x) * kBlockThreads * V -
      (is_wide ? values_before(logits + blockIdx.y * int64_t{classes}) : 0);
  const int column = left + static_cast<int>(threadIdx.x) * V;
  const bool is_there = column < classes;
  const bool is_whole = is_wide && column >= 0 && column + V <= classes;
  float b[V], sum[V];
#pragma unroll
  for (int k = 0; k < V; ++k) sum[k] = 0.0f;
  load_bias<V>(bias, column, classes, 0.0f, b);
#pragma unroll
  for (int k = 0; k < V; ++k) b[k] *= kLog2E;
  // Before what is stored earlier, since nothing says that they are apart.
  const auto fetch_row = [&](int64_t row, GradRow<T, V>* to) {
    if (row >= rows) return;
    to->packed = fetch_columns<V>(logits + row * classes, column, classes,
                                  is_whole);
    to->d = dloss[row];
    to->level = log_sum[row];
    to->hot = labels[row] - column;
  };
  GradRow<T, V> ahead[kDepth];
#pragma unroll
  for (int i = 0; i < kDepth; ++i) fetch_row(blockIdx.y + i * step, ahead + i);
  for (int64_t first = blockIdx.y; is_there && first < rows;
       first += kDepth * step) {
#pragma unroll
    for (int i = 0; i < kDepth; ++i) {
      const int64_t row = first + i * step;
      if (row >= rows) break;
      float x[V];
      unpack(ahead[i].packed, x);
      const float d = ahead[i].d, level = ahead[i].level * kLog2E;
      const int hot = ahead[i].hot;
      fetch_row(row + kDepth * step, ahead + i);
#pragma unroll
      for (int k = 0; k < V; ++k) {
        x[k] = power_of_2((x[k] * kLog2E + b[k]) - level);
      }
      if (is_within(hot, V)) {
#pragma unroll
        for (int k = 0; k < V; ++k) x[k] -= k == hot ? 1.0f : 0.0f;
      }
#pragma unroll
      for (int k = 0; k < V; ++k) {
        x[k] *= d;
        sum[k] += x[k];
      }
      store_columns<V>(x, dlogits + row * classes, column, classes, is_whole);
    }
  }
  write_partial<V, kBlockThreads>(
      sum, left, classes, partial + blockIdx.y * static_cast<int64_t>(classes));
}

// The arguments of either direction; without dloss it is the forward one.
struct Arguments {
  const float* dloss;
  const void* logits;
  const float* bias;
  const int32_t* labels;
  float *loss, *log_sum;
  int64_t rows, classes;
  void *scratch, *dlogits;
  float* dbias;
  cudaStream_t stream;
};

template <typename T>
cudaError_t forward(const Arguments& a) {
  constexpr int V = Widest<T>::value;
  if (!a.rows) return cudaSuccess;
  const unsigned blocks =
      static_cast<unsigned>(parts_of(a.rows, kPair * V) * V);
  cross_entropy<T><<<blocks, kBlockThreads, 0, a.stream>>>(
      static_cast<const T*>(a.logits), a.bias, a.labels, a.rows,
      static_cast<int>(a.classes), a.loss, a.log_sum);
  return cudaGetLastError();
}

template <typename T>
cudaError_t backward(const Arguments& a) {
  constexpr int V = Widest<T>::value;
  const T* logits = static_cast<const T*>(a.logits);
  T* dlogits = static_cast<T*>(a.dlogits);
  // A row may begin up to V - 1 columns late.
  const unsigned parts =
      static_cast<unsigned>(parts_of(a.classes + V - 1, kBlockThreads * V));
  int64_t strips =
      smaller(larger(1, kBlocks * multiprocessors() / parts),
              strips_of(a.rows, a.classes));
  // After how many rows one begins like the first.
  int64_t period = 1;
  while (period * a.classes % V) period *= 2;
  if (strips > period) strips -= strips % period;
  const bool is_wide = values_before(logits) == values_before(dlogits) &&
      (strips % period == 0 || strips == a.rows);
  float* partial = static_cast<float*>(a.scratch);
  if (strips) {
    const dim3 grid(parts, static_cast<unsigned>(strips));
    cross_entropy_grad<T><<<grid, kBlockThreads, 0, a.stream>>>(
        a.dloss, logits, a.bias, a.labels, a.log_sum, a.rows,
        static_cast<int>(a.classes), is_wide, partial, dlogits);
  }
  return finish_sums(partial, strips, a.classes, 1, {{a.dbias}}, a.stream);
}

struct Typed {
  const Arguments& a;
  template <typename T>
  cudaError_t operator()(T*) const {
    // The columns that a block looks at may go beyond the last class.
    if (a.classes < 1 || a.classes > 1 << 30) return cudaErrorInvalidValue;
    return a.dloss ? backward<T>(a) : forward<T>(a);
  }
};

}  // namespace

extern "C" {

cudaError_t bert_gpu_cross_entropy(int type, const void* logits,
                                   const float* bias, const int32_t* labels,
                                   int64_t rows, int64_t classes, float* loss,
                                   float* log_sum, cudaStream_t stream) {
  const Arguments a = {nullptr, logits,  bias,    labels,  loss,    log_sum,
                       rows,    classes, nullptr, nullptr, nullptr, stream};
  return with_type(type, Typed{a});
}

cudaError_t bert_gpu_cross_entropy_grad(
    int type, const float* dloss, const void* logits, const float* bias,
    const int32_t* labels, const float* log_sum, int64_t rows, int64_t classes,
    void* scratch, void* dlogits, float* dbias, cudaStream_t stream) {
  const Arguments a = {dloss,   logits,  bias,
                       labels,  nullptr, const_cast<float*>(log_sum),
                       rows,    classes, scratch,
                       dlogits, dbias,   stream};
  return with_type(type, Typed{a});
}

}  // extern "C"
