// The range search: every candidate's errors in one pass over x.
//
// A block holds a tile of a channel in registers while the candidates go over it, so x is read once for its extrema and
// once for its errors, four bytes or two a thread at a time: the arithmetic of all candidates takes far longer than
// memory.
// Sums are float32 within a warp's tile and double beyond, each at a place of its own: every run on a device gives the
// same bits.
#include "../search_range.h"

#include "../candidate.h"
#include "range.cuh"
#include "warp.cuh"

namespace synq {
namespace {

constexpr int kItems = 8;  // elements a thread holds
// Where tiles are fewer than what a large device holds, several blocks share a tile's candidates, at least so many
// each. No sum depends on it.
constexpr int64_t kEnoughBlocks = 528;
constexpr int kLeastShare = 8;
constexpr int kTile = kItems * kThreads;
constexpr int kWarps = kThreads / kWarp;

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
  const float* low;   // (channels, splits) partial ranges
  const float* high;  // (channels, splits)
  double* sums;       // (channels, candidates, parts)
  Layout layout;
  int64_t splits;
  int64_t parts;
  int64_t shares;  // of the candidates
  int candidates;
  int bits;
  float norm;

  __device__ __forceinline__ Range range(int64_t channel) const {
    return merge_partials(low + channel * splits, high + channel * splits, splits);
  }
};

// A thread's powers of a tile: of all its elements, or of those in places i * kThreads < left.
template <bool kWhole>
__device__ __forceinline__ float sum_powers(const float (&values)[kItems], int64_t left, const Candidate& candidate,
                                            float low, float high, float norm, float offset) {
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < kItems; ++i) {
    if (kWhole || i * kThreads < left) {
      sum = add(sum, power_of(quantization_error(values[i], candidate, low, high), norm, offset));
    }
  }
  return sum;
}

// Block (channel, part, share) handles every `parts`-th tile of the channel, and the candidates of a share.
template <typename T>
__global__ void __launch_bounds__(kThreads, kMinimumBlocks) errors_kernel(const T* x, const Search search) {
  __shared__ Candidate candidates[kMaximumCandidates];
  __shared__ double sums[kWarps][kMaximumCandidates];
  const int64_t tiles = blockIdx.x / search.shares;
  const int64_t channel = tiles / search.parts;
  const int64_t part = tiles - channel * search.parts;
  const int share = static_cast<int>(blockIdx.x - tiles * search.shares);
  const int shares = static_cast<int>(search.shares);
  const int begin = search.candidates * share / shares;
  const int end = search.candidates * (share + 1) / shares;
  const int64_t elements = search.layout.outer * search.layout.inner;
  const Range range = search.range(channel);
  const int warp = threadIdx.x / kWarp;
  const bool first_lane = threadIdx.x % kWarp == 0;
  const Candidate widest = make_candidate(range.low, range.high, 0, search.bits);
  for (int c = begin + threadIdx.x; c < end; c += kThreads) {
    candidates[c] = make_candidate(range.low, range.high, c, search.bits);
    for (int w = 0; w < kWarps; ++w) sums[w][c] = 0.0;
  }
  __syncthreads();
  const float offset = power_offset(range.low, range.high, widest.affine, search.norm);
  const float low = lowest_code(search.bits);
  const float high = highest_code(search.bits);

  for (int64_t tile = part * kTile; tile < elements; tile += search.parts * kTile) {
    // A warp without elements would add zeros.
    if (tile + warp * kWarp >= elements) continue;
    const int64_t left = elements - tile - threadIdx.x;
    const bool whole = tile + kTile <= elements;
    float values[kItems];
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      const int64_t element = tile + threadIdx.x + i * kThreads;
      values[i] = i * kThreads < left ? to_float(x[search.layout.offset(channel, element)]) : 0.0f;
    }
    for (int c = begin; c < end; ++c) {
      const Candidate candidate = candidates[c];
      const float sum = sum_lanes(whole ? sum_powers<true>(values, left, candidate, low, high, search.norm, offset)
                                        : sum_powers<false>(values, left, candidate, low, high, search.norm, offset));
      if (first_lane) sums[warp][c] += static_cast<double>(sum);
    }
  }
  __syncthreads();
  for (int c = begin + threadIdx.x; c < end; c += kThreads) {
    double sum = 0.0;
    for (int w = 0; w < kWarps; ++w) sum += sums[w][c];
    search.sums[(channel * search.candidates + c) * search.parts + part] = sum;
  }
}

// A block adds up the sums of a channel and writes the range of the first candidate with the least.
__global__ void __launch_bounds__(kThreads) choose_kernel(const Search search, float* range_min, float* range_max) {
  __shared__ double totals[kMaximumCandidates];
  const int64_t channel = blockIdx.x;
  const double* sums = search.sums + channel * search.candidates * search.parts;
  const Range range = search.range(channel);
  for (int c = threadIdx.x / kWarp; c < search.candidates; c += kWarps) {
    double sum = 0.0;
    for (int64_t i = threadIdx.x % kWarp; i < search.parts; i += kWarp) sum += sums[c * search.parts + i];
    sum = sum_lanes(sum);
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
  range_min[channel] = mul(range.low, shrink_of(best));
  range_max[channel] = mul(range.high, shrink_of(best));
}

// Of the tiles of each channel: as many as of a whole tensor of its size, so that it has the same sums alone.
int64_t parts_for(const Layout& layout) { return std::min(ceil_divide(layout.length(), kTile), kReductionParts); }

int64_t shares_for(int64_t tiles, int candidates) {
  return std::max<int64_t>(std::min(kEnoughBlocks / tiles, static_cast<int64_t>(candidates / kLeastShare)), 1);
}

}  // namespace

int64_t search_range_workspace_cuda(const SearchRangeParams& params) {
  const Layout layout = layout_of(params);
  // Two float32 partials take the place of a double.
  return layout.channels * (params.candidates * parts_for(layout) + range_splits(layout.length(), params.dtype));
}

int search_range_cuda(const SearchRangeParams& params, void* stream) {
  const Layout layout = layout_of(params);
  const int64_t parts = parts_for(layout);
  const int64_t splits = range_splits(layout.length(), params.dtype);
  float* low = reinterpret_cast<float*>(params.workspace + layout.channels * params.candidates * parts);
  float* high = low + layout.channels * splits;
  const int64_t shares = shares_for(layout.channels * parts, params.candidates);
  const Search search = {low,   high,   params.workspace,  layout,      splits,
                         parts, shares, params.candidates, params.bits, params.norm};
  return with_element_type(params.dtype, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    const T* x = static_cast<const T*>(params.x);
    int error = launch_channel_partials(x, low, high, layout, splits, false, stream);
    if (error != cudaSuccess) return error;
    error = launch(errors_kernel<T>, layout.channels * parts * shares, kThreads, 0, stream, x, search);
    if (error != cudaSuccess) return error;
    return launch(choose_kernel, layout.channels, kThreads, 0, stream, search, params.range_min, params.range_max);
  });
}

}  // namespace synq
