// Small matrix products in registers of BERT_WIDTH floats. For cpu_kernels.cc
// alone, which says why all is in an unnamed namespace.

#ifndef FUSED_OPS_KERNELS_CPU_PRODUCTS_H_
#define FUSED_OPS_KERNELS_CPU_PRODUCTS_H_

#include <cstdint>
#include <cstring>

namespace bert {
namespace {

constexpr int64_t kWidth = BERT_WIDTH;
typedef float Vec __attribute__((vector_size(4 * BERT_WIDTH)));

inline Vec load(const float* from) {
  Vec v;
  std::memcpy(&v, from, sizeof(v));
  return v;
}

inline void store(float* to, Vec v) { std::memcpy(to, &v, sizeof(v)); }

// Rows of a product that stay in registers, two of them wide. AVX-512 has twice
// as many registers.
constexpr int kTile = BERT_WIDTH == 16 ? 8 : 6;

// A matrix whose element (i, j) is at[i * row + j * column].
struct View {
  const float* at;
  int64_t row, column;
};

// c [R, vectors] = or += a [R, depth] b [depth, vectors].
template <int R, int V, bool kAdd>
inline void tile(View a, const float* b, int64_t b_row, int64_t depth, float* c,
                 int64_t c_row) {
  Vec sums[R][V];
  for (int i = 0; i < R; ++i) {
    for (int v = 0; v < V; ++v) {
      sums[i][v] = kAdd ? load(c + i * c_row + v * kWidth) : Vec{};
    }
  }
  for (int64_t k = 0; k < depth; ++k, b += b_row, a.at += a.column) {
    Vec right[V];
    for (int v = 0; v < V; ++v) right[v] = load(b + v * kWidth);
    for (int i = 0; i < R; ++i) {
      const float left = a.at[i * a.row];
      for (int v = 0; v < V; ++v) sums[i][v] += left * right[v];
    }
  }
  for (int i = 0; i < R; ++i) {
    for (int v = 0; v < V; ++v) store(c + i * c_row + v * kWidth, sums[i][v]);
  }
}

template <int R, bool kAdd>
inline void strip(View a, const float* b, int64_t b_row, int64_t depth,
                  int64_t columns, float* c, int64_t c_row) {
  int64_t j = 0;
  for (; j + 2 * kWidth <= columns; j += 2 * kWidth) {
    tile<R, 2, kAdd>(a, b + j, b_row, depth, c + j, c_row);
  }
  for (; j < columns; j += kWidth) {
    tile<R, 1, kAdd>(a, b + j, b_row, depth, c + j, c_row);
  }
}

// c [rows, columns] = or += a [rows, depth] b [depth, columns]. `columns` is a
// multiple of kWidth; rows of b and c are that long.
template <bool kAdd>
void multiply(View a, const float* b, int64_t b_row, int64_t rows,
              int64_t depth, int64_t columns, float* c, int64_t c_row) {
  int64_t i = 0;
  for (; i + kTile <= rows; i += kTile) {
    strip<kTile, kAdd>({a.at + i * a.row, a.row, a.column}, b, b_row, depth,
                       columns, c + i * c_row, c_row);
  }
  for (; i + 2 <= rows; i += 2) {
    strip<2, kAdd>({a.at + i * a.row, a.row, a.column}, b, b_row, depth,
                   columns, c + i * c_row, c_row);
  }
  for (; i < rows; ++i) {
    strip<1, kAdd>({a.at + i * a.row, a.row, a.column}, b, b_row, depth,
                   columns, c + i * c_row, c_row);
  }
}

}  // namespace
}  // namespace bert

#endif  // FUSED_OPS_KERNELS_CPU_PRODUCTS_H_
