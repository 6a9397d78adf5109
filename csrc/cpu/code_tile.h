// Products of 8-bit codes with sums in int32, where the processor has an instruction for them.
#pragma once

#include <stdint.h>
#include <string.h>

#include "cpu/matrix_tile.h"

namespace synq::cpu {
namespace {

// Codes that an int32 holds: neighbours in the depth of a product.
constexpr int64_t kCodes = 4;

#if defined(SYNQ_X86) && defined(__AVX512F__)

inline bool multiplies_codes() { return __builtin_cpu_supports("avx512vnni"); }

// As multiply_tile: kRows rows of codes without sign times kVectors vectors of codes with one. `depth` counts words of
// kCodes codes; a word of b holds those of one column.
template <int kRows, int kVectors>
__attribute__((target("avx512vnni"))) inline void multiply_codes_tile(const uint8_t* a, int64_t a_row, const int32_t* b,
                                                                      int64_t b_depth, int64_t depth, int32_t* out,
                                                                      int64_t out_row) {
  __m512i sums[kRows][kVectors] = {};
  for (int64_t k = 0; k < depth; ++k) {
    __m512i columns[kVectors];
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) columns[v] = _mm512_loadu_si512(b + v * kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      int32_t word;
      memcpy(&word, a + r * a_row, sizeof word);
      const __m512i factors = _mm512_set1_epi32(word);
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) sums[r][v] = _mm512_dpbusd_epi32(sums[r][v], factors, columns[v]);
    }
    a += kCodes;
    b += b_depth;
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) _mm512_storeu_si512(out + r * out_row + v * kLanes, sums[r][v]);
  }
}

// `rows` is a multiple of kTileRows, `columns` of kLanes.
__attribute__((target("avx512vnni"))) inline void multiply_codes(const uint8_t* a, int64_t a_row, int64_t rows,
                                                                 const int32_t* b, int64_t b_depth, int64_t columns,
                                                                 int64_t depth, int32_t* out, int64_t out_row) {
  constexpr int kRows = 4, kMost = 5;
  // As even tiles as there can be.
  const int64_t vectors = columns / kLanes, tiles = (vectors + kMost - 1) / kMost;
  int64_t c = 0;
  for (int64_t tile = 0; tile < tiles; ++tile) {
    const int64_t width = vectors / tiles + (tile < vectors % tiles);
    for (int64_t r = 0; r < rows; r += kRows) {
      const uint8_t* codes = a + r * a_row;
      int32_t* target = out + r * out_row + c;
      if (width == 5) {
        multiply_codes_tile<kRows, 5>(codes, a_row, b + c, b_depth, depth, target, out_row);
      } else if (width == 4) {
        multiply_codes_tile<kRows, 4>(codes, a_row, b + c, b_depth, depth, target, out_row);
      } else if (width == 3) {
        multiply_codes_tile<kRows, 3>(codes, a_row, b + c, b_depth, depth, target, out_row);
      } else if (width == 2) {
        multiply_codes_tile<kRows, 2>(codes, a_row, b + c, b_depth, depth, target, out_row);
      } else {
        multiply_codes_tile<kRows, 1>(codes, a_row, b + c, b_depth, depth, target, out_row);
      }
    }
    c += width * kLanes;
  }
}

// The low 8 bits of whole numbers.
inline void store_codes(uint8_t* target, Vector codes) {
  const __m512i words = (__m512i) __builtin_convertvector(codes, Lanes);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(target), _mm512_maskz_cvtepi32_epi8(0xffff, words));
}

#else

inline bool multiplies_codes() { return false; }

inline void multiply_codes(const uint8_t*, int64_t, int64_t, const int32_t*, int64_t, int64_t, int64_t, int32_t*,
                           int64_t) {}
inline void store_codes(uint8_t*, Vector) {}

#endif

// Sums in the place of floats.
inline Vector load_sums(const float* words) {
  Lanes sums;
  memcpy(&sums, words, sizeof sums);
  return __builtin_convertvector(sums, Vector);
}

}  // namespace
}  // namespace synq::cpu
