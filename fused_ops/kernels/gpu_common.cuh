// What the CUDA kernels share: types, accesses, random numbers, sums over rows.
//
// All is in an unnamed namespace, since each .cu is compiled on its own.

#ifndef FUSED_OPS_KERNELS_GPU_COMMON_CUH_
#define FUSED_OPS_KERNELS_GPU_COMMON_CUH_

#include "fused_ops/kernels/gpu_kernels.h"

#include <cuda_fp16.h>
#if CUDART_VERSION >= 11000
#include <cuda_bf16.h>
#endif

#include <cstring>
#include <initializer_list>

namespace {

constexpr int kWarp = 32;
constexpr int kThreads = 256;  // of a block
constexpr unsigned kAllLanes = 0xffffffffu;

// Types ----------------------------------------------------------------------

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(__half x) { return __half2float(x); }
// Converts V values, two at a time where there are two.
template <int V>
__device__ __forceinline__ void from_floats(const float* from, float* to) {
#pragma unroll
  for (int i = 0; i < V; ++i) to[i] = from[i];
}
template <int V>
__device__ __forceinline__ void from_floats(const float* from, __half* to) {
#pragma unroll
  for (int i = 0; i + 1 < V; i += 2) {
    const __half2 pair = __floats2half2_rn(from[i], from[i + 1]);
    to[i] = __low2half(pair);
    to[i + 1] = __high2half(pair);
  }
  if (V % 2) to[V - 1] = __float2half_rn(from[V - 1]);
}
#if CUDART_VERSION >= 11000
__device__ __forceinline__ float to_float(__nv_bfloat16 x) {
  return __bfloat162float(x);
}
template <int V>
__device__ __forceinline__ void from_floats(const float* from,
                                            __nv_bfloat16* to) {
#pragma unroll
  for (int i = 0; i + 1 < V; i += 2) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(from[i], from[i + 1]);
    to[i] = pair.x;
    to[i + 1] = pair.y;
  }
  if (V % 2) to[V - 1] = __float2bfloat16_rn(from[V - 1]);
}
#endif

template <typename T>
__device__ __forceinline__ float rounded(float x) {
  T y;
  from_floats<1>(&x, &y);
  return to_float(y);
}

// Calls `work` with a null pointer of the type.
template <typename Work>
cudaError_t with_type(int type, Work work) {
  switch (type) {
    case kBertFloat:
      return work(static_cast<float*>(nullptr));
    case kBertHalf:
      return work(static_cast<__half*>(nullptr));
#if CUDART_VERSION >= 11000
    case kBertBfloat:
      return work(static_cast<__nv_bfloat16*>(nullptr));
#endif
    default:
      return cudaErrorInvalidValue;
  }
}

// Accesses -------------------------------------------------------------------

template <int bytes> struct WordOf;
template <> struct WordOf<2> { typedef uint16_t type; };
template <> struct WordOf<4> { typedef uint32_t type; };
template <> struct WordOf<8> { typedef uint2 type; };
template <> struct WordOf<16> { typedef uint4 type; };

// V values as one access reads and writes them.
template <typename T, int V>
struct Packed {
  typedef typename WordOf<V * sizeof(T)>::type Word;
  Word word;
};

template <int V, typename T>
__device__ __forceinline__ Packed<T, V> fetch(const T* from) {
  typedef typename Packed<T, V>::Word Word;
  return {*reinterpret_cast<const Word*>(from)};
}

template <typename T, int V>
__device__ __forceinline__ void unpack(Packed<T, V> packed, float* to) {
  T values[V];
  memcpy(values, &packed.word, sizeof(values));
#pragma unroll
  for (int i = 0; i < V; ++i) to[i] = to_float(values[i]);
}

template <int V, typename T>
__device__ __forceinline__ void load(const T* from, float* to) {
  unpack(fetch<V>(from), to);
}

