// Attention over packed sequences on a GPU; see gpu_kernels.h.
//
// A block has a tile of rows of one head of one sequence, 16 rows a warp, and
// meets the sequence's other tiles one after another (Dao et al., arXiv
// 2205.14135): a tile of queries meets all keys, forward and for dQ; a tile of
// keys meets all queries, for dK and dV. So each result has one writer, and the
// order of its sums is fixed. Tiles lie in shared memory, padded with zeroes.

#include "fused_ops/kernels/gpu_tiles.cuh"

namespace {

// Kernels ---------------------------------------------------------------------

// What all three read.
template <typename T>
struct Inputs {
  const T *query, *key, *value, *dout;
  const int32_t* starts;
  BertDropout dropout;
  int64_t batch, tokens;
  int size;
  float scale;
  bool is_aligned;
  const float *log_sum, *dots;  // [heads, tokens]
};

template <typename T>
__device__ __forceinline__ Head head_of(const Inputs<T>& in) {
  return {static_cast<int64_t>(gridDim.y) * in.size,
          static_cast<int64_t>(blockIdx.y) * in.size, in.size, in.is_aligned};
}

template <typename T, int D, int M>
__global__ void __launch_bounds__(Tiles<T, D, M>::kBlock)
attention(Inputs<T> in, T* out, float* log_sum) {
  typedef Tiles<T, D, M> Tile;
  constexpr int N = M / 8, kPitch = Tile::kPitch;
  extern __shared__ __align__(16) unsigned char memory[];
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int g = lane / 4, t = lane % 4;
  T* queries = reinterpret_cast<T*>(memory);
  T* keys = queries + Tile::kOwn * kPitch;
  T* values = keys + M * kPitch;
  T* scores = values + M * kPitch + warp * kRows * Tile::kScores;
  uint8_t* kept = reinterpret_cast<uint8_t*>(
      values + M * kPitch + Tile::kOwn * Tile::kScores) + warp * Tile::kKept;

  Place place;
  if (!find_place(in.starts, in.batch, Tile::kOwn, blockIdx.x, &place)) return;
  const Head head = head_of(in);
  const int own = place.begin + warp * kRows;  // the warp's first query
  load_tile<Tile::kOwn, D, Tile::kBlock>(
      in.query, place.first + place.begin, place.length - place.begin, head,
      queries);
  float o[D / 8][4], top[2] = {-INFINITY, -INFINITY}, total[2] = {0.0f, 0.0f};
  clear<D / 8>(o);
  for (int j = 0; j < place.length; j += M) {
    __syncthreads();  // all have done with the last tile
    load_tile<M, D, Tile::kBlock>(in.key, place.first + j, place.length - j,
                                  head, keys);
    load_tile<M, D, Tile::kBlock>(in.value, place.first + j, place.length - j,
                                  head, values);
    if (in.dropout.zeroes) {
      keep_queries<M>(in.dropout, blockIdx.y, j, place.first + own, kept);
    }
    __syncthreads();
    float s[N][4];
    clear<N>(s);
    multiply<false, N, D>(queries + warp * kRows * kPitch, kPitch, keys, kPitch,
                          s);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float highest = top[half];
#pragma unroll
      for (int n = 0; n < N; ++n) {
#pragma unroll
        for (int i = 2 * half; i < 2 * half + 2; ++i) {
          const bool is_there = j + 8 * n + 2 * t + i % 2 < place.length;
          s[n][i] = is_there ? s[n][i] * in.scale : -INFINITY;
          highest = fmaxf(highest, s[n][i]);
        }
      }
      highest = row_highest(highest);
      const float shrink = exponential(top[half] - highest);
      top[half] = highest;
      total[half] *= shrink;
#pragma unroll
      for (int n = 0; n < D / 8; ++n) {
        o[n][2 * half] *= shrink;
        o[n][2 * half + 1] *= shrink;
      }
#pragma unroll
      for (int n = 0; n < N; ++n) {
#pragma unroll
        for (int i = 2 * half; i < 2 * half + 2; ++i) {
          s[n][i] = exponential(s[n][i] - highest);
          total[half] += s[n][i];
          if (in.dropout.zeroes &&
              !(kept[half * M + 8 * n + 2 * t + i % 2] >> g & 1)) {
            s[n][i] = 0.0f;
          }
        }
      }
    }
    write_scores<N>(s, scores, Tile::kScores);
    __syncwarp();
    multiply<true, D / 8, M>(scores, Tile::kScores, values, kPitch, o);
  }
  const float keep = keep_scale(in.dropout);
  total[0] = row_total(total[0]);
  total[1] = row_total(total[1]);
  const int rows = place.length - own;
  write_rows<D>(o, keep / total[0], keep / total[1], out, place.first + own,
                rows, head);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = g + 8 * half;
    if (t == 0 && row < rows) {
      log_sum[blockIdx.y * in.tokens + place.first + own + row] =
          top[half] + logf(total[half]);
    }
  }
}

