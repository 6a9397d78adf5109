// Mean and variance of every channel of every image, and their gradient.
//
// A thread sums differences from its first value in float32; blocks merge what their threads found relative to the
// channel's first value, and parts merge in double. Every part has its place, so every run gives the same bits.
#include "../channel_moments.h"

#include "../centred_sums.h"
#include "channel_parts.cuh"
#include "column_block.cuh"

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
  ThreadSums() = default;
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
  float centre_ = 0.0f;
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
    const auto include = [&](const Pack<T, kCount>& values) {
#pragma unroll
      for (int i = 0; i < kCount; ++i) sums.include(to_float(values.values[i]));
      count += kCount;
    };
    const int64_t step = arguments.splits * blockDim.x;
    int64_t pack = first;
    for (; pack + step < packs; pack += 2 * step) {
      const Pack<T, kCount> one = load_pack<kCount>(x + pack * kCount);
      const Pack<T, kCount> next = load_pack<kCount>(x + (pack + step) * kCount);
      include(one);
      include(next);
    }
    if (pack < packs) include(load_pack<kCount>(x + pack * kCount));
    const auto total = merge_rows<1>(sums.result(count, shift), 1);
    if (threadIdx.x == 0) store_part(arguments, group, split, total, shift);
  }
}

// Of neighbouring columns: as many values of each, so that the divisions by their counts are shared.
template <int kCount>
struct ColumnSums {
  float count;
  float sum[kCount];
  float deviation[kCount];

  // Sums of `added` other values: of(column).
  template <typename Of>
  __device__ __forceinline__ void absorb(float added, const Of& of) {
    const float total = count + added;
    const bool both = count > 0.0f && added > 0.0f;
    const float mine = both ? 1.0f / count : 0.0f;
    const float theirs = both ? 1.0f / added : 0.0f;
    const float weight = both ? count / total * added : 0.0f;
    count = total;
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const CentredSums<float> other = of(i);
      const float delta = other.sum * theirs - sum[i] * mine;
      sum[i] += other.sum;
      deviation[i] += other.deviation + (both ? delta * delta * weight : 0.0f);
    }
  }

  __device__ __forceinline__ CentredSums<float> column(int i) const { return {count, sum[i], deviation[i]}; }
};

template <int kCount>
__device__ __forceinline__ ColumnSums<kCount> merge(ColumnSums<kCount> a, const ColumnSums<kCount>& b) {
  a.absorb(b.count, [&](int i) { return b.column(i); });
  return a;
}

template <int kCount>
__device__ __forceinline__ void merge_exchanged(ColumnSums<kCount>& value, int mask) {
  value.absorb(exchanged(value.count, mask), [&](int i) {
    return CentredSums<float>{0.0f, exchanged(value.sum[i], mask), exchanged(value.deviation[i], mask)};
  });
}

// Where channels are innermost: of one sample's rows, those of one split and of one group of packs of columns.
struct ColumnItem {
  int64_t sample;
  int64_t split;
  int64_t column;
  int64_t first;
  int64_t step;

  __device__ __forceinline__ ColumnItem(int64_t item, int64_t splits, int64_t columns, int lanes, int count) {
    const int64_t groups = (columns + lanes * count - 1) / (lanes * count);
    const int64_t part = item / groups;
    const int rows = kThreads / lanes;
    sample = part / splits;
    split = part - sample * splits;
    column = ((item - part * groups) * lanes + static_cast<int>(threadIdx.x) % lanes) * count;
    first = split * rows + static_cast<int>(threadIdx.x) / lanes;
    step = splits * rows;
  }
};

// A thread keeps to a pack of columns and takes four rows at a time.
template <typename T, int kCount>
__global__ void __launch_bounds__(kThreads, kMinimumBlocks)
    column_moments_kernel(const MomentsArguments arguments, int lanes, int64_t items) {
  const int64_t channels = arguments.channels;
  for (int64_t item = blockIdx.x; item < items; item += gridDim.x) {
    const ColumnItem at(item, arguments.splits, channels, lanes, kCount);
    ColumnSums<kCount> found = {};
    const T* x = static_cast<const T*>(arguments.x) + at.sample * arguments.positions * channels + at.column;
    if (at.column < channels) {
      RowReader<T, kCount> reader(x, channels, arguments.positions, at.first, at.step);
      const int count = reader.left;
      ThreadSums sums[kCount];
      const Pack<T, kCount> mine = load_pack<kCount>(count > 0 ? reader.pointer : x);
#pragma unroll
      for (int i = 0; i < kCount; ++i) sums[i] = ThreadSums(to_float(mine.values[i]));
      reader.template read<4>([&](const auto& packs) {
#pragma unroll
        for (const auto& pack : packs) {
#pragma unroll
          for (int i = 0; i < kCount; ++i) sums[i].include(to_float(pack.values[i]));
        }
      });
      const Pack<T, kCount> top = load_pack<kCount>(x);
      found.count = static_cast<float>(count);
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        const CentredSums<float> result = sums[i].result(count, usable_centre(to_float(top.values[i])));
        found.sum[i] = result.sum;
        found.deviation[i] = result.deviation;
      }
    }
    found = merge_rows<kMostLanes<T, kCount>>(found, lanes);
    if (static_cast<int>(threadIdx.x) < lanes && at.column < channels) {
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        store_part(arguments, at.sample * channels + at.column + i, at.split, found.column(i),
                   usable_centre(to_float(x[i])));
      }
    }
  }
}

