// What the threads of a block hold, merged in the order of a tree: every run gives the same bits.
#pragma once

#include "memory.cuh"

namespace synq {

// Merges what the threads hold whose indices agree modulo kStride, by a function `merge` of two values beside their
// type. Every thread receives its result. The number of threads is a power of two, at most kThreads.
template <int kStride, typename Value>
__device__ __forceinline__ Value merge_block(const Value& value) {
  __shared__ Value shared[kThreads];
  __syncthreads();
  shared[threadIdx.x] = value;
  for (int width = blockDim.x / 2; width >= kStride; width /= 2) {
    __syncthreads();
    if (static_cast<int>(threadIdx.x) < width) {
      shared[threadIdx.x] = merge(shared[threadIdx.x], shared[threadIdx.x + width]);
    }
  }
  __syncthreads();
  return shared[threadIdx.x % kStride];
}

}  // namespace synq
