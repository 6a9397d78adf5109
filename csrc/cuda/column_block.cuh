// Blocks that read memory as a matrix: threads side by side on packs of neighbouring columns, the others on other rows.
#pragma once

#include "memory.cuh"
#include "warp.cuh"

namespace synq {

constexpr int kBlockWarps = kThreads / kWarp;
constexpr int64_t kLineBytes = 128;  // what a row of threads reads at most
constexpr int kSumPack = 4;          // columns of a thread that sums: registers hold no more, whatever the type

// Threads side by side, a power of two: as many as the row has packs, at most a cache line and a warp.
inline int lanes_for(int64_t packs, int64_t pack_bytes) {
  const int64_t most = std::min<int64_t>(kWarp, kLineBytes / pack_bytes);
  int lanes = 1;
  while (lanes < most && lanes < packs) lanes *= 2;
  return lanes;
}

template <typename Value>
__device__ __forceinline__ void merge_exchanged(Value& value, int mask) {
  value = merge(value, exchanged(value, mask));
}

// Merges what the lanes of a warp hold whose indices agree modulo `lanes`, by a function `merge` beside the type. A
// large type has its own merge_exchanged, which needs no second one in registers.
template <typename Value>
__device__ __forceinline__ Value merge_lanes(Value value, int lanes) {
  for (int mask = kWarp / 2; mask >= lanes; mask /= 2) merge_exchanged(value, mask);
  return value;
}

// The same for a whole block, in an order that `lanes` alone decides. The first `lanes` threads receive the result.
// A Value made from {} is nothing; kMost is the greatest number of lanes.
template <int kMost, typename Value>
__device__ __forceinline__ Value merge_rows(Value value, int lanes) {
  __shared__ Value shared[kBlockWarps * kMost];
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  value = merge_lanes(value, lanes);
  __syncthreads();  // what was here before has been read
  if (lane < lanes) shared[static_cast<int>(threadIdx.x) / kWarp * lanes + lane] = value;
  __syncthreads();
  if (threadIdx.x >= kWarp) return value;
  value = Value{};
  for (int warp = lane / lanes; warp < static_cast<int>(blockDim.x) / kWarp; warp += kWarp / lanes) {
    value = merge(value, shared[warp * lanes + lane % lanes]);
  }
  return merge_lanes(value, lanes);
}

// Greatest number of lanes of packs of `kCount` elements.
template <typename T, int kCount>
constexpr int kMostLanes = kLineBytes / (sizeof(T) * kCount) < kWarp ? kLineBytes / (sizeof(T) * kCount) : kWarp;

// The rows of a matrix that one thread reads, from the first on, `jump` elements apart. No thread has 2^31 of them:
// memory does not.
template <typename T, int kCount>
struct RowReader {
  const T* pointer;
  int64_t jump;
  int left;

  __device__ __forceinline__ RowReader(const T* matrix, int64_t columns, int64_t rows, int64_t first, int64_t step)
      : pointer(matrix + first * columns),
        jump(step * columns),
        left(first < rows ? static_cast<int>((rows - first + step - 1) / step) : 0) {}

  // Calls include(rows) with as many rows at once as possible, already read: kAtOnce of them, at the end one.
  template <int kAtOnce, typename Include>
  __device__ __forceinline__ void read(const Include& include) {
    for (; left >= kAtOnce; left -= kAtOnce) {
      Pack<T, kCount> packs[kAtOnce];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i, pointer += jump) packs[i] = load_pack<kCount>(pointer);
      include(packs);
    }
    for (; left > 0; --left, pointer += jump) {
      const Pack<T, kCount> packs[1] = {load_pack<kCount>(pointer)};
      include(packs);
    }
  }
};

}  // namespace synq