// Threads side by side have a channel each, the others further parts of it.
__global__ void __launch_bounds__(kThreads) finish_moments_kernel(const MomentsArguments arguments, int lanes) {
  const int64_t groups = arguments.samples * arguments.channels;
  const int rows = kThreads / lanes;
  for (int64_t first = static_cast<int64_t>(blockIdx.x) * lanes; first < groups;
       first += static_cast<int64_t>(gridDim.x) * lanes) {
    const int64_t group = first + static_cast<int>(threadIdx.x) % lanes;
    CentredSums<double> sums = {0.0, 0.0, 0.0};
    for (int64_t i = static_cast<int>(threadIdx.x) / lanes; group < groups && i < arguments.splits; i += rows) {
      sums = merge(sums, arguments.partials[group * arguments.splits + i]);
    }
    sums = merge_rows<kWarp>(sums, lanes);
    if (static_cast<int>(threadIdx.x) < lanes && group < groups) store_moments(arguments, group, sums);
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
  int64_t splits;
};

// The gradient of one channel of one sample.
struct Line {
  float mean;
  float slope;
  float offset;

  Line() = default;
  __device__ __forceinline__ Line(const GradientArguments& arguments, int64_t group, float count)
      : mean(arguments.mean[group]),
        slope(divide(mul(2.0f, arguments.of_variance[group]), count)),
        offset(arguments.of_mean == nullptr ? 0.0f : divide(arguments.of_mean[group], count)) {}

  template <typename T>
  __device__ __forceinline__ T at(T x) const {
    return from_float<T>(fmaf(sub(to_float(x), mean), slope, offset));
  }
};

// Index is as wide as the number of elements needs: its divisions weigh. A pack lies in one run.
template <typename T, int kCount, typename Index>
__global__ void __launch_bounds__(kThreads, kMinimumBlocks) moments_gradient_kernel(const GradientArguments arguments) {
  const Index positions = static_cast<Index>(arguments.positions);
  const float count = static_cast<float>(arguments.positions);
  const int64_t threads = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t pack = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; pack < arguments.packs;
       pack += threads) {
    const int64_t place = pack * kCount;
    Pack<T, kCount> values = load_pack<kCount>(static_cast<const T*>(arguments.x) + place);
    const Line line(arguments, static_cast<Index>(place) / positions, count);
#pragma unroll
    for (int i = 0; i < kCount; ++i) values.values[i] = line.at(values.values[i]);
    store_pack<kCount>(static_cast<T*>(arguments.y) + place, values);
  }
}

// With channels innermost: a thread keeps to a pack of columns and takes two rows at a time.
template <typename T, int kCount>
__global__ void __launch_bounds__(kThreads, kMinimumBlocks)
    column_gradient_kernel(const GradientArguments arguments, int lanes, int64_t items) {
  const int64_t channels = arguments.channels;
  const float count = static_cast<float>(arguments.positions);
  for (int64_t item = blockIdx.x; item < items; item += gridDim.x) {
    const ColumnItem at(item, arguments.splits, channels, lanes, kCount);
    if (at.column >= channels) continue;
    Line lines[kCount];
#pragma unroll
    for (int i = 0; i < kCount; ++i) lines[i] = Line(arguments, at.sample * channels + at.column + i, count);
    const int64_t start = at.sample * arguments.positions * channels + at.column;
    const T* x = static_cast<const T*>(arguments.x) + start;
    T* y = static_cast<T*>(arguments.y) + start;
    const auto finish = [&](int64_t row, Pack<T, kCount> values) {
#pragma unroll
      for (int i = 0; i < kCount; ++i) values.values[i] = lines[i].at(values.values[i]);
      store_pack<kCount>(y + row * channels, values);
    };
    int64_t row = at.first;
    for (; row + at.step < arguments.positions; row += 2 * at.step) {
      const Pack<T, kCount> one = load_pack<kCount>(x + row * channels);
      const Pack<T, kCount> next = load_pack<kCount>(x + (row + at.step) * channels);
      finish(row, one);
      finish(row + at.step, next);
    }
    if (row < arguments.positions) finish(row, load_pack<kCount>(x + row * channels));
  }
}

