// Soft rounding with its penalty, and their gradients, each in one pass.
//
// Each block sums a part of a channel, or of a group of neighbouring columns: the penalty, or the gradient of the
// scale. A second kernel adds the parts. Threads sum in float32, blocks in double; every part has its place, so every
// run gives the same bits.
#include "../soft_round.h"

#include "../learned_grid.h"
#include "block_tree.cuh"
#include "channel_parts.cuh"

namespace synq {
namespace {

constexpr int kPack = 4;

struct Sum {
  double value;
};

__device__ __forceinline__ Sum merge(const Sum& a, const Sum& b) { return {a.value + b.value}; }

struct Share {
  float sigmoid;
  float h;

  __device__ __forceinline__ explicit Share(float v) : sigmoid(1.0f / (1.0f + expf(-v))) {
    h = clamp(sigmoid * 1.2f - 0.1f, 0.0f, 1.0f);
  }
  __device__ __forceinline__ float signed_distance() const { return h * 2.0f - 1.0f; }
};

// u^exponent for u from 0 to 1, NaN included.
__device__ __forceinline__ float power_of(float u, float exponent) {
  return expf(exponent * logf(u < 1.17549435e-38f ? 1.17549435e-38f : u));
}

__device__ __forceinline__ float rounded(float code, const Affine& affine, float low, float high) {
  return add(clamp(code, low, high), affine.zero_point);
}

// An operation gives the value that is stored, and a term of a sum.
struct Forward {
  static constexpr bool kReadsGradient = false;
  float low;
  float high;
  float exponent;

  __device__ __forceinline__ explicit Forward(const SoftRoundParams& params)
      : low(lowest_code(params.bits)), high(highest_code(params.bits)), exponent(*params.exponent) {}

  __device__ __forceinline__ float apply(float v, int8_t base, float, const Affine& affine, float& term) const {
    const Share share(v);
    term = 1.0f - power_of(fabsf(share.signed_distance()), exponent);
    return divide(rounded(add(static_cast<float>(base), share.h), affine, low, high), affine.scale);
  }
};

// `kOfWeights`: whether there is an incoming gradient of w.
template <bool kOfWeights>
struct Backward {
  static constexpr bool kReadsGradient = kOfWeights;
  float low;
  float high;
  float exponent;
  float factor;  // of the penalty's slope
  bool penalized;

  __device__ __forceinline__ explicit Backward(const SoftRoundParams& params)
      : low(lowest_code(params.bits)),
        high(highest_code(params.bits)),
        exponent(*params.exponent - 1.0f),
        factor(params.grad_penalty == nullptr ? 0.0f : 2.0f * *params.exponent * *params.grad_penalty),
        penalized(params.grad_penalty != nullptr) {}

