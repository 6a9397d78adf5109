// Exact minimum and maximum: of threads, of blocks, of channels. Partial ranges have fixed places, so every run gives
// the same bits.
#pragma once

#include <algorithm>
#include <cmath>

#include "../affine.h"
#include "block_tree.cuh"
#include "channel_parts.cuh"
#include "memory.cuh"

namespace synq {
// Internal linkage: several sources include this file.
namespace {

// Unlike fminf and fmaxf these keep NaN, and order -0 below +0: the result does not depend on the order of the
// operands.
__device__ __forceinline__ float minimum(float a, float b) {
#if defined(__CUDA_ARCH__)
  float result;
  asm("min.NaN.f32 %0, %1, %2;" : "=f"(result) : "f"(a), "f"(b));
  return result;
#else
  return a != a || a < b ? a : b;
#endif
}

__device__ __forceinline__ float maximum(float a, float b) {
#if defined(__CUDA_ARCH__)
  float result;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(result) : "f"(a), "f"(b));
  return result;
#else
  return a != a || a > b ? a : b;
#endif
}

__device__ __forceinline__ Range empty_range() { return {INFINITY, -INFINITY}; }

__device__ __forceinline__ Range merge(Range a, Range b) { return {minimum(a.low, b.low), maximum(a.high, b.high)}; }

__device__ __forceinline__ Range include(Range range, float value) { return merge(range, {value, value}); }

__device__ __forceinline__ void store_range(float* low, float* high, int64_t place, Range range) {
  low[place] = range.low;
  high[place] = range.high;
}

// Block (channel, split) reduces one part of one channel.
template <typename T, int kCount>
__global__ void __launch_bounds__(kThreads) channel_partials_kernel(const T* x, float* low, float* high, Layout layout,
                                                                    int64_t splits, int64_t head, bool symmetric) {
  const int64_t length = layout.outer * layout.inner;
  const int64_t packs = (length - head) / kCount;
  const int64_t step = splits * kThreads;
  for (int64_t item = blockIdx.x; item < layout.channels * splits; item += gridDim.x) {
    const int64_t channel = item / splits;
    const int64_t start = (item - channel * splits) * kThreads + threadIdx.x;
    Range range = empty_range();
#pragma unroll 4
    for (int64_t index = start; index < packs; index += step) {
      const Pack<T, kCount> pack = load_pack<kCount>(x + layout.offset(channel, head + index * kCount));
#pragma unroll
      for (int i = 0; i < kCount; ++i) range = include(range, to_float(pack.values[i]));
    }
    const int64_t packed = packs * kCount;
    if (start < length - packed) {
      const int64_t element = start < head ? start : start + packed;
      range = include(range, to_float(x[layout.offset(channel, element)]));
    }
    range = merge_block<1>(range);
    if (symmetric) range = symmetric_range(range);
    if (threadIdx.x == 0) store_range(low, high, item, range);
  }
}

template <typename T>
int launch_channel_partials(const T* x, float* low, float* high, const Layout& layout, int64_t splits, bool symmetric,
                            void* stream) {
  constexpr int kCount = pack_size<T>();
  const int64_t items = layout.channels * splits;
  // A single row may start and end anywhere; rows that follow each other must all start at a boundary.
  const int64_t head = layout.channels == 1 ? std::min(elements_to_boundary(x), layout.inner) : 0;
  const bool packed = layout.channels == 1 || (layout.inner % kCount == 0 && is_aligned(x, kPackBytes));
  if (packed) {
    return launch_striding(channel_partials_kernel<T, kCount>, items, kThreads, 0, stream, x, low, high, layout, splits,
                           head, symmetric);
  }
  return launch_striding(channel_partials_kernel<T, 1>, items, kThreads, 0, stream, x, low, high, layout, splits,
                         int64_t{0}, symmetric);
}

// How many partial ranges a tensor is worth, each of a few packs a thread.
inline int64_t range_splits(int64_t elements, DType dtype) {
  const int64_t pack = dtype == DType::kFloat32 ? pack_size<float>() : pack_size<__half>();
  return std::min(ceil_divide(elements, 4 * kThreads * pack), kReductionParts);
}

// The range of `count` partial ranges, or of elements where low and high are the same. Every thread of the block gets
// it; the number of threads is a power of two.
template <typename T>
__device__ __forceinline__ Range merge_partials(const T* low, const T* high, int64_t count) {
  Range range = empty_range();
#pragma unroll 4
  for (int64_t i = threadIdx.x; i < count; i += blockDim.x) {
    range = merge(range, {to_float(low[i]), to_float(high[i])});
  }
  return merge_block<1>(range);
}

}  // namespace
}  // namespace synq
