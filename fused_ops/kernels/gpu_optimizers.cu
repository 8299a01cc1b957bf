// AdamW, LAMB and the global norm of many tensors on a GPU; see gpu_kernels.h.
//
// A launch takes a group of tensors, described in its arguments, and a block a
// chunk of one of them. Sums are made of chunks, and then of the chunks' sums.

#include "fused_ops/kernels/gpu_common.cuh"

namespace {

constexpr int kWarps = kThreads / kWarp;
constexpr int64_t kChunk = 8192;      // values that a block updates
constexpr int64_t kNormChunk = 32768; // and whose squares it adds up

// Tensors of a launch: its arguments have room for 4 kB.
constexpr int kGroup = 64;

template <typename Tensor>
struct Group {
  Tensor of[kGroup];
  int first[kGroup + 1];  // chunk of each, within the group
  int count;
  int64_t chunks_before;  // of earlier groups
  int tensors_before;
};

template <typename Tensor>
__device__ __forceinline__ int tensor_of(const Group<Tensor>& group,
                                         int chunk) {
  int low = 0, high = group.count;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    if (group.first[middle] <= chunk) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return low;
}

// Calls work(group) for groups of tensors, until one fails.
template <typename Tensor, typename Work>
cudaError_t for_each_group(const Tensor* tensors, int count, int64_t chunk,
                           Work work) {
  Group<Tensor> group;
  group.chunks_before = 0;
  for (int begin = 0; begin < count; begin += kGroup) {
    group.tensors_before = begin;
    group.count = static_cast<int>(smaller(kGroup, count - begin));
    group.first[0] = 0;
    for (int i = 0; i < group.count; ++i) {
      group.of[i] = tensors[begin + i];
      group.first[i + 1] = group.first[i] +
          static_cast<int>(parts_of(group.of[i].count, chunk));
    }
    const cudaError_t error = work(group);
    if (error != cudaSuccess) return error;
    group.chunks_before += group.first[group.count];
  }
  return cudaSuccess;
}

template <typename Tensor>
int64_t chunks_of(const Tensor* tensors, int count, int64_t chunk) {
  int64_t chunks = 0;
  for (int i = 0; i < count; ++i) chunks += parts_of(tensors[i].count, chunk);
  return chunks;
}

// Its sum over the block's threads, known to the first.
__device__ __forceinline__ double block_sum(double x, double* of_warps) {
#pragma unroll
  for (int offset = kWarp / 2; offset; offset /= 2) {
    x += __shfl_xor_sync(kAllLanes, x, offset);
  }
  if (threadIdx.x % kWarp == 0) of_warps[threadIdx.x / kWarp] = x;
  __syncthreads();
  double total = 0.0;
  for (int i = 0; i < kWarps; ++i) total += of_warps[i];
  return total;
}

__device__ __forceinline__ bool is_aligned(const void* a, const void* b,
                                           const void* c, const void* d) {
  return (reinterpret_cast<uintptr_t>(a) | reinterpret_cast<uintptr_t>(b) |
          reinterpret_cast<uintptr_t>(c) | reinterpret_cast<uintptr_t>(d)) %
      16 == 0;
}

// A step with what it reads on the device.
struct Known {
  float rest_1, rest_2, epsilon, rate, gradient_scale, factor_1, factor_2;
};

__device__ __forceinline__ Known known_of(const BertStep& step) {
  Known k;
  k.rest_1 = 1.0f - step.beta_1;
  k.rest_2 = 1.0f - step.beta_2;
  k.epsilon = step.epsilon;
  k.rate = *step.rate;
  k.gradient_scale = *step.gradient_scale;
  k.factor_1 = step.correction_1 ? 1.0f / *step.correction_1 : 1.0f;
  k.factor_2 = step.correction_2 ? 1.0f / *step.correction_2 : 1.0f;
  return k;
}

__device__ __forceinline__ void move_moments(const Known& k, float gradient,
                                             float* m, float* v) {
  const float g = gradient * k.gradient_scale;
  *m += k.rest_1 * (g - *m);
  *v += k.rest_2 * (g * g - *v);
}

__device__ __forceinline__ float direction_of(const Known& k, float m, float v,
                                              float decay, float w) {
  return m * k.factor_1 / (sqrtf(v * k.factor_2) + k.epsilon) + decay * w;
}

// A chunk of a parameter.
struct Chunk {
  float *w, *m, *v;
  const float* g;
  int count;
  float decay;
};

__device__ __forceinline__ Chunk chunk_of(const Group<BertParameter>& group,
                                          int i) {
  const int64_t begin = (blockIdx.x - group.first[i]) * kChunk;
  const int64_t left = group.of[i].count - begin;
  return {group.of[i].weight + begin, group.of[i].m + begin,
          group.of[i].v + begin, group.of[i].gradient + begin,
          static_cast<int>(left < kChunk ? left : kChunk), group.of[i].decay};
}

// Calls visit(place, Values<V>()) for all places of a chunk, V values each.
template <typename Visit>
__device__ __forceinline__ void visit_all(const Chunk& c, Visit& visit) {
  const int whole = is_aligned(c.w, c.m, c.v, c.g) ? c.count / 4 * 4 : 0;
  for (int i = 4 * threadIdx.x; i < whole; i += 4 * kThreads) {
    visit(i, Values<4>());
  }
  for (int i = whole + threadIdx.x; i < c.count; i += kThreads) {
    visit(i, Values<1>());
  }
}

// w -= rate (m' / (sqrt(v') + epsilon) + decay w), in one pass.
struct AdamVisit {
  const Chunk& c;
  const Known& k;
  template <int V>
  __device__ __forceinline__ void operator()(int at, Values<V>) {
    float w[V], m[V], v[V], g[V];
    load<V>(c.g + at, g);
    load<V>(c.m + at, m);
    load<V>(c.v + at, v);
    load<V>(c.w + at, w);
#pragma unroll
    for (int i = 0; i < V; ++i) {
      move_moments(k, g[i], m + i, v + i);
      w[i] -= k.rate * direction_of(k, m[i], v[i], c.decay, w[i]);
    }
    store<V>(m, c.m + at);
    store<V>(v, c.v + at);
    store<V>(w, c.w + at);
  }
};

__global__ void __launch_bounds__(kThreads)
adam(Group<BertParameter> group, BertStep step) {
  const Chunk chunk = chunk_of(group, tensor_of(group, blockIdx.x));
  const Known known = known_of(step);
  AdamVisit visit = {chunk, known};
  visit_all(chunk, visit);
}

// LAMB's moments, and the sums of squares of w and of its direction.
struct MomentsVisit {
  const Chunk& c;
  const Known& k;
  float square_w, square_direction;
  template <int V>
  __device__ __forceinline__ void operator()(int at, Values<V>) {
    float w[V], m[V], v[V], g[V];
    load<V>(c.g + at, g);
    load<V>(c.m + at, m);
    load<V>(c.v + at, v);
    load<V>(c.w + at, w);
#pragma unroll
    for (int i = 0; i < V; ++i) {
      move_moments(k, g[i], m + i, v + i);
      const float u = direction_of(k, m[i], v[i], c.decay, w[i]);
      square_w += w[i] * w[i];
      square_direction += u * u;
    }
    store<V>(m, c.m + at);
    store<V>(v, c.v + at);
  }
};

// squares [chunks, 2].
__global__ void __launch_bounds__(kThreads)
lamb_moments(Group<BertParameter> group, BertStep step, double* squares) {
  __shared__ double of_warps[2][kWarps];
  const Chunk chunk = chunk_of(group, tensor_of(group, blockIdx.x));
  const Known known = known_of(step);
  MomentsVisit visit = {chunk, known, 0.0f, 0.0f};
  visit_all(chunk, visit);
  const double w = block_sum(visit.square_w, of_warps[0]);
  const double direction = block_sum(visit.square_direction, of_warps[1]);
  if (threadIdx.x == 0) {
    double* mine = squares + 2 * (group.chunks_before + blockIdx.x);
    mine[0] = w;
    mine[1] = direction;
  }
}

// A block a parameter: by what its rate is multiplied, |w| / |direction|.
__global__ void __launch_bounds__(kThreads)
lamb_ratios(Group<BertParameter> group, const double* squares, float* ratios) {
  __shared__ double of_warps[2][kWarps];
  double w = 0.0, direction = 0.0;
  for (int i = group.first[blockIdx.x] + threadIdx.x;
       i < group.first[blockIdx.x + 1]; i += kThreads) {
    w += squares[2 * (group.chunks_before + i)];
    direction += squares[2 * (group.chunks_before + i) + 1];
  }
  w = block_sum(w, of_warps[0]);
  direction = block_sum(direction, of_warps[1]);
  if (threadIdx.x == 0) {
    const bool adapts = group.of[blockIdx.x].adapt && w > 0 && direction > 0;
    ratios[group.tensors_before + blockIdx.x] =
        adapts ? static_cast<float>(sqrt(w / direction)) : 1.0f;
  }
}

// The direction is made anew of the moments: reading it, and writing it before,
// would move as many bytes, and need room for all weights again.
struct ApplyVisit {
  const Chunk& c;
  const Known& k;
  float rate;
  template <int V>
  __device__ __forceinline__ void operator()(int at, Values<V>) {
    float w[V], m[V], v[V];
    load<V>(c.m + at, m);
    load<V>(c.v + at, v);
    load<V>(c.w + at, w);
#pragma unroll
    for (int i = 0; i < V; ++i) {
      w[i] -= rate * direction_of(k, m[i], v[i], c.decay, w[i]);
    }
    store<V>(w, c.w + at);
  }
};

__global__ void __launch_bounds__(kThreads)
lamb_apply(Group<BertParameter> group, BertStep step, const float* ratios) {
  const int i = tensor_of(group, blockIdx.x);
  const Chunk chunk = chunk_of(group, i);
  const Known known = known_of(step);
  ApplyVisit visit = {chunk, known,
                      known.rate * ratios[group.tensors_before + i]};
  visit_all(chunk, visit);
}

__global__ void __launch_bounds__(kThreads)
sum_of_squares(Group<BertTensor> group, double* squares) {
  __shared__ double of_warps[kWarps];
  const int i = tensor_of(group, blockIdx.x);
  const int64_t begin = (blockIdx.x - group.first[i]) * kNormChunk;
  const int64_t left = group.of[i].count - begin;
  const int count = static_cast<int>(left < kNormChunk ? left : kNormChunk);
  const float* from = group.of[i].values + begin;
  const int whole = is_aligned(from, from, from, from) ? count / 4 * 4 : 0;
  float sums[4] = {};
#pragma unroll 4
  for (int at = 4 * threadIdx.x; at < whole; at += 4 * kThreads) {
    float x[4];
    load<4>(from + at, x);
#pragma unroll
    for (int k = 0; k < 4; ++k) sums[k] += x[k] * x[k];
  }
  for (int at = whole + threadIdx.x; at < count; at += kThreads) {
    sums[0] += from[at] * from[at];
  }
  const double total =
      block_sum((sums[0] + sums[1]) + (sums[2] + sums[3]), of_warps);
  if (threadIdx.x == 0) squares[group.chunks_before + blockIdx.x] = total;
}

__global__ void __launch_bounds__(kThreads)
finish_norm(const double* squares, int64_t chunks, float* norm) {
  __shared__ double of_warps[kWarps];
  double total = 0.0;
#pragma unroll 8
  for (int64_t i = threadIdx.x; i < chunks; i += kThreads) total += squares[i];
  total = block_sum(total, of_warps);
  if (threadIdx.x == 0) *norm = static_cast<float>(sqrt(total));
}

bool holds_doubles(const void* scratch) {
  return reinterpret_cast<uintptr_t>(scratch) % sizeof(double) == 0;
}

template <typename Tensor>
unsigned blocks_of(const Group<Tensor>& group) {
  return static_cast<unsigned>(group.first[group.count]);
}

}  // namespace

