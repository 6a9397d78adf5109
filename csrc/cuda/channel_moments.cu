// Mean and variance of every channel of every image, and their gradient.
//
// A thread sums differences from its first value in float32; blocks merge what their threads found relative to the
// channel's first value, and parts merge in double. Every part has its place, so every run gives the same bits.
#include "../channel_moments.h"

#include "../centred_sums.h"
#include "block_tree.cuh"
#include "channel_parts.cuh"

namespace synq {
namespace {

struct MomentsArguments {
  const void* x;
  CentredSums<double>* partials;  // (groups, splits); null: one part, and the moments are written
  float* mean;
  float* variance;
  int64_t samples;
  int64_t channels;
  int64_t positions;
  int64_t splits;
};

__device__ __forceinline__ void store_moments(const MomentsArguments& arguments, int64_t group,
                                              const CentredSums<double>& sums) {
  const double count = static_cast<double>(arguments.positions);
  arguments.mean[group] = static_cast<float>(sums.sum / count);
  arguments.variance[group] = static_cast<float>(sums.deviation / count);
}

// `sums` are those of the differences from `shift`.
__device__ __forceinline__ void store_part(const MomentsArguments& arguments, int64_t group, int64_t split,
                                           const CentredSums<float>& sums, float shift) {
  const double count = static_cast<double>(sums.count);
  const CentredSums<double> part = {count, static_cast<double>(sums.sum) + count * static_cast<double>(shift),
                                    static_cast<double>(sums.deviation)};
  if (arguments.partials == nullptr) {
    store_moments(arguments, group, part);
  } else {
    arguments.partials[group * arguments.splits + split] = part;
  }
}

class ThreadSums {
 public:
  __device__ __forceinline__ explicit ThreadSums(float first) : centre_(usable_centre(first)) {}

  __device__ __forceinline__ void include(float x) {
    const float difference = sub(x, centre_);
    sum_ = add(sum_, difference);
    squares_ = fmaf(difference, difference, squares_);
  }

  // Of `count` values, relative to `shift`.
  __device__ __forceinline__ CentredSums<float> result(int count, float shift) const {
    if (count == 0) return {0.0f, 0.0f, 0.0f};
    return unshifted(static_cast<float>(count), sub(centre_, shift), sum_, squares_);
  }