template <typename T, int V>
__device__ __forceinline__ Packed<T, V> pack(const float* from) {
  T values[V];
  from_floats<V>(from, values);
  Packed<T, V> packed;
  memcpy(&packed.word, values, sizeof(values));
  return packed;
}

template <typename T, int V>
__device__ __forceinline__ void put(Packed<T, V> packed, T* to) {
  *reinterpret_cast<typename Packed<T, V>::Word*>(to) = packed.word;
}

template <int V, typename T>
__device__ __forceinline__ void store(const float* from, T* to) {
  put(pack<T, V>(from), to);
}

// V floats by accesses of at most 16 bytes.
template <int V>
__device__ __forceinline__ void load_floats(const float* from, float* to) {
  constexpr int kPart = V < 4 ? V : 4;
#pragma unroll
  for (int i = 0; i < V; i += kPart) load<kPart>(from + i, to + i);
}

// The most values of T that one access takes.
template <typename T>
struct Widest {
  static constexpr int value = 16 / sizeof(T);
};

// Whether rows of `width` values can be read `values` at a time.
inline bool divides(int values, int64_t width,
                    std::initializer_list<const void*> pointers) {
  uintptr_t all = 0;
  for (const void* one : pointers) all |= reinterpret_cast<uintptr_t>(one);
  return width % values == 0 && all % 16 == 0;
}

template <int V>
struct Values {};

// Calls `work` with Values of the width of access that suits all rows: as wide
// as can be, two, or one.
template <typename T, typename Work>
void with_values(int64_t width, std::initializer_list<const void*> pointers,
                 Work work) {
  if (divides(Widest<T>::value, width, pointers)) {
    work(Values<Widest<T>::value>());
  } else if (divides(2, width, pointers)) {
    work(Values<2>());
  } else {
    work(Values<1>());
  }
}

inline int64_t parts_of(int64_t n, int64_t size) {
  return (n + size - 1) / size;
}

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

inline int multiprocessors() {
  int device = 0, count = 1;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device);
  return count;
}

// Elementary functions -------------------------------------------------------

constexpr float kLog2E = 1.44269504088896341f;

// 2^x and 1/x as the hardware has them, to 2 units in the last place.
__device__ __forceinline__ float power_of_2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ __forceinline__ float reciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ __forceinline__ float exponential(float x) {
  return power_of_2(x * kLog2E);
}

// Dropout --------------------------------------------------------------------

// cpu_kernels.cc's random_block, one counter's eight values of 16 bits.
__device__ __forceinline__ void random_words(const BertDropout& dropout,
                                             uint32_t place, uint32_t row,
                                             uint32_t words[4]) {
  uint32_t c0 = place, c1 = row;
  uint32_t c2 = static_cast<uint32_t>(dropout.counter);
  uint32_t c3 = static_cast<uint32_t>(dropout.counter >> 32);
  uint32_t key_0 = static_cast<uint32_t>(dropout.key);
  uint32_t key_1 = static_cast<uint32_t>(dropout.key >> 32);
#pragma unroll
  for (int round = 0; round < 7; ++round) {
    const uint64_t a = static_cast<uint64_t>(0xD2511F53u) * c0;
    const uint64_t b = static_cast<uint64_t>(0xCD9E8D57u) * c2;
    c0 = static_cast<uint32_t>(b >> 32) ^ c1 ^ key_0;
    c1 = static_cast<uint32_t>(b);
    c2 = static_cast<uint32_t>(a >> 32) ^ c3 ^ key_1;
    c3 = static_cast<uint32_t>(a);
    key_0 += 0x9E3779B9u;
    key_1 += 0xBB67AE85u;
  }
  words[0] = c0;
  words[1] = c1;
  words[2] = c2;
  words[3] = c3;
}

__device__ __forceinline__ float keep_scale(const BertDropout& dropout) {
  return 65536.0f / static_cast<float>(65536 - dropout.zeroes);
}

}  // namespace

#endif  // FUSED_OPS_KERNELS_GPU_COMMON_CUH_
