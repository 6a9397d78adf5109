// Sums and greatest values of what the threads of a block hold, for blocks that handle rows one after another.
#pragma once

#include "warp.cuh"

namespace synq {

constexpr int kWarps = kThreads / kWarp;

// Every thread receives the sums over the block, added in an order of their own. The number of threads is a multiple of
// a warp.
template <int kCount>
__device__ __forceinline__ void sum_block(float (&values)[kCount]) {
  __shared__ float shared[kCount][kWarps];
  __syncthreads();  // what was here before has been read
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    values[i] = sum_lanes(values[i]);
    if (threadIdx.x % kWarp == 0) shared[i][threadIdx.x / kWarp] = values[i];
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    values[i] = 0.0f;
    for (int warp = 0; warp < static_cast<int>(blockDim.x) / kWarp; ++warp) values[i] += shared[i][warp];
  }
}

// Passes over NaN: it meets the sums later.
template <int kCount>
__device__ __forceinline__ void maximum_block(float (&values)[kCount]) {
  __shared__ float shared[kCount][kWarps];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    values[i] = maximum_of_lanes(values[i]);
    if (threadIdx.x % kWarp == 0) shared[i][threadIdx.x / kWarp] = values[i];
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    for (int warp = 0; warp < static_cast<int>(blockDim.x) / kWarp; ++warp) {
      values[i] = fmaxf(values[i], shared[i][warp]);
    }
  }
}

// Warps enough for one item a thread, at most a block.
inline int threads_for_row(int64_t items) {
  return static_cast<int>(std::min<int64_t>(ceil_divide(items, kWarp) * kWarp, kThreads));
}

}  // namespace synq