 private:
  float centre_;
  float sum_ = 0.0f;
  float squares_ = 0.0f;
};

// Block (group, split) handles one part of one channel of one sample.
template <typename T, int kCount>
__global__ void __launch_bounds__(kThreads, kMinimumBlocks) run_moments_kernel(const MomentsArguments arguments) {
  const int64_t packs = arguments.positions / kCount;
  const int64_t groups = arguments.samples * arguments.channels;
  for (int64_t item = blockIdx.x; item < groups * arguments.splits; item += gridDim.x) {
    const int64_t group = item / arguments.splits;
    const int64_t split = item - group * arguments.splits;
    const T* x = static_cast<const T*>(arguments.x) + group * arguments.positions;
    const float shift = usable_centre(to_float(x[0]));
    const int64_t first = split * blockDim.x + threadIdx.x;
    ThreadSums sums(first < packs ? to_float(x[first * kCount]) : 0.0f);
    int count = 0;
    for (int64_t pack = first; pack < packs; pack += arguments.splits * blockDim.x, count += kCount) {
      const Pack<T, kCount> values = load_pack<kCount>(x + pack * kCount);
#pragma unroll
      for (int i = 0; i < kCount; ++i) sums.include(to_float(values.values[i]));
    }
    const auto total = merge_block<1>(sums.result(count, shift));
    if (threadIdx.x == 0) store_part(arguments, group, split, total, shift);
  }
}

// Block (sample, split, group of columns) handles the rows of one split, where channels are innermost.
template <typename T>
__global__ void __launch_bounds__(kThreads, kMinimumBlocks) column_moments_kernel(const MomentsArguments arguments) {
  constexpr int kRows = kThreads / kColumns;
  const int64_t channels = arguments.channels;
  const int64_t tiles = (channels + kColumns - 1) / kColumns;
  for (int64_t item = blockIdx.x; item < arguments.samples * arguments.splits * tiles; item += gridDim.x) {
    const int64_t part = item / tiles;
    const int64_t sample = part / arguments.splits;
    const int64_t split = part - sample * arguments.splits;
    const int64_t column = (item - part * tiles) * kColumns + threadIdx.x % kColumns;
    CentredSums<float> found = {0.0f, 0.0f, 0.0f};
    float shift = 0.0f;
    if (column < channels) {
      const T* x = static_cast<const T*>(arguments.x) + sample * arguments.positions * channels + column;
      shift = usable_centre(to_float(x[0]));
      const int64_t first = split * kRows + threadIdx.x / kColumns;
      ThreadSums sums(first < arguments.positions ? to_float(x[first * channels]) : 0.0f);
      int count = 0;
      for (int64_t row = first; row < arguments.positions; row += arguments.splits * kRows, ++count) {
        sums.include(to_float(x[row * channels]));
      }
      found = sums.result(count, shift);
    }
    const auto total = merge_block<kColumns>(found);
    if (threadIdx.x < kColumns && column < channels) {
      store_part(arguments, sample * channels + column, split, total, shift);
    }
  }
}

__global__ void __launch_bounds__(kThreads) finish_moments_kernel(const MomentsArguments arguments) {
  const int64_t groups = arguments.samples * arguments.channels;
  for (int64_t group = blockIdx.x; group < groups; group += gridDim.x) {
    CentredSums<double> sums = {0.0, 0.0, 0.0};
    for (int64_t i = threadIdx.x; i < arguments.splits; i += blockDim.x) {
      sums = merge(sums, arguments.partials[group * arguments.splits + i]);
    }
    sums = merge_block<1>(sums);
    if (threadIdx.x == 0) store_moments(arguments, group, sums);
  }
}

struct GradientArguments {
  const void* x;
  const float* mean;
  const float* of_mean;
  const float* of_variance;
  void* y;
  int64_t packs;
  int64_t channels;
  int64_t positions;
};

// Index is as wide as the number of elements needs: its divisions weigh. A pack lies in one run, or, with channels
// innermost, in one row.
template <typename T, int kCount, bool kInnermost, typename Index>
__global__ void __launch_bounds__(kThreads, kMinimumBlocks) moments_gradient_kernel(const GradientArguments arguments) {
  const Index channels = static_cast<Index>(arguments.channels);
  const Index positions = static_cast<Index>(arguments.positions);
  const float count = static_cast<float>(arguments.positions);
  const int64_t threads = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t pack = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; pack < arguments.packs;
       pack += threads) {
    const int64_t place = pack * kCount;
    const Index element = static_cast<Index>(place);
    Index group = element / positions;
    if (kInnermost) {
      const Index row = element / channels;
      group = row / positions * channels + (element - row * channels);
    }
    const Pack<T, kCount> x = load_pack<kCount>(static_cast<const T*>(arguments.x) + place);
    Pack<T, kCount> y;
    float mean = 0.0f;
    float offset = 0.0f;
    float slope = 0.0f;
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      if (kInnermost || i == 0) {
        const Index of = group + (kInnermost ? i : 0);
        mean = arguments.mean[of];
        offset = arguments.of_mean == nullptr ? 0.0f : divide(arguments.of_mean[of], count);
        slope = divide(mul(2.0f, arguments.of_variance[of]), count);
      }
      y.values[i] = from_float<T>(fmaf(sub(to_float(x.values[i]), mean), slope, offset));
    }
    store_pack<kCount>(static_cast<T*>(arguments.y) + place, y);
  }
}