// With P the probabilities, M the mask and O = (P M) V:
// dV = (P M)^T dO;  dS = P (dO V^T M - sum(dO O));  dQ = dS K;  dK = dS^T Q
// (appendix B.4). dots = sum(dO O), a warp a row of a head.
template <typename T>
__global__ void __launch_bounds__(kThreads)
attention_dots(const T* dout, const T* out, int64_t tokens, int heads, int size,
               float* dots) {
  const int64_t i = (blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x)
      / kWarp;
  if (i >= tokens * heads) return;  // whole warps
  float dot = 0.0f;
  for (int d = threadIdx.x % kWarp; d < size; d += kWarp) {
    dot += to_float(dout[i * size + d]) * to_float(out[i * size + d]);
  }
#pragma unroll
  for (int offset = kWarp / 2; offset; offset /= 2) {
    dot += __shfl_xor_sync(kAllLanes, dot, offset);
  }
  if (threadIdx.x % kWarp == 0) dots[i % heads * tokens + i / heads] = dot;
}

template <typename T, int D, int M>
__global__ void __launch_bounds__(Tiles<T, D, M>::kBlock)
attention_grad_query(Inputs<T> in, T* dquery) {
  typedef Tiles<T, D, M> Tile;
  constexpr int N = M / 8, kPitch = Tile::kPitch;
  extern __shared__ __align__(16) unsigned char memory[];
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int g = lane / 4, t = lane % 4;
  T* queries = reinterpret_cast<T*>(memory);
  T* douts = queries + Tile::kOwn * kPitch;
  T* keys = douts + Tile::kOwn * kPitch;
  T* values = keys + M * kPitch;
  T* scores = values + M * kPitch + warp * kRows * Tile::kScores;
  uint8_t* kept = reinterpret_cast<uint8_t*>(
      values + M * kPitch + Tile::kOwn * Tile::kScores) + warp * Tile::kKept;

  Place place;
  if (!find_place(in.starts, in.batch, Tile::kOwn, blockIdx.x, &place)) return;
  const Head head = head_of(in);
  const int own = place.begin + warp * kRows, rows = place.length - own;
  const int64_t first = place.first + place.begin;
  load_tile<Tile::kOwn, D, Tile::kBlock>(
      in.query, first, place.length - place.begin, head, queries);
  load_tile<Tile::kOwn, D, Tile::kBlock>(
      in.dout, first, place.length - place.begin, head, douts);
  float level[2] = {0.0f, 0.0f}, dot[2] = {0.0f, 0.0f};
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = g + 8 * half;
    const int64_t at = blockIdx.y * in.tokens + place.first + own + row;
    if (row < rows) {
      level[half] = in.log_sum[at];
      dot[half] = in.dots[at];
    }
  }
  const float keep = keep_scale(in.dropout);
  float dq[D / 8][4];
  clear<D / 8>(dq);
  for (int j = 0; j < place.length; j += M) {
    __syncthreads();  // all have done with the last tile
    load_tile<M, D, Tile::kBlock>(in.key, place.first + j, place.length - j,
                                  head, keys);
    load_tile<M, D, Tile::kBlock>(in.value, place.first + j, place.length - j,
                                  head, values);
    if (in.dropout.zeroes) {
      keep_queries<M>(in.dropout, blockIdx.y, j, place.first + own, kept);
    }
    __syncthreads();
    float s[N][4], ds[N][4];
    clear<N>(s);
    clear<N>(ds);
    multiply<false, N, D>(queries + warp * kRows * kPitch, kPitch, keys, kPitch,
                          s);
    multiply<false, N, D>(douts + warp * kRows * kPitch, kPitch, values, kPitch,
                          ds);
#pragma unroll
    for (int n = 0; n < N; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int half = i / 2, key = 8 * n + 2 * t + i % 2;
        const float p = exponential(s[n][i] * in.scale - level[half]);
        float mask = 1.0f;
        if (in.dropout.zeroes) {
          mask = kept[half * M + key] >> g & 1 ? keep : 0.0f;
        }
        ds[n][i] = j + key < place.length
            ? p * (ds[n][i] * mask - dot[half]) : 0.0f;
      }
    }
    write_scores<N>(ds, scores, Tile::kScores);
    __syncwarp();
    multiply<true, D / 8, M>(scores, Tile::kScores, keys, kPitch, dq);
  }
  write_rows<D>(dq, in.scale, in.scale, dquery, place.first + own, rows, head);
}

