// Similarity of the heads of attention, and its gradient.
//
// A block handles a query at a time, whose rows stay in the first cache: they are read for their ends, for their means,
// for the covariances and, backward, for the gradient. Threads of a warp are side by side on keys, and hold products of
// kSide heads with as many others.
#include "../inter_head_similarity_loss.h"

#include "block_rows.cuh"
#include "ordered_total.cuh"

namespace synq {
namespace {

using Params = InterHeadSimilarityParams;

constexpr int kQueryThreads = 128;
constexpr int kQueryWarps = kQueryThreads / kWarp;
// Resident blocks that a multiprocessor must have room for: at most 128 registers a thread, which hold the products.
constexpr int kQueryBlocks = 4;
constexpr int kSide = 4;

__device__ __forceinline__ int64_t least_of_warp(int64_t value) {
  return reduce_lanes(value, [](int64_t a, int64_t b) { return b < a ? b : a; });
}

// What is known of each head of a query; in shared memory.
struct HeadStatistics {
  float low[kMaximumHeads];
  float inverse[kMaximumHeads];  // of the range
  float mean[kMaximumHeads];     // of the scaled row
  float variance[kMaximumHeads];
};

struct HeadGradients {
  float offset[kMaximumHeads];   // the sum of the scaled row's gradient
  float of_high[kMaximumHeads];  // what the greatest logit gets of it
  int64_t low_place[kMaximumHeads];
  int64_t high_place[kMaximumHeads];
};

// A query's rows.
template <typename T>
struct QueryRows {
  const T* first;
  int64_t stride;
  int64_t keys;
  int heads;

  __device__ __forceinline__ QueryRows(const Params& params, int64_t item)
      : stride(params.strides.head), keys(params.keys), heads(static_cast<int>(params.heads)) {
    const int64_t batch = item / params.queries;
    const int64_t query = item - batch * params.queries;
    first = static_cast<const T*>(params.logits) + batch * params.strides.batch + query * params.strides.row;
  }
};

// A row scaled to 0..1, less its mean.
template <typename T>
struct CentredRow {
  const T* row;
  float low;
  float inverse;
  float mean;

  __device__ __forceinline__ CentredRow() {}
  __device__ __forceinline__ CentredRow(const QueryRows<T>& rows, const HeadStatistics& known, int head)
      : row(rows.first + head * rows.stride),
        low(known.low[head]),
        inverse(known.inverse[head]),
        mean(known.mean[head]) {}