template <typename T>
bool is_packed(const ChannelMomentsParams& params) {
  const int64_t length = params.innermost ? params.channels : params.positions;
  return length % pack_size<T>() == 0 && is_aligned(params.x, kPackBytes) &&
         (params.y == nullptr || is_aligned(params.y, kPackBytes));
}

// Parts that each sum is divided into. Depends on sizes alone.
int64_t splits_of(const ChannelMomentsParams& params) {
  const bool wide = params.dtype == DType::kFloat32;
  const int64_t pack = wide ? pack_size<float>() : pack_size<__half>();
  const int64_t work = params.innermost ? params.samples * ceil_divide(params.channels, kColumns) : params.groups();
  const int64_t share = params.innermost ? 4 * kThreads / kColumns : 4 * kThreads * pack;
  const int64_t useful = ceil_divide(params.positions, share);
  return std::min(useful, ceil_divide(kReductionParts, work));
}

template <typename T>
int launch_moments(const ChannelMomentsParams& params, const MomentsArguments& arguments, void* stream) {
  if (params.innermost) {
    const int64_t items = params.samples * arguments.splits * ceil_divide(params.channels, kColumns);
    return launch_striding(column_moments_kernel<T>, items, kThreads, 0, stream, arguments);
  }
  const bool packed = is_packed<T>(params);
  const int64_t packs = params.positions / (packed ? pack_size<T>() : 1);
  const int threads = threads_for(ceil_divide(packs, arguments.splits));
  const int64_t items = params.groups() * arguments.splits;
  if (packed) return launch_striding(run_moments_kernel<T, pack_size<T>()>, items, threads, 0, stream, arguments);
  return launch_striding(run_moments_kernel<T, 1>, items, threads, 0, stream, arguments);
}

template <typename T, int kCount, bool kInnermost>
int launch_gradient(const ChannelMomentsParams& params, void* stream) {
  const GradientArguments arguments = {params.x,           params.mean,     params.of_mean,
                                       params.of_variance, params.y,        params.elements() / kCount,
                                       params.channels,    params.positions};
  const int64_t blocks = ceil_divide(arguments.packs, kThreads);
  if (params.elements() <= INT32_MAX) {
    return launch_striding(moments_gradient_kernel<T, kCount, kInnermost, uint32_t>, blocks, kThreads, 0, stream,
                           arguments);
  }
  return launch_striding(moments_gradient_kernel<T, kCount, kInnermost, int64_t>, blocks, kThreads, 0, stream,
                         arguments);
}

}  // namespace

int64_t channel_moments_workspace_cuda(const ChannelMomentsParams& params) {
  const int64_t splits = splits_of(params);
  return splits == 1 ? 0 : 3 * params.groups() * splits;
}

int channel_moments_cuda(const ChannelMomentsParams& params, void* stream) {
  const int64_t splits = splits_of(params);
  auto* partials = splits == 1 ? nullptr : reinterpret_cast<CentredSums<double>*>(params.workspace);
  const MomentsArguments arguments = {params.x,       partials,        params.mean,      params.variance,
                                      params.samples, params.channels, params.positions, splits};
  const int error = with_element_type(
      params.dtype, [&](auto tag) { return launch_moments<typename decltype(tag)::Type>(params, arguments, stream); });
  if (error != cudaSuccess || splits == 1) return error;
  return launch_striding(finish_moments_kernel, params.groups(), threads_for(splits), 0, stream, arguments);
}

int channel_moments_backward_cuda(const ChannelMomentsParams& params, void* stream) {
  return with_element_type(params.dtype, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    if (is_packed<T>(params)) {
      if (params.innermost) return launch_gradient<T, pack_size<T>(), true>(params, stream);
      return launch_gradient<T, pack_size<T>(), false>(params, stream);
    }
    if (params.innermost) return launch_gradient<T, 1, true>(params, stream);
    return launch_gradient<T, 1, false>(params, stream);
  });
}

}  // namespace synq
