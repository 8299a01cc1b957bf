// The random numbers of dropout's masks. For cpu_kernels.cc alone, which says why
// all is in an unnamed namespace.

#ifndef FUSED_OPS_KERNELS_CPU_RANDOM_H_
#define FUSED_OPS_KERNELS_CPU_RANDOM_H_

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "fused_ops/kernels/cpu_kernels.h"

namespace bert {
namespace {

// Philox 4 x 32 with 7 rounds (Salmon et al., "Parallel random numbers: as easy
// as 1, 2, 3", 2011): a block of kLanes counters, 4 words each, by which 8
// values of 16 bits are decided.
constexpr int kLanes = 16;
constexpr int kValues = 8;

// Words of as many lanes as fit in a register; compilers do not find this form
// by themselves.
typedef uint32_t Words __attribute__((vector_size(4 * BERT_WIDTH)));
typedef uint64_t Wide __attribute__((vector_size(4 * BERT_WIDTH)));
constexpr int kParts = kLanes / BERT_WIDTH;

// The products, 64 bits each, of the lower halves of the pairs of x.
inline Wide multiply_even(Wide x, uint32_t factor) {
#if BERT_WIDTH == 16
  return reinterpret_cast<Wide>(_mm512_mul_epu32(
      reinterpret_cast<__m512i>(x), _mm512_set1_epi32(factor)));
#elif BERT_WIDTH == 8
  return reinterpret_cast<Wide>(_mm256_mul_epu32(
      reinterpret_cast<__m256i>(x), _mm256_set1_epi32(factor)));
#else
  return reinterpret_cast<Wide>(_mm_mul_epu32(
      reinterpret_cast<__m128i>(x), _mm_set1_epi32(factor)));
#endif
}

// The upper and lower halves of factor * x.
inline void multiply_words(Words x, uint32_t factor, Words* upper,
                           Words* lower) {
  const Wide even = multiply_even(reinterpret_cast<Wide>(x), factor);
  const Wide odd = multiply_even(reinterpret_cast<Wide>(x) >> 32, factor);
  *upper = reinterpret_cast<Words>((even >> 32) | (odd >> 32 << 32));
  *lower = reinterpret_cast<Words>((even << 32 >> 32) | (odd << 32));
}

// `place` is that of the first lane in its row. random[value][lane] < 65536.
inline void random_block(const Dropout& dropout, uint32_t place, uint32_t row,
                         uint32_t random[kValues][kLanes]) {
  Words c0[kParts], c1[kParts], c2[kParts], c3[kParts];
  uint32_t key_0 = static_cast<uint32_t>(dropout.key);
  uint32_t key_1 = static_cast<uint32_t>(dropout.key >> 32);
  uint32_t places[kLanes];
  for (int i = 0; i < kLanes; ++i) places[i] = place + i;
  for (int part = 0; part < kParts; ++part) {
    std::memcpy(&c0[part], places + part * BERT_WIDTH, sizeof(c0[part]));
    c1[part] = Words{} + row;
    c2[part] = Words{} + static_cast<uint32_t>(dropout.counter);
    c3[part] = Words{} + static_cast<uint32_t>(dropout.counter >> 32);
  }
  for (int round = 0; round < 7; ++round) {
    for (int part = 0; part < kParts; ++part) {
      Words a, b, next_1, next_3;
      multiply_words(c0[part], 0xD2511F53u, &a, &next_3);
      multiply_words(c2[part], 0xCD9E8D57u, &b, &next_1);
      c0[part] = b ^ c1[part] ^ key_0;
      c2[part] = a ^ c3[part] ^ key_1;
      c1[part] = next_1;
      c3[part] = next_3;
    }
    key_0 += 0x9E3779B9u;
    key_1 += 0xBB67AE85u;
  }
  for (int part = 0; part < kParts; ++part) {
    const Words words[] = {c0[part], c1[part], c2[part], c3[part]};
    for (int word = 0; word < 4; ++word) {
      const Words low = words[word] & 0xffff, high = words[word] >> 16;
      std::memcpy(random[2 * word] + part * BERT_WIDTH, &low, sizeof(low));
      std::memcpy(random[2 * word + 1] + part * BERT_WIDTH, &high,
                  sizeof(high));
    }
  }
}

inline float keep_scale(const Dropout& dropout) {
  return 65536.0f / static_cast<float>(65536 - dropout.zeroes);
}

// Part of a row's mask, 0 or 1 / (1 - rate), in blocks of 128 values: `begin` is
// a multiple of that, and `mask` has room for whole blocks. A counter decides 8
// values that follow each other, as is best for a GPU.
void row_mask(const Dropout& dropout, int64_t row, int64_t begin, int64_t count,
              float* mask) {
  const float keep = keep_scale(dropout);
  uint32_t random[kValues][kLanes];
  for (int64_t column = 0; column < count; column += kLanes * kValues) {
    random_block(dropout, static_cast<uint32_t>((begin + column) / kValues),
                 static_cast<uint32_t>(row), random);
    for (int i = 0; i < kLanes; ++i) {
      for (int value = 0; value < kValues; ++value) {
        mask[column + i * kValues + value] =
            random[value][i] < dropout.zeroes ? 0.0f : keep;
      }
    }
  }
}

}  // namespace
}  // namespace bert

#endif  // FUSED_OPS_KERNELS_CPU_RANDOM_H_