  __device__ __forceinline__ float apply(float v, int8_t base, float gradient, const Affine& affine,
                                         float& term) const {
    const Share share(v);
    float of_h = 0.0f;
    term = 0.0f;
    if (kOfWeights) {
      const float lower = static_cast<float>(base);
      term = gradient * rounded(add(lower, share.h), affine, low, high);
      // Between two levels of the grid, which 0 < h < 1 leaves to the base alone.
      of_h = lower >= low && lower < high ? gradient / affine.scale : 0.0f;
    }
    if (penalized) {
      const float distance = share.signed_distance();
      const float slope = factor * power_of(fabsf(distance), exponent);
      of_h -= distance > 0.0f ? slope : distance < 0.0f ? -slope : 0.0f;
    }
    const float slope = share.sigmoid * (1.0f - share.sigmoid) * 1.2f;
    return share.h <= 0.0f || share.h >= 1.0f ? 0.0f : of_h * slope;
  }
};

__device__ __forceinline__ Affine grid_of(const SoftRoundParams& params, int64_t channel) {
  return learned_grid(params.scale[channel], params.zero_point[channel]);
}

template <typename Operation, int kCount>
__device__ __forceinline__ float map_pack(const SoftRoundParams& params, const Operation& operation,
                                          const Affine& affine, int64_t place) {
  const Pack<float, kCount> v = load_pack<kCount>(params.v + place);
  const Pack<int8_t, kCount> base = load_pack<kCount>(params.base + place);
  Pack<float, kCount> gradient = {};
  if (Operation::kReadsGradient) gradient = load_pack<kCount>(params.gradient + place);
  Pack<float, kCount> y;
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    float term;
    y.values[i] = operation.apply(v.values[i], base.values[i], gradient.values[i], affine, term);
    sum += term;
  }
  store_pack<kCount>(params.y + place, y);
  return sum;
}

// Block (channel, split) handles one part of one channel.
template <typename Operation, int kCount>
__global__ void __launch_bounds__(kThreads, kMinimumBlocks)
    channel_kernel(const SoftRoundParams params, Layout layout, int64_t splits, int64_t head) {
  const Operation operation(params);
  const int64_t length = layout.outer * layout.inner;
  const int64_t packs = (length - head) / kCount;
  const int64_t packed = packs * kCount;
  const int64_t step = splits * kThreads;
  for (int64_t item = blockIdx.x; item < layout.channels * splits; item += gridDim.x) {
    const int64_t channel = item / splits;
    const int64_t start = (item - channel * splits) * kThreads + threadIdx.x;
    const Affine affine = grid_of(params, channel);
    float sum = 0.0f;
    for (int64_t index = start; index < packs; index += step) {
      const int64_t place = layout.offset(channel, head + index * kCount);
      sum += map_pack<Operation, kCount>(params, operation, affine, place);
    }
    if (start < length - packed) {
      const int64_t place = layout.offset(channel, start < head ? start : start + packed);
      sum += map_pack<Operation, 1>(params, operation, affine, place);
    }
    const Sum total = merge_block<1>(Sum{static_cast<double>(sum)});
    if (threadIdx.x == 0) params.workspace[item] = total.value;
  }
}

// Block (split, group of columns) handles the rows of one split; partial sums are (columns, splits).
template <typename Operation>
__global__ void __launch_bounds__(kThreads, kMinimumBlocks)
    column_kernel(const SoftRoundParams params, Layout layout, int64_t splits) {
  constexpr int kRows = kThreads / kColumns;
  const Operation operation(params);
  const int64_t columns = layout.channels * layout.inner;
  const int64_t groups = (columns + kColumns - 1) / kColumns;
  for (int64_t item = blockIdx.x; item < groups * splits; item += gridDim.x) {
    const int64_t split = item / groups;
    const int64_t column = (item - split * groups) * kColumns + threadIdx.x % kColumns;
    float sum = 0.0f;
    if (column < columns) {
      const Affine affine = grid_of(params, column / layout.inner);
      const int64_t first = split * kRows + threadIdx.x / kColumns;
      for (int64_t row = first; row < layout.outer; row += splits * kRows) {
        sum += map_pack<Operation, 1>(params, operation, affine, row * columns + column);
      }
    }
    const Sum total = merge_block<kColumns>(Sum{static_cast<double>(sum)});
    if (threadIdx.x < kColumns && column < columns) params.workspace[column * splits + split] = total.value;
  }
}

// Sums of `count` consecutive partial sums each: the penalty, or the gradients of the scales.
__global__ void __launch_bounds__(kThreads) finish_kernel(const SoftRoundParams params, int64_t sums, int64_t count) {
  for (int64_t index = blockIdx.x; index < sums; index += gridDim.x) {
    Sum sum = {0.0};
    for (int64_t i = threadIdx.x; i < count; i += blockDim.x) sum.value += params.workspace[index * count + i];
    sum = merge_block<1>(sum);
    if (threadIdx.x != 0) continue;
    if (params.penalty != nullptr) {
      *params.penalty = static_cast<float>(sum.value);
    } else {
      params.grad_scale[index] = learned_grad_scale(-sum.value, params.scale[index], 1.0);
    }
  }
}

// Partial sums per channel.
int64_t partial_sums(const Layout& layout) {
  return is_narrow(layout) ? layout.inner * column_splits(layout) : channel_splits(layout, kPack);
}

template <typename Operation>
int launch_map(const SoftRoundParams& params, void* stream) {
  const Layout layout = layout_of(params);
  if (is_narrow(layout)) {
    const int64_t splits = column_splits(layout);
    const int64_t items = ceil_divide(layout.columns(), kColumns) * splits;
    return launch_striding(column_kernel<Operation>, items, kThreads, 0, stream, params, layout, splits);
  }
  const int64_t splits = channel_splits(layout, kPack);
  const int64_t items = layout.channels * splits;
  // A single channel may start and end anywhere; rows that follow each other must all start at a boundary.
  const bool single = layout.channels == 1;
  const int64_t head = single ? std::min(elements_to_boundary(params.v), layout.inner) : 0;
  const bool packed = (single || layout.inner % kPack == 0) && is_aligned(params.v + head, kPackBytes) &&
                      is_aligned(params.base + head, kPack) && is_aligned(params.y + head, kPackBytes) &&
                      (!Operation::kReadsGradient || is_aligned(params.gradient + head, kPackBytes));
  if (packed) {
    return launch_striding(channel_kernel<Operation, kPack>, items, kThreads, 0, stream, params, layout, splits, head);
  }
  return launch_striding(channel_kernel<Operation, 1>, items, kThreads, 0, stream, params, layout, splits, int64_t{0});
}

}  // namespace

int64_t soft_round_workspace_cuda(const SoftRoundParams& params) {
  const Layout layout = layout_of(params);
  return layout.channels * partial_sums(layout);
}

int soft_round_cuda(const SoftRoundParams& params, void* stream) {
  const int error = launch_map<Forward>(params, stream);
  if (error != cudaSuccess) return error;
  const int64_t count = soft_round_workspace_cuda(params);
  return launch(finish_kernel, 1, threads_for(count), 0, stream, params, int64_t{1}, count);
}

int soft_round_backward_cuda(const SoftRoundParams& params, void* stream) {
  // Without a gradient of w the terms are zero, and so are the gradients of the scales.
  const int error = params.gradient == nullptr ? launch_map<Backward<false>>(params, stream)
                                               : launch_map<Backward<true>>(params, stream);
  if (error != cudaSuccess || params.gradient == nullptr) return error;
  const Layout layout = layout_of(params);
  const int64_t count = partial_sums(layout);
  return launch_striding(finish_kernel, layout.channels, threads_for(count), 0, stream, params, layout.channels, count);
}

}  // namespace synq