  __device__ __forceinline__ float at(int64_t key) const { return (to_float(row[key]) - low) * inverse - mean; }
};

__device__ __forceinline__ int at_most(int head, int heads) { return head < heads ? head : heads - 1; }

// Ends and means, and the first places of the ends where `places` is given. A warp for each head.
template <typename T>
__device__ __forceinline__ void find_means(const QueryRows<T>& rows, HeadStatistics& known, HeadGradients* places) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  for (int head = static_cast<int>(threadIdx.x) / kWarp; head < rows.heads; head += kQueryWarps) {
    const T* row = rows.first + head * rows.stride;
    // NaN is passed over: it meets the mean.
    float low = INFINITY;
    float high = -INFINITY;
    for (int64_t key = lane; key < rows.keys; key += kWarp) {
      const float value = to_float(row[key]);
      low = fminf(low, value);
      high = fmaxf(high, value);
    }
    low = minimum_of_lanes(low);
    high = maximum_of_lanes(high);
    const float inverse = 1.0f / (high - low + kLeastRange);
    float sum = 0.0f;
    int64_t first_low = rows.keys;
    int64_t first_high = rows.keys;
    for (int64_t key = lane; key < rows.keys; key += kWarp) {
      const float value = to_float(row[key]);
      sum += (value - low) * inverse;
      if (value == low && key < first_low) first_low = key;
      if (value == high && key < first_high) first_high = key;
    }
    sum = sum_lanes(sum);
    if (places != nullptr) {
      first_low = least_of_warp(first_low);
      first_high = least_of_warp(first_high);
    }
    if (lane != 0) continue;
    known.low[head] = low;
    known.inverse[head] = inverse;
    known.mean[head] = sum / static_cast<float>(rows.keys);
    if (places == nullptr) continue;
    places->low_place[head] = first_low;
    places->high_place[head] = first_high;
  }
}

// covariance[h * heads + g], and the variances. A warp for each pair of kSide heads and kSide others.
template <typename T>
__device__ __forceinline__ void find_covariances(const QueryRows<T>& rows, HeadStatistics& known, float* covariance) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int sides = (rows.heads + kSide - 1) / kSide;
  const float share = 1.0f / static_cast<float>(rows.keys);
  for (int pair = static_cast<int>(threadIdx.x) / kWarp; pair < sides * (sides + 1) / 2; pair += kQueryWarps) {
    int one = 0;
    int other = pair;
    for (; other > one; ++one) other -= one + 1;
    CentredRow<T> left[kSide];
    CentredRow<T> right[kSide];
#pragma unroll
    for (int i = 0; i < kSide; ++i) {
      left[i] = CentredRow<T>(rows, known, at_most(one * kSide + i, rows.heads));
      right[i] = CentredRow<T>(rows, known, at_most(other * kSide + i, rows.heads));
    }
    float sums[kSide][kSide] = {};
    for (int64_t key = lane; key < rows.keys; key += kWarp) {
      float x[kSide];
      float y[kSide];
#pragma unroll
      for (int i = 0; i < kSide; ++i) {
        x[i] = left[i].at(key);
        y[i] = right[i].at(key);
      }
#pragma unroll
      for (int i = 0; i < kSide; ++i) {
#pragma unroll
        for (int j = 0; j < kSide; ++j) sums[i][j] = fmaf(x[i], y[j], sums[i][j]);
      }
    }
#pragma unroll
    for (int i = 0; i < kSide; ++i) {
#pragma unroll
      for (int j = 0; j < kSide; ++j) {
        const float value = sum_lanes(sums[i][j]) * share;
        const int h = one * kSide + i;
        const int g = other * kSide + j;
        // Of two sums of the same products the one is as good as the other, but both must be one.
        if (lane != 0 || h >= rows.heads || g > h) continue;
        covariance[h * rows.heads + g] = value;
        covariance[g * rows.heads + h] = value;
        if (h == g) known.variance[h] = value;
      }
    }
  }
}

struct PairSimilarity {
  float a;
  float c;
  float d;
  float s;

  __device__ __forceinline__ PairSimilarity(const HeadStatistics& known, float covariance, int h, int g) {
    const float one = known.mean[h];
    const float other = known.mean[g];
    a = 2.0f * one * other + kLuminanceOffset;
    c = one * one + other * other + kLuminanceOffset;
    d = known.variance[h] + known.variance[g] + kContrastOffset;
    s = a * (2.0f * covariance + kContrastOffset) / (c * d);
  }
};

template <typename T>
__global__ void __launch_bounds__(kQueryThreads, kQueryBlocks) head_pairs_kernel(const Params params) {
  extern __shared__ __align__(kPackBytes) float pairs_shared[];
  __shared__ HeadStatistics known;
  const int heads = static_cast<int>(params.heads);
  for (int64_t item = blockIdx.x; item < params.items(); item += gridDim.x) {
    const QueryRows<T> rows(params, item);
    find_means(rows, known, nullptr);
    __syncthreads();
    find_covariances(rows, known, pairs_shared);
    __syncthreads();
    Total total = {0.0};
    for (int pair = threadIdx.x; pair < heads * heads; pair += kQueryThreads) {
      const float s = PairSimilarity(known, pairs_shared[pair], pair / heads, pair % heads).s;
      total.value += static_cast<double>(1.0f - s * s);
    }
    total = merge_block<1>(total);
    if (threadIdx.x == 0) params.workspace[item] = total.value;
  }
}

// The gradient of a head's scaled row is offset / keys + the sum over g of its factors times the centred rows: writes
// both, the factors over the covariances. `scale` is the gradient of the sum over all pairs. A warp for each head.
__device__ __forceinline__ void find_factors(const HeadStatistics& known, HeadGradients& gradients, float* factors,
                                             int heads, float scale) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  for (int h = static_cast<int>(threadIdx.x) / kWarp; h < heads; h += kQueryWarps) {
    float offset = 0.0f;
    float of_variance = 0.0f;
    float along = 0.0f;
    for (int g = lane; g < heads; g += kWarp) {
      const float covariance = factors[h * heads + g];
      const PairSimilarity pair(known, covariance, h, g);
      const float slope = -2.0f * scale * pair.s;
      const float factor = 4.0f * slope * pair.a / (pair.c * pair.d);
      offset += 4.0f * slope * pair.s * (known.mean[g] / pair.a - known.mean[h] / pair.c);
      of_variance -= 4.0f * slope * pair.s / pair.d;
      along += factor * covariance;
      factors[h * heads + g] = factor;
    }
    offset = sum_lanes(offset);
    of_variance = sum_lanes(of_variance);
    along = sum_lanes(along);
    if (lane != h % kWarp) continue;
    factors[h * heads + h] += of_variance;
    gradients.offset[h] = offset;
    gradients.of_high[h] = along + of_variance * known.variance[h] + offset * known.mean[h];
  }
}