extern "C" {

cudaError_t bert_gpu_adam(const BertParameter* parameters, int count,
                          BertStep step, cudaStream_t stream) {
  step.correction_1 = step.correction_2 = nullptr;
  return for_each_group(
      parameters, count, kChunk, [&](const Group<BertParameter>& group) {
        if (!blocks_of(group)) return cudaSuccess;
        adam<<<blocks_of(group), kThreads, 0, stream>>>(group, step);
        return cudaGetLastError();
      });
}

// [chunks, 2] double, [parameters] float.
int64_t bert_gpu_lamb_scratch(const BertParameter* parameters, int count) {
  return chunks_of(parameters, count, kChunk) * 2 * sizeof(double) +
      count * sizeof(float);
}

cudaError_t bert_gpu_lamb(const BertParameter* parameters, int count,
                          BertStep step, void* scratch, cudaStream_t stream) {
  if (!holds_doubles(scratch)) return cudaErrorMisalignedAddress;
  double* squares = static_cast<double*>(scratch);
  float* ratios = reinterpret_cast<float*>(
      squares + 2 * chunks_of(parameters, count, kChunk));
  return for_each_group(
      parameters, count, kChunk, [&](const Group<BertParameter>& group) {
        if (!blocks_of(group)) return cudaSuccess;
        lamb_moments<<<blocks_of(group), kThreads, 0, stream>>>(group, step,
                                                                squares);
        lamb_ratios<<<group.count, kThreads, 0, stream>>>(group, squares,
                                                          ratios);
        lamb_apply<<<blocks_of(group), kThreads, 0, stream>>>(group, step,
                                                              ratios);
        return cudaGetLastError();
      });
}

int64_t bert_gpu_global_norm_scratch(const BertTensor* tensors, int count) {
  return chunks_of(tensors, count, kNormChunk) * sizeof(double);
}

cudaError_t bert_gpu_global_norm(const BertTensor* tensors, int count,
                                 void* scratch, float* norm,
                                 cudaStream_t stream) {
  if (!holds_doubles(scratch)) return cudaErrorMisalignedAddress;
  double* squares = static_cast<double*>(scratch);
  const cudaError_t error = for_each_group(
      tensors, count, kNormChunk, [&](const Group<BertTensor>& group) {
        if (!blocks_of(group)) return cudaSuccess;
        sum_of_squares<<<blocks_of(group), kThreads, 0, stream>>>(group,
                                                                  squares);
        return cudaGetLastError();
      });
  if (error != cudaSuccess) return error;
  finish_norm<<<1, kThreads, 0, stream>>>(
      squares, chunks_of(tensors, count, kNormChunk), norm);
  return cudaGetLastError();
}

}  // extern "C"
