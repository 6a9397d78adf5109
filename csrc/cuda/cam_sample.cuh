// Sampling coarse maps, and reductions over a block, for the class activation map kernels.
#pragma once

#include "../cam.h"
#include "warp.cuh"

namespace synq {

constexpr int kMaximumThreads = 1024;

__device__ __forceinline__ int lesser(int a, int b) { return a < b ? a : b; }

// A coarse map and the size it is resized to.
struct Grid {
  const float* values;
  int height;
  int width;
  int map_height;
  int map_width;

  __device__ __forceinline__ Tap row(int64_t pixel) const { return make_tap(pixel, height, map_height); }
  __device__ __forceinline__ Tap column(int64_t pixel) const { return make_tap(pixel, width, map_width); }
  __device__ __forceinline__ int next_row(int index) const { return index + 1 < height ? index + 1 : index; }

  // A coarse row, resized.
  __device__ __forceinline__ float along_row(int index, Tap column) const {
    const float* row = values + static_cast<int64_t>(index) * width;
    return interpolate(row[column.index], row[column.index + 1 < width ? column.index + 1 : column.index],
                       column.weight);
  }
};

// The coarse map of an image, for any parameters that name its sizes.
template <typename Params>
__device__ __forceinline__ Grid grid_of(const Params& params, int64_t image) {
  return {params.coarse + image * params.height * params.width, static_cast<int>(params.height),
          static_cast<int>(params.width), static_cast<int>(params.map_height), static_cast<int>(params.map_width)};
}

struct Extrema {
  float low;
  float peak;
};

// NaN stays.
__device__ __forceinline__ Extrema merge(Extrema a, Extrema b) {
  return {b.low < a.low || b.low != b.low ? b.low : a.low, b.peak > a.peak || b.peak != b.peak ? b.peak : a.peak};
}

// The stretch of the resized map, by all threads of the block; thread 0 has the result. Between two coarse rows the
// extrema are at the first or the last pixel row.
__device__ __forceinline__ Stretch find_stretch(const Grid& grid, float eps) {
  __shared__ Extrema shared[kMaximumThreads / kWarp];
  Extrema extrema = {INFINITY, -INFINITY};
  const int items = 2 * grid.height * grid.map_width;
  for (int item = static_cast<int>(threadIdx.x); item < items; item += static_cast<int>(blockDim.x)) {
    const int end = item / grid.map_width;
    const int index = end / 2;
    const int64_t first = first_pixel(index, grid.height, grid.map_height);
    const int64_t last = first_pixel(index + 1, grid.height, grid.map_height) - 1;
    if (first > last) continue;
    const Tap column = grid.column(item - end * grid.map_width);
    const float value = interpolate(grid.along_row(index, column), grid.along_row(grid.next_row(index), column),
                                    grid.row(end % 2 == 0 ? first : last).weight);
    extrema = merge(extrema, {value, value});
  }
  extrema = reduce_lanes(extrema, [](const Extrema& a, const Extrema& b) { return merge(a, b); });
  if (threadIdx.x % kWarp == 0) shared[threadIdx.x / kWarp] = extrema;
  __syncthreads();
  for (unsigned warp = 1; threadIdx.x == 0 && warp < blockDim.x / kWarp; ++warp) {
    extrema = merge(extrema, shared[warp]);
  }
  return make_stretch(extrema.low, extrema.peak, eps);
}

}  // namespace synq