// A warp for each kSide heads at a warp's keys.
template <typename T>
__device__ __forceinline__ void write_gradient(const Params& params, const QueryRows<T>& rows,
                                               const HeadStatistics& known, const HeadGradients& gradients,
                                               const float* factors, T* result) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int sides = (rows.heads + kSide - 1) / kSide;
  const float share = 1.0f / static_cast<float>(rows.keys);
  const int64_t chunks = (rows.keys + kWarp - 1) / kWarp;
  for (int64_t item = threadIdx.x / kWarp; item < sides * chunks; item += kQueryWarps) {
    const int64_t chunk = item / sides;
    const int first = static_cast<int>(item - chunk * sides) * kSide;
    const int64_t key = chunk * kWarp + lane;
    if (key >= rows.keys) continue;
    const float* of[kSide];
    float sums[kSide];
#pragma unroll
    for (int i = 0; i < kSide; ++i) {
      const int head = at_most(first + i, rows.heads);
      of[i] = factors + head * rows.heads;
      sums[i] = gradients.offset[head];
    }
    for (int g = 0; g < rows.heads; ++g) {
      const float value = CentredRow<T>(rows, known, g).at(key);
#pragma unroll
      for (int i = 0; i < kSide; ++i) sums[i] = fmaf(of[i][g], value, sums[i]);
    }
#pragma unroll
    for (int i = 0; i < kSide; ++i) {
      const int head = first + i;
      if (head >= rows.heads) continue;
      float value = sums[i] * share;
      if (key == gradients.high_place[head]) value -= gradients.of_high[head];
      if (key == gradients.low_place[head]) value -= gradients.offset[head] - gradients.of_high[head];
      result[head * params.result_strides.head + key] = from_float<T>(value * known.inverse[head]);
    }
  }
}

template <typename T>
__global__ void __launch_bounds__(kQueryThreads, kQueryBlocks) head_gradient_kernel(const Params params) {
  extern __shared__ __align__(kPackBytes) float pairs_shared[];
  __shared__ HeadStatistics known;
  __shared__ HeadGradients gradients;
  const int heads = static_cast<int>(params.heads);
  const float scale = static_cast<float>(*params.gradient / params.pairs());
  for (int64_t item = blockIdx.x; item < params.items(); item += gridDim.x) {
    const QueryRows<T> rows(params, item);
    find_means(rows, known, &gradients);
    __syncthreads();
    find_covariances(rows, known, pairs_shared);
    __syncthreads();
    find_factors(known, gradients, pairs_shared, heads, scale);
    __syncthreads();
    const int64_t batch = item / params.queries;
    T* result = static_cast<T*>(params.result) + batch * params.result_strides.batch +
                (item - batch * params.queries) * params.result_strides.row;
    write_gradient(params, rows, known, gradients, pairs_shared, result);
    __syncthreads();  // what is here is read no more
  }
}

size_t shared_bytes(const Params& params) { return sizeof(float) * static_cast<size_t>(params.heads * params.heads); }

}  // namespace

int inter_head_similarity_loss_cuda(const InterHeadSimilarityParams& params, void* stream) {
  const int error = with_element_type(params.dtype, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    return launch_striding(head_pairs_kernel<T>, params.items(), kQueryThreads, shared_bytes(params), stream, params);
  });
  if (error != cudaSuccess) return error;
  return launch_total(params.workspace, params.items(), 0.0, 1.0 / params.pairs(), params.value, stream);
}

int inter_head_similarity_loss_backward_cuda(const InterHeadSimilarityParams& params, void* stream) {
  return with_element_type(params.dtype, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    return launch_striding(head_gradient_kernel<T>, params.items(), kQueryThreads, shared_bytes(params), stream,
                           params);
  });
}

}  // namespace synq
