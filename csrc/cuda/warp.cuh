// What the lanes of a warp hold, put together by exchanges that halve their distance: each lane receives the result.
// Every lane of the warp takes part.
#pragma once

#include <cstring>

#include "memory.cuh"

namespace synq {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

// What the lane at a distance of `mask` holds.
template <typename Value>
__device__ __forceinline__ Value exchanged(const Value& value, int mask) {
  constexpr int kWords = sizeof(Value) / sizeof(unsigned);
  static_assert(sizeof(Value) % sizeof(unsigned) == 0);
  unsigned words[kWords];
  memcpy(words, &value, sizeof(value));
#pragma unroll
  for (int i = 0; i < kWords; ++i) words[i] = __shfl_xor_sync(kAllLanes, words[i], mask);
  Value result;
  memcpy(&result, words, sizeof(value));
  return result;
}

// Of groups of kWidth lanes side by side; with kApart, of those lanes of a group that are so many apart.
template <int kWidth = kWarp, int kApart = 1, typename T, typename Merge>
__device__ __forceinline__ T reduce_lanes(T value, Merge merge) {
#pragma unroll
  for (int mask = kWidth / 2; mask >= kApart; mask /= 2) value = merge(value, exchanged(value, mask));
  return value;
}

template <int kWidth = kWarp, int kApart = 1, typename T>
__device__ __forceinline__ T sum_lanes(T value) {
  return reduce_lanes<kWidth, kApart>(value, [](T a, T b) { return a + b; });
}

// Passes over NaN.
__device__ __forceinline__ float maximum_of_lanes(float value) {
  return reduce_lanes(value, [](float a, float b) { return fmaxf(a, b); });
}

// Passes over NaN.
__device__ __forceinline__ float minimum_of_lanes(float value) {
  return reduce_lanes(value, [](float a, float b) { return fminf(a, b); });
}

}  // namespace synq