// Its scores are transposed: rows are keys.
template <typename T, int D, int M>
__global__ void __launch_bounds__(Tiles<T, D, M>::kBlock)
attention_grad_key(Inputs<T> in, T* dkey, T* dvalue) {
  typedef Tiles<T, D, M> Tile;
  constexpr int N = M / 8, kPitch = Tile::kPitch;
  extern __shared__ __align__(16) unsigned char memory[];
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int g = lane / 4, t = lane % 4;
  float* levels = reinterpret_cast<float*>(memory);
  float* dots = levels + M;
  T* keys = reinterpret_cast<T*>(dots + M);
  T* values = keys + Tile::kOwn * kPitch;
  T* queries = values + Tile::kOwn * kPitch;
  T* douts = queries + M * kPitch;
  T* scores = douts + M * kPitch + warp * kRows * Tile::kScores;
  uint8_t* kept = reinterpret_cast<uint8_t*>(
      douts + M * kPitch + Tile::kOwn * Tile::kScores) + warp * Tile::kKept;

  Place place;
  if (!find_place(in.starts, in.batch, Tile::kOwn, blockIdx.x, &place)) return;
  const Head head = head_of(in);
  const int own = place.begin + warp * kRows;  // the warp's first key
  const int64_t first = place.first + place.begin;
  load_tile<Tile::kOwn, D, Tile::kBlock>(
      in.key, first, place.length - place.begin, head, keys);
  load_tile<Tile::kOwn, D, Tile::kBlock>(
      in.value, first, place.length - place.begin, head, values);
  const float keep = keep_scale(in.dropout);
  float dk[D / 8][4], dv[D / 8][4];
  clear<D / 8>(dk);
  clear<D / 8>(dv);
  for (int j = 0; j < place.length; j += M) {
    __syncthreads();  // all have done with the last tile
    load_tile<M, D, Tile::kBlock>(in.query, place.first + j, place.length - j,
                                  head, queries);
    load_tile<M, D, Tile::kBlock>(in.dout, place.first + j, place.length - j,
                                  head, douts);
    if (threadIdx.x < M) {
      const bool is_there = j + threadIdx.x < place.length;
      const int64_t at = blockIdx.y * in.tokens + place.first + j + threadIdx.x;
      levels[threadIdx.x] = is_there ? in.log_sum[at] : 0.0f;
      dots[threadIdx.x] = is_there ? in.dots[at] : 0.0f;
    }
    if (in.dropout.zeroes) {
      keep_keys<M>(in.dropout, blockIdx.y, own, place.first + j, kept);
    }
    __syncthreads();
    float s[N][4], ds[N][4];
    clear<N>(s);
    clear<N>(ds);
    multiply<false, N, D>(keys + warp * kRows * kPitch, kPitch, queries, kPitch,
                          s);
    multiply<false, N, D>(values + warp * kRows * kPitch, kPitch, douts, kPitch,
                          ds);
#pragma unroll
    for (int n = 0; n < N; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int query = 8 * n + 2 * t + i % 2;
        const bool is_there = j + query < place.length;
        const float p = exponential(s[n][i] * in.scale - levels[query]);
        float mask = 1.0f;
        if (in.dropout.zeroes) {
          const int bits = kept[n * kRows + g + 8 * (i / 2)];
          mask = bits >> (2 * t + i % 2) & 1 ? keep : 0.0f;
        }
        s[n][i] = is_there ? p * mask : 0.0f;
        ds[n][i] = is_there ? p * (ds[n][i] * mask - dots[query]) : 0.0f;
      }
    }
    write_scores<N>(s, scores, Tile::kScores);
    __syncwarp();
    multiply<true, D / 8, M>(scores, Tile::kScores, douts, kPitch, dv);
    __syncwarp();  // all lanes have read the scores
    write_scores<N>(ds, scores, Tile::kScores);
    __syncwarp();
    multiply<true, D / 8, M>(scores, Tile::kScores, queries, kPitch, dk);
  }
  const int rows = place.length - own;
  write_rows<D>(dk, in.scale, in.scale, dkey, place.first + own, rows, head);
  write_rows<D>(dv, 1.0f, 1.0f, dvalue, place.first + own, rows, head);
}

// Launches --------------------------------------------------------------------

struct Arguments {
  const void *dout, *query, *key, *value, *out;
  const float* log_sum;
  const int32_t* starts;
  BertDropout dropout;
  int64_t batch, tokens;
  int heads, size;
  float* scratch;
  void* to[3];
  float* new_log_sum;
  cudaStream_t stream;
};

