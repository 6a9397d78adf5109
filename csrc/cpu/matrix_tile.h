// Small float32 matrix products with the result held in registers.
#pragma once

#include <stdint.h>

#include "cpu/vector.h"

namespace synq::cpu {
namespace {

// Rows of the result that fit beside three vectors each: of 32 registers 24, of 16 registers 12.
#if SYNQ_VECTOR_BYTES == 64 || defined(__aarch64__)
constexpr int kTileRows = 8;
#else
constexpr int kTileRows = 4;
#endif
constexpr int kTileVectors = 3;

// One summand of a product: `depth` columns of a times `depth` rows of b.
struct Factors {
  const float* a;  // element (row, k) at a[row * a_row + k * a_depth]
  int64_t a_row;
  int64_t a_depth;
  const float* b;  // element (k, column) at b[k * b_depth + column]
  int64_t b_depth;
  int64_t depth;
};

// out = sum of the products, with kAdd out += it, for kTileRows rows and kVectors vectors of columns.
template <int kVectors, bool kAdd, int kCount>
inline void multiply_tile(const Factors (&factors)[kCount], int64_t row, int64_t column, float* out, int64_t out_row) {
  Vector sums[kTileRows][kVectors] = {};
  for (int part = 0; part < kCount; ++part) {
    const Factors& f = factors[part];
    const float* a = f.a + row * f.a_row;
    const float* b = f.b + column;
    for (int64_t k = 0; k < f.depth; ++k) {
      Vector columns[kVectors];
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) columns[v] = load_vector(b + v * kLanes);
#pragma GCC unroll 8
      for (int r = 0; r < kTileRows; ++r) {
        const Vector factor = broadcast(a[r * f.a_row]);
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v) sums[r][v] = multiply_add(factor, columns[v], sums[r][v]);
      }
      a += f.a_depth;
      b += f.b_depth;
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kTileRows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      float* place = out + r * out_row + v * kLanes;
      store_vector(place, kAdd ? load_vector(place) + sums[r][v] : sums[r][v]);
    }
  }
}

// out[r, c] for r in [row, row + rows) and c in [column, column_end); rows is a multiple of kTileRows, the columns of
// kLanes. out points at (row, column).
template <int kCount, bool kAdd = false>
void multiply(const Factors (&factors)[kCount], int64_t row, int64_t rows, int64_t column, int64_t column_end,
              float* out, int64_t out_row) {
  for (int64_t c = column; c < column_end; c += kTileVectors * kLanes) {
    const int64_t vectors = (column_end - c) / kLanes;
    for (int64_t r = 0; r < rows; r += kTileRows) {
      float* target = out + r * out_row + (c - column);
      if (vectors >= 3) {
        multiply_tile<3, kAdd>(factors, row + r, c, target, out_row);
      } else if (vectors == 2) {
        multiply_tile<2, kAdd>(factors, row + r, c, target, out_row);
      } else {
        multiply_tile<1, kAdd>(factors, row + r, c, target, out_row);
      }
    }
  }
}

}  // namespace
}  // namespace synq::cpu
