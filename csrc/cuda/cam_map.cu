// From coarse maps to resized, stretched ones; the loss on them and the gradient of the coarse maps, which reads every
// pixel once and writes no full-size map.
#include "../grad_cam.h"
#include "cam_sample.cuh"

namespace synq {
namespace {

constexpr int kTileRows = 16;
constexpr int kTileColumns = 512;
constexpr int kColumnPack = 4;

// What the pixels between two coarse rows add up to. First five sums, then kArrays rows of `width` values.
constexpr int kArrays = 6;
enum Array { kNear, kFar, kLowNear, kLowFar, kPeakNear, kPeakFar };
constexpr int kSums = 5;
enum Sum { kD, kDn, kSquared, kLowTies, kPeakTies };

__device__ __forceinline__ float stretched(float value, const Stretch& stretch) {
  return stretch.flat ? 0.0f : (value * stretch.lift - stretch.low) * stretch.scale;
}

// A block writes a tile of one map; its taps are found once.
template <bool kPacked>
__global__ void __launch_bounds__(kThreads, kMinimumBlocks)
    map_kernel(const MapParams params, int64_t row_tiles, int64_t column_tiles) {
  constexpr int kCount = kPacked ? kColumnPack : 1;
  __shared__ Tap columns[kTileColumns];
  __shared__ Tap rows[kTileRows];
  const int64_t image = blockIdx.x / (row_tiles * column_tiles);
  const int64_t tile = blockIdx.x - image * row_tiles * column_tiles;
  const int64_t first_row = tile / column_tiles * kTileRows;
  const int64_t first_column = tile % column_tiles * kTileColumns;
  const Grid grid = grid_of(params, image);
  const int height = lesser(kTileRows, grid.map_height - static_cast<int>(first_row));
  const int width = lesser(kTileColumns, grid.map_width - static_cast<int>(first_column));
  for (int i = static_cast<int>(threadIdx.x); i < width; i += kThreads) columns[i] = grid.column(first_column + i);
  if (static_cast<int>(threadIdx.x) < height) rows[threadIdx.x] = grid.row(first_row + threadIdx.x);
  __syncthreads();
  const Stretch stretch = params.stretches[image];
  float* map = params.map + (image * params.map_height + first_row) * params.map_width + first_column;
  const int packs = width / kCount;
  for (int item = static_cast<int>(threadIdx.x); item < height * packs; item += kThreads) {
    const int y = item / packs;
    const int x = (item - y * packs) * kCount;
    const Tap row = rows[y];
    const int below = grid.next_row(row.index);
    Pack<float, kCount> result;
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const Tap column = columns[x + i];
      const float value = interpolate(grid.along_row(row.index, column), grid.along_row(below, column), row.weight);
      result.values[i] = stretched(value, stretch);
    }
    store_pack<kCount>(map + y * params.map_width + x, result);
  }
}

// Five sums over the block, in a fixed order; thread i < kSums has the i-th.
__device__ __forceinline__ float block_sums(const float (&sums)[kSums]) {
  __shared__ float shared[kSums][kThreads / kWarp];
#pragma unroll
  for (int i = 0; i < kSums; ++i) {
    const float sum = sum_lanes(sums[i]);
    if (threadIdx.x % kWarp == 0) shared[i][threadIdx.x / kWarp] = sum;
  }
  __syncthreads();
  double total = 0.0;
  if (threadIdx.x < kSums) {
    for (int warp = 0; warp < kThreads / kWarp; ++warp) total += shared[threadIdx.x][warp];
  }
  return static_cast<float>(total);
}

__device__ __forceinline__ int64_t record_size(int64_t width) { return kSums + kArrays * width; }

// A block takes the pixels between two coarse rows of one image: a thread goes down a column of them, then the columns
// are pulled back to the coarse columns.
template <typename T, bool kLoss>
__global__ void __launch_bounds__(kThreads, kMinimumBlocks) interval_kernel(const MapParams params) {
  __shared__ float pulled[kArrays][kThreads];
  __shared__ Tap taps[kThreads];
  __shared__ float weights[kTileRows];
  const int64_t image = blockIdx.x / params.height;
  const int index = static_cast<int>(blockIdx.x - image * params.height);
  const Grid grid = grid_of(params, image);
  const Stretch stretch = params.stretches[image];
  const int first = static_cast<int>(first_pixel(index, grid.height, grid.map_height));
  const int end = static_cast<int>(first_pixel(index + 1, grid.height, grid.map_height));
  const T* other = static_cast<const T*>(params.other) + image * params.map_height * params.map_width;
  float* record = params.workspace + static_cast<int64_t>(blockIdx.x) * record_size(params.width);
  float* arrays = record + kSums;
  const int width = grid.width;
  for (int i = static_cast<int>(threadIdx.x); i < kArrays * width; i += kThreads) arrays[i] = 0.0f;
  float sums[kSums] = {};
  for (int base = 0; base < grid.map_width; base += kThreads) {
    const int x = base + static_cast<int>(threadIdx.x);
    const bool inside = x < grid.map_width;
    float mine[kArrays] = {};
    float top = 0.0f;
    float bottom = 0.0f;
    if (inside) {
      const Tap column = grid.column(x);
      taps[threadIdx.x] = column;
      top = grid.along_row(index, column);
      bottom = grid.along_row(grid.next_row(index), column);
    }
    for (int y = first; y < end; y += kTileRows) {
      __syncthreads();
      if (threadIdx.x < kTileRows) weights[threadIdx.x] = grid.row(y + threadIdx.x).weight;
      __syncthreads();
      if (!inside) continue;
      const int rows = lesser(kTileRows, end - y);
      const T* pixel = other + static_cast<int64_t>(y) * params.map_width + x;
      for (int i = 0; i < rows; ++i, pixel += params.map_width) {
        const float weight = weights[i];
        const float value = interpolate(top, bottom, weight) * stretch.lift;
        const float n = stretch.flat ? 0.0f : (value - stretch.low) * stretch.scale;
        float d = to_float(*pixel);
        if (kLoss) d = n - d;
        sums[kD] += d;
        sums[kDn] += d * n;
        if (kLoss) sums[kSquared] += d * d;
        mine[kNear] += (1.0f - weight) * d;
        mine[kFar] += weight * d;
        // At a minimum of 0 the ReLU has cut off everything that the pixel comes from.
        if (value == stretch.low && stretch.low != 0.0f) {
          sums[kLowTies] += 1.0f;
          mine[kLowNear] += 1.0f - weight;
          mine[kLowFar] += weight;
        }
        if (value == stretch.peak) {
          sums[kPeakTies] += 1.0f;
          mine[kPeakNear] += 1.0f - weight;
          mine[kPeakFar] += weight;
        }
      }
    }
#pragma unroll
    for (int i = 0; i < kArrays; ++i) pulled[i][threadIdx.x] = mine[i];
    __syncthreads();
    const int count = lesser(kThreads, grid.map_width - base);
    for (int item = static_cast<int>(threadIdx.x); item < kArrays * width; item += kThreads) {
      const int array = item / width;
      const int column = item - array * width;
      const int64_t from = first_pixel(column - 1, grid.width, grid.map_width) - base;
      const int64_t to = first_pixel(column + 1, grid.width, grid.map_width) - base;
      float sum = arrays[item];
      for (int i = from < 0 ? 0 : static_cast<int>(from); i < count && i < to; ++i) {
        const Tap tap = taps[i];
        sum += pulled[array][i] * (tap.index == column ? 1.0f - tap.weight : tap.weight);
      }
      arrays[item] = sum;
    }
    __syncthreads();
  }
  const float sum = block_sums(sums);
  if (threadIdx.x < kSums) record[threadIdx.x] = sum;
}

// The gradient of a coarse map from the records of its image; see finish_slope in csrc/cpu/cam_map.cpp. Block 0 sums
// the loss.
template <bool kLoss>
__global__ void __launch_bounds__(kThreads) finish_kernel(const MapParams params) {
  __shared__ double totals[kThreads];
  const int64_t size = record_size(params.width);
  const double pixels = static_cast<double>(params.images) * static_cast<double>(params.map_height) *
                        static_cast<double>(params.map_width);
  if (kLoss && blockIdx.x == 0) {
    double sum = 0.0;
    for (int64_t i = threadIdx.x; i < params.images * params.height; i += kThreads) {
      sum += params.workspace[i * size + kSquared];
    }
    totals[threadIdx.x] = sum;
    for (int half = kThreads / 2; half > 0; half /= 2) {
      __syncthreads();
      if (static_cast<int>(threadIdx.x) < half) totals[threadIdx.x] += totals[threadIdx.x + half];
    }
    if (threadIdx.x == 0) *params.loss = static_cast<float>(totals[0] / pixels);
    __syncthreads();
  }
  if (params.slope == nullptr) return;
  const int64_t positions = params.height * params.width;
  for (int64_t image = blockIdx.x; image < params.images; image += gridDim.x) {
    const float* records = params.workspace + image * params.height * size;
    if (threadIdx.x < kSums) {
      double total = 0.0;
      for (int64_t row = 0; row < params.height; ++row) total += records[row * size + threadIdx.x];
      totals[threadIdx.x] = total;
    }
    __syncthreads();
    const Stretch stretch = params.stretches[image];
    const double scale = (kLoss ? 2.0 / pixels : 1.0) * stretch.scale * stretch.lift;
    const double low = totals[kLowTies] > 0.0 ? (totals[kDn] - totals[kD]) / totals[kLowTies] : 0.0;
    const double peak = totals[kPeakTies] > 0.0 ? -totals[kDn] / totals[kPeakTies] : 0.0;
    for (int64_t i = threadIdx.x; i < positions; i += kThreads) {
      const int64_t row = i / params.width;
      const float* near = records + row * size + kSums + (i - row * params.width);
      double total =
          near[kNear * params.width] + low * near[kLowNear * params.width] + peak * near[kPeakNear * params.width];
      if (row > 0) {
        const float* far = near - size;
        total += far[kFar * params.width] + low * far[kLowFar * params.width] + peak * far[kPeakFar * params.width];
      }
      const bool cut = params.coarse[image * positions + i] <= 0.0f;
      params.slope[image * positions + i] = stretch.flat || cut ? 0.0f : static_cast<float>(scale * total);
    }
    __syncthreads();
  }
}

template <bool kLoss>
int launch_pull(const MapParams& params, void* stream) {
  const int error = with_element_type(params.dtype, [&](auto tag) {
    return launch(interval_kernel<typename decltype(tag)::Type, kLoss>, params.images * params.height, kThreads, 0,
                  stream, params);
  });
  if (error != cudaSuccess) return error;
  return launch_striding(finish_kernel<kLoss>, params.images, kThreads, 0, stream, params);
}

}  // namespace

int cam_map_cuda(const MapParams& params, void* stream) {
  const int64_t row_tiles = ceil_divide(params.map_height, kTileRows);
  const int64_t column_tiles = ceil_divide(params.map_width, kTileColumns);
  const int64_t blocks = params.images * row_tiles * column_tiles;
  const bool packed = params.map_width % kColumnPack == 0 && is_aligned(params.map, kPackBytes);
  return packed ? launch(map_kernel<true>, blocks, kThreads, 0, stream, params, row_tiles, column_tiles)
                : launch(map_kernel<false>, blocks, kThreads, 0, stream, params, row_tiles, column_tiles);
}

int64_t cam_workspace_cuda(const MapParams& params) {
  return params.images * params.height * (kSums + kArrays * params.width);
}

int cam_map_backward_cuda(const MapParams& params, void* stream) { return launch_pull<false>(params, stream); }

int cam_loss_cuda(const MapParams& params, void* stream) { return launch_pull<true>(params, stream); }

}  // namespace synq
