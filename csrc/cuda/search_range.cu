// The range search: every candidate's errors in one pass over x.
//
// A block holds a tile of x in registers while the candidates go over it, so x is read once for its extrema and once
// for its errors, four bytes or two a thread at a time: the arithmetic of all candidates takes far longer than memory.
// Sums are float32 within a warp's tile and double beyond, each at a place of its own: every run on a device gives the
// same bits.
#include "../search_range.h"

#include "../candidate.h"
#include "range.cuh"

namespace synq {
namespace {

constexpr int kItems = 8;  // elements a thread holds
constexpr int kTile = kItems * kThreads;
constexpr int kWarp = 32;
constexpr int kWarps = kThreads / kWarp;

template <typename T>
__device__ __forceinline__ T sum_warp(T value) {
#pragma unroll
  for (int lane = kWarp / 2; lane > 0; lane /= 2) value += __shfl_xor_sync(0xffffffffu, value, lane);
  return value;
}

// 2^(norm log2 |error| + offset), relative error below 1e-6 for norms up to 4; zero gives zero.
__device__ __forceinline__ float power_of(float error, float norm, float offset) {
#if defined(__CUDA_ARCH__)
  float logarithm;
  float result;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(logarithm) : "f"(fabsf(error)));
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(multiply_add(norm, logarithm, offset)));
  return result;
#else
  return exp2f(norm * log2f(fabsf(error)) + offset);
#endif
}

struct Search {
  const float* low;   // (splits,) partial ranges
  const float* high;  // (splits,)
  double* sums;       // (candidates, blocks)
  int64_t splits;
  int64_t elements;
  int candidates;
  int bits;
  float norm;
};

template <typename T>
__global__ void __launch_bounds__(kThreads, kMinimumBlocks) errors_kernel(const T* x, const Search search) {
  __shared__ Candidate candidates[kMaximumCandidates];
  __shared__ double sums[kWarps][kMaximumCandidates];
  const Range range = merge_partials(search.low, search.high, search.splits);
  const int warp = threadIdx.x / kWarp;
  const bool first_lane = threadIdx.x % kWarp == 0;
  for (int c = threadIdx.x; c < search.candidates; c += kThreads) {
    candidates[c] = make_candidate(range.low, range.high, c, search.bits);
    for (int w = 0; w < kWarps; ++w) sums[w][c] = 0.0;
  }
  __syncthreads();
  const float offset = power_offset(range.low, range.high, candidates[0].affine, search.norm);
  const float low = lowest_code(search.bits);
  const float high = highest_code(search.bits);

  const int64_t step = static_cast<int64_t>(gridDim.x) * kTile;
  for (int64_t tile = static_cast<int64_t>(blockIdx.x) * kTile; tile < search.elements; tile += step) {
    const int64_t left = search.elements - tile - threadIdx.x;
    float values[kItems];
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      values[i] = i * kThreads < left ? to_float(x[tile + threadIdx.x + i * kThreads]) : 0.0f;
    }
    for (int c = 0; c < search.candidates; ++c) {
      const Candidate candidate = candidates[c];
      float sum = 0.0f;
#pragma unroll
      for (int i = 0; i < kItems; ++i) {
        const float power = power_of(quantization_error(values[i], candidate, low, high), search.norm, offset);
        sum = add(sum, i * kThreads < left ? power : 0.0f);
      }
      sum = sum_warp(sum);
      if (first_lane) sums[warp][c] += static_cast<double>(sum);
    }
  }
  __syncthreads();
  for (int c = threadIdx.x; c < search.candidates; c += kThreads) {
    double sum = 0.0;
    for (int w = 0; w < kWarps; ++w) sum += sums[w][c];
    search.sums[static_cast<int64_t>(c) * gridDim.x + blockIdx.x] = sum;
  }
}

// One block adds up the sums of all blocks and writes the range of the first candidate with the least.
__global__ void __launch_bounds__(kThreads)
    choose_kernel(const Search search, int64_t blocks, float* range_min, float* range_max) {
  __shared__ double totals[kMaximumCandidates];
  const Range range = merge_partials(search.low, search.high, search.splits);
  for (int c = threadIdx.x / kWarp; c < search.candidates; c += kWarps) {
    double sum = 0.0;
    for (int64_t i = threadIdx.x % kWarp; i < blocks; i += kWarp) sum += search.sums[c * blocks + i];
    sum = sum_warp(sum);
    if (threadIdx.x % kWarp == 0) totals[c] = sum;
  }
  __syncthreads();
  if (threadIdx.x != 0) return;
  int best = 0;
  if (is_searchable(make_candidate(range.low, range.high, 0, search.bits).affine)) {
    for (int c = 1; c < search.candidates; ++c) {
      if (totals[c] < totals[best]) best = c;
    }
  }
  *range_min = mul(range.low, shrink_of(best));
  *range_max = mul(range.high, shrink_of(best));
}

int64_t blocks_for(const SearchRangeParams& params) {
  return std::min(ceil_divide(params.elements, kTile), kReductionParts);
}

}  // namespace

int64_t search_range_workspace_cuda(const SearchRangeParams& params) {
  // Two float32 partials take the place of a double.
  return params.candidates * blocks_for(params) + range_splits(params.elements, params.dtype);
}

int search_range_cuda(const SearchRangeParams& params, void* stream) {
  const int64_t blocks = blocks_for(params);
  const int64_t splits = range_splits(params.elements, params.dtype);
  float* low = reinterpret_cast<float*>(params.workspace + params.candidates * blocks);
  float* high = low + splits;
  const Search search = {low,         high,       params.workspace, splits, params.elements, params.candidates,
                         params.bits, params.norm};
  return with_element_type(params.dtype, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    const T* x = static_cast<const T*>(params.x);
    int error = launch_channel_partials(x, low, high, Layout{1, 1, params.elements}, splits, false, stream);
    if (error != cudaSuccess) return error;
    error = launch(errors_kernel<T>, blocks, kThreads, 0, stream, x, search);
    if (error != cudaSuccess) return error;
    return launch(choose_kernel, 1, kThreads, 0, stream, search, blocks, params.range_min, params.range_max);
  });
}

}  // namespace synq