// Launches a kernel whose block needs more shared memory than there is unasked.
template <typename Kernel, typename... Rest>
cudaError_t launch(Kernel kernel, dim3 grid, int block, int bytes,
                   cudaStream_t stream, Rest... rest) {
  const cudaError_t error = cudaFuncSetAttribute(
      reinterpret_cast<const void*>(kernel),
      cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (error != cudaSuccess) {
    cudaGetLastError();
    return error;
  }
  kernel<<<grid, block, bytes, stream>>>(rest...);
  return cudaGetLastError();
}

// More tiles than there can be: each sequence ends with one that is not full.
template <typename Tile>
dim3 grid_of(const Arguments& a) {
  return dim3(static_cast<unsigned>(a.tokens / Tile::kOwn + a.batch),
              static_cast<unsigned>(a.heads));
}

template <int D, typename T>
cudaError_t forward(const Arguments& a, const Inputs<T>& in) {
  constexpr int M = sizeof(T) == 2 ? 64 : 32;
  typedef Tiles<T, D, M> Tile;
  return launch(attention<T, D, M>, grid_of<Tile>(a), Tile::kBlock,
                Tile::bytes(1, 2), a.stream, in, static_cast<T*>(a.to[0]),
                a.new_log_sum);
}

template <int D, typename T>
cudaError_t backward(const Arguments& a, const Inputs<T>& in) {
  constexpr int M = sizeof(T) == 4 && D == 128 ? 16 : 32;
  typedef Tiles<T, D, M> Tile;
  attention_dots<T>
      <<<static_cast<unsigned>(parts_of(a.tokens * a.heads, kThreads / kWarp)),
         kThreads, 0, a.stream>>>(in.dout, static_cast<const T*>(a.out),
                                  a.tokens, a.heads, a.size, a.scratch);
  const cudaError_t error =
      launch(attention_grad_query<T, D, M>, grid_of<Tile>(a), Tile::kBlock,
             Tile::bytes(2, 2), a.stream, in, static_cast<T*>(a.to[0]));
  if (error != cudaSuccess) return error;
  return launch(attention_grad_key<T, D, M>, grid_of<Tile>(a), Tile::kBlock,
                Tile::bytes(2, 2), a.stream, in, static_cast<T*>(a.to[1]),
                static_cast<T*>(a.to[2]));
}

struct Typed {
  const Arguments& a;

  template <int D, typename T>
  cudaError_t with_size(const Inputs<T>& in) const {
    return a.dout ? backward<D>(a, in) : forward<D>(a, in);
  }

  template <typename T>
  cudaError_t operator()(T*) const {
    if (a.size < 1 || a.size > 128 || a.heads < 1 || a.heads > 65535) {
      return cudaErrorInvalidValue;
    }
    if (!a.tokens) return cudaSuccess;
    Inputs<T> in;
    in.query = static_cast<const T*>(a.query);
    in.key = static_cast<const T*>(a.key);
    in.value = static_cast<const T*>(a.value);
    in.dout = static_cast<const T*>(a.dout);
    in.starts = a.starts;
    in.dropout = a.dropout;
    in.batch = a.batch;
    in.tokens = a.tokens;
    in.size = a.size;
    in.scale = 1.0f / sqrtf(static_cast<float>(a.size));
    in.is_aligned = divides(
        Widest<T>::value, a.size,
        {a.query, a.key, a.value, a.dout, a.to[0], a.to[1], a.to[2]});
    in.log_sum = a.log_sum;
    in.dots = a.scratch;
    if (a.size <= 32) return with_size<32>(in);
    if (a.size <= 64) return with_size<64>(in);
    return with_size<128>(in);
  }
};

}  // namespace

extern "C" {

cudaError_t bert_gpu_attention(int type, const void* query, const void* key,
                               const void* value, const int32_t* starts,
                               BertDropout dropout, int64_t batch,
                               int64_t tokens, int heads, int size, void* out,
                               float* log_sum, cudaStream_t stream) {
  Arguments a = {};
  a.query = query;
  a.key = key;
  a.value = value;
  a.starts = starts;
  a.dropout = dropout;
  a.batch = batch;
  a.tokens = tokens;
  a.heads = heads;
  a.size = size;
  a.to[0] = out;
  a.new_log_sum = log_sum;
  a.stream = stream;
  return with_type(type, Typed{a});
}

cudaError_t bert_gpu_attention_grad(
    int type, const void* dout, const void* query, const void* key,
    const void* value, const void* out, const float* log_sum,
    const int32_t* starts, BertDropout dropout, int64_t batch, int64_t tokens,
    int heads, int size, float* scratch, void* dquery, void* dkey, void* dvalue,
    cudaStream_t stream) {
  const Arguments a = {dout,   query,   key,    value, out,  log_sum,
                       starts, dropout, batch,  tokens, heads, size,
                       scratch, {dquery, dkey, dvalue}, nullptr, stream};
  return with_type(type, Typed{a});
}

}  // extern "C"