template <typename T>
bool is_packed(const ChannelMomentsParams& params) {
  const int64_t length = params.innermost ? params.channels : params.positions;
  return length % pack_size<T>() == 0 && is_aligned(params.x, kPackBytes) &&
         (params.y == nullptr || is_aligned(params.y, kPackBytes));
}

// Threads side by side where channels are innermost, each on so many.
template <typename T>
int lanes_of(const ChannelMomentsParams& params, int count) {
  return lanes_for(ceil_divide(params.channels, count), static_cast<int64_t>(sizeof(T)) * count);
}

// Parts that each sum is divided into. Depends on sizes alone.
template <typename T>
int64_t splits_for(const ChannelMomentsParams& params) {
  if (!params.innermost) {
    const int64_t useful = ceil_divide(params.positions, 4 * kThreads * pack_size<T>());
    return std::min(useful, ceil_divide(kReductionParts, params.groups()));
  }
  const int pack = params.channels % kSumPack == 0 ? kSumPack : 1;
  const int lanes = lanes_of<T>(params, pack);
  const int64_t useful = ceil_divide(params.positions, 8 * kThreads / lanes);
  return std::min(useful, ceil_divide(kReductionParts, params.samples * ceil_divide(params.channels, lanes * pack)));
}

int64_t splits_of(const ChannelMomentsParams& params) {
  return params.dtype == DType::kFloat32 ? splits_for<float>(params) : splits_for<__half>(params);
}

template <typename T, int kCount>
int launch_columns(const ChannelMomentsParams& params, const MomentsArguments& arguments, void* stream) {
  const int lanes = lanes_of<T>(params, kCount);
  const int64_t items = params.samples * arguments.splits * ceil_divide(params.channels, lanes * kCount);
  return launch_striding(column_moments_kernel<T, kCount>, items, kThreads, 0, stream, arguments, lanes, items);
}

template <typename T>
int launch_moments(const ChannelMomentsParams& params, const MomentsArguments& arguments, void* stream) {
  if (params.innermost) {
    return params.channels % kSumPack == 0 && is_aligned(params.x, sizeof(T) * kSumPack)
               ? launch_columns<T, kSumPack>(params, arguments, stream)
               : launch_columns<T, 1>(params, arguments, stream);
  }
  const bool packed = is_packed<T>(params);
  const int64_t packs = params.positions / (packed ? pack_size<T>() : 1);
  const int threads = threads_for(ceil_divide(packs, arguments.splits));
  const int64_t items = params.groups() * arguments.splits;
  if (packed) return launch_striding(run_moments_kernel<T, pack_size<T>()>, items, threads, 0, stream, arguments);
  return launch_striding(run_moments_kernel<T, 1>, items, threads, 0, stream, arguments);
}

template <typename T, int kCount>
int launch_gradient(const ChannelMomentsParams& params, void* stream) {
  const GradientArguments arguments = {params.x,           params.mean,      params.of_mean,
                                       params.of_variance, params.y,         params.elements() / kCount,
                                       params.channels,    params.positions, splits_for<T>(params)};
  if (params.innermost) {
    const int lanes = lanes_of<T>(params, kCount);
    const int64_t items = params.samples * arguments.splits * ceil_divide(params.channels, lanes * kCount);
    return launch_striding(column_gradient_kernel<T, kCount>, items, kThreads, 0, stream, arguments, lanes, items);
  }
  const int64_t blocks = ceil_divide(arguments.packs, kThreads);
  if (params.elements() <= INT32_MAX) {
    return launch_striding(moments_gradient_kernel<T, kCount, uint32_t>, blocks, kThreads, 0, stream, arguments);
  }
  return launch_striding(moments_gradient_kernel<T, kCount, int64_t>, blocks, kThreads, 0, stream, arguments);
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
  // As many channels side by side as leave a thread about four parts.
  int lanes = 1;
  while (lanes < kWarp && 2 * lanes * splits <= 4 * kThreads) lanes *= 2;
  return launch_striding(finish_moments_kernel, ceil_divide(params.groups(), lanes), kThreads, 0, stream, arguments,
                         lanes);
}

int channel_moments_backward_cuda(const ChannelMomentsParams& params, void* stream) {
  return with_element_type(params.dtype, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    return is_packed<T>(params) ? launch_gradient<T, pack_size<T>()>(params, stream)
                                : launch_gradient<T, 1>(params, stream);
  });
}

}  // namespace synq
