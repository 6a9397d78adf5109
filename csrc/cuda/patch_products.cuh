// The two products of the patch similarity entropy, on tensor cores: each image's unit tokens with themselves, and the
// gradients in similarities with unit tokens. Three TF32 products for one, which is float32's accuracy; sums have fixed
// places.
#pragma once

#include "../patch_similarity_entropy.h"
#include "memory.cuh"
#include "mma.cuh"

namespace synq {
namespace {

constexpr int kTile = static_cast<int>(kSimilarityTile);
constexpr int kDepth = 32;
constexpr int kProductThreads = 128;
// Blocks that a multiprocessor must have room for: at most 128 registers a thread, which hold its sums and what comes
// next.
constexpr int kProductBlocks = 4;
constexpr int kPack = 4;
// A warp has 32 x 32 of a tile's products: two fragments of rows and four of columns.
constexpr int kWarpSide = 32;
constexpr int kRowFragments = kWarpSide / 16;
constexpr int kColumnFragments = kWarpSide / 8;
// Lanes of a fragment read from different banks: lines are 4 banks apart where the lanes' groups are lines, 8 where
// their members are.
constexpr int kLineOfDepth = kDepth + 4;
constexpr int kLineOfTile = kTile + 8;

struct Matrix {
  const float* values;
  int lines;
  int width;    // of a line; they follow each other
  bool packed;  // four neighbouring values can be read at once
};

// `kLines` lines of `kWidth` neighbours, which a thread holds on their way from global to shared memory.
template <int kLines, int kWidth>
struct Panel {
  static constexpr int kStride = kWidth == kDepth ? kLineOfDepth : kLineOfTile;
  static constexpr int kPacksOfLine = kWidth / kPack;
  static constexpr int kStep = kProductThreads / kPacksOfLine;  // lines between those of a thread
  static constexpr int kPacks = kLines / kStep;

  Pack<float, kPack> packs[kPacks];

  static __device__ __forceinline__ int own_line() { return static_cast<int>(threadIdx.x) / kPacksOfLine; }
  static __device__ __forceinline__ int own_place() { return static_cast<int>(threadIdx.x) % kPacksOfLine * kPack; }

  // The lines from `first_line` on and their values from `first` on; zero beyond the matrix.
  __device__ __forceinline__ void load(const Matrix& matrix, int first_line, int first) {
    int line = first_line + own_line();
    const int place = first + own_place();
    const float* source = matrix.values + static_cast<int64_t>(line) * matrix.width + place;
#pragma unroll
    for (int i = 0; i < kPacks; ++i, line += kStep, source += kStep * matrix.width) {
      packs[i] = {};
      if (line >= matrix.lines || place >= matrix.width) continue;
      if (matrix.packed) {
        packs[i] = load_pack<kPack>(source);
        continue;
      }
#pragma unroll
      for (int j = 0; j < kPack; ++j) {
        if (place + j < matrix.width) packs[i].values[j] = source[j];
      }
    }
  }
  __device__ __forceinline__ void store(float* target) const {
#pragma unroll
    for (int i = 0; i < kPacks; ++i) {
      store_shared_pack<kPack>(target + (own_line() + i * kStep) * kStride + own_place(), packs[i]);
    }
  }
};

// Rows of the left factor, and what meets them along the depth: rows of the right one (kTransposed) or its lines.
template <bool kTransposed>
struct Panels {
  using Left = Panel<kTile, kDepth>;
  using Right = Panel<kTransposed ? kTile : kDepth, kTransposed ? kDepth : kTile>;
  static constexpr int kLeftSize = kTile * kLineOfDepth;
  static constexpr int kSize = kLeftSize + (kTransposed ? kTile * kLineOfDepth : kDepth * kLineOfTile);

  // Where the right factor's value for a place of the depth and a column is.
  static __device__ __forceinline__ int right_place(int depth, int column) {
    return kTransposed ? column * kLineOfDepth + depth : depth * kLineOfTile + column;
  }
};

using Sums = float[kRowFragments][kColumnFragments][4];

// The place of a sum within a tile.
__device__ __forceinline__ int sum_row(int fragment, int i) {
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  return warp / 2 * kWarpSide + fragment * 16 + i / 2 * 8 + lane / 4;
}
__device__ __forceinline__ int sum_column(int fragment, int i) {
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  return warp % 2 * kWarpSide + fragment * 8 + lane % 4 * 2 + i % 2;
}

template <bool kTransposed>
__device__ __forceinline__ void multiply_panels(const float* panels, Sums& sums) {
  const float* left = panels;
  const float* right = panels + Panels<kTransposed>::kLeftSize;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int row = sum_row(0, 0);
  const int column = sum_column(0, 0) - lane % 4 * 2 + lane / 4;
#pragma unroll 1  // has as many registers as there are
  for (int step = 0; step < kDepth; step += 8) {
    const int depth = step + lane % 4;
    uint32_t high[kRowFragments][4];
    uint32_t low[kRowFragments][4];
#pragma unroll
    for (int m = 0; m < kRowFragments; ++m) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int place = (row + m * 16 + i % 2 * 8) * kLineOfDepth + depth + i / 2 * 4;
        const Split value = split_finite(left[place]);
        high[m][i] = value.high;
        low[m][i] = value.low;
      }
    }
#pragma unroll
    for (int n = 0; n < kColumnFragments; ++n) {
      const Split first = split_finite(right[Panels<kTransposed>::right_place(depth, column + n * 8)]);
      const Split second = split_finite(right[Panels<kTransposed>::right_place(depth + 4, column + n * 8)]);
      const uint32_t b_high[2] = {first.high, second.high};
      const uint32_t b_low[2] = {first.low, second.low};
#pragma unroll
      for (int m = 0; m < kRowFragments; ++m) {
        multiply_add(sums[m][n], low[m], b_high);
        multiply_add(sums[m][n], high[m], b_low);
        multiply_add(sums[m][n], high[m], b_high);
      }
    }
  }
}

// The tile at (row, column) of left times right, or times right's transpose. The next panels are on their way while
// these are multiplied.
template <bool kTransposed>
__device__ __forceinline__ void multiply_tile(const Matrix& left, const Matrix& right, int row, int column,
                                              Sums& sums) {
  __shared__ __align__(kPackBytes) float panels[2][Panels<kTransposed>::kSize];
  typename Panels<kTransposed>::Left next_left;
  typename Panels<kTransposed>::Right next_right;
  const auto load = [&](int first) {
    next_left.load(left, row, first);
    next_right.load(right, kTransposed ? column : first, kTransposed ? first : column);
  };
  load(0);
  int half = 0;
  for (int first = 0; first < left.width; first += kDepth, half ^= 1) {
    next_left.store(panels[half]);
    next_right.store(panels[half] + Panels<kTransposed>::kLeftSize);
    __syncthreads();  // also: the other half has been multiplied
    if (first + kDepth < left.width) load(first + kDepth);
    multiply_panels<kTransposed>(panels[half], sums);
  }
}

template <typename Item>
__device__ __forceinline__ void for_each_sum(const Sums& sums, Item item) {
#pragma unroll
  for (int m = 0; m < kRowFragments; ++m) {
#pragma unroll
    for (int n = 0; n < kColumnFragments; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) item(sum_row(m, i), sum_column(n, i), sums[m][n][i]);
    }
  }
}

}  // namespace
}  // namespace synq
