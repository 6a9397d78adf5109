// Mean and variance per channel, losses on them, and the gradient of x.
//
// Blocks reduce parts of a channel, or of several neighbouring ones, to a count, a mean and a sum of squared
// deviations; one small block puts the parts together in a fixed order. Everything is relative to the running mean, and
// each thread keeps running moments (Welford), so neither a large mean nor one far from the running mean costs
// accuracy.
#include "../bn_statistics_loss.h"

#include "block_tree.cuh"
#include "memory.cuh"

namespace synq {
namespace {

constexpr int64_t kNarrowInner = 16;  // below this, a channel's pieces are too short to read on their own
constexpr int kColumnThreads = 8;     // threads side by side that reduce columns
constexpr int64_t kMaximumSplits = 64;
constexpr int64_t kPacksPerThread = 4;  // at least, before a channel is split

struct Moments {
  float count;
  float mean;
  float deviation;
};

__device__ __forceinline__ Moments merge(Moments a, Moments b) {
  const float count = a.count + b.count;
  const float share = count > 0.0f ? b.count / count : 0.0f;
  const float delta = b.mean - a.mean;
  return {count, a.mean + delta * share, a.deviation + b.deviation + delta * delta * a.count * share};
}

// 64-bit division takes several times as long.
__device__ __forceinline__ int64_t divide(int64_t value, int64_t divisor) {
  if (((value | divisor) >> 32) == 0) return static_cast<uint32_t>(value) / static_cast<uint32_t>(divisor);
  return value / divisor;
}

// A part of the moments: three floats at places `step` apart.
struct Partials {
  float* values;
  int64_t step;

  __device__ __forceinline__ void store(int64_t place, Moments moments) const {
    values[place] = moments.count;
    values[step + place] = moments.mean;
    values[2 * step + place] = moments.deviation;
  }
};

// Item (channel, split): packs of kCount elements within a channel's pieces.
template <typename T, int kCount>
__global__ void __launch_bounds__(kThreads, kMinimumBlocks)
    channel_moments_kernel(const T* x, const float* running_mean, Partials partials, Layout layout, int64_t splits) {
  const int64_t packs = layout.outer * layout.inner / kCount;
  for (int64_t item = blockIdx.x; item < layout.channels * splits; item += gridDim.x) {
    const int64_t channel = divide(item, splits);
    const float shift = running_mean[channel];
    float mean = 0.0f;
    float deviation = 0.0f;
    float steps = 0.0f;
    for (int64_t pack = (item - channel * splits) * kThreads + threadIdx.x; pack < packs; pack += splits * kThreads) {
      const int64_t element = pack * kCount;
      const int64_t outer = layout.outer == 1 ? 0 : divide(element, layout.inner);
      const Pack<T, kCount> values =
          load_pack<kCount>(x + (outer * layout.channels + channel) * layout.inner + (element - outer * layout.inner));
      float d[kCount];
      float centre = 0.0f;
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        d[i] = to_float(values.values[i]) - shift;
        centre += d[i];
      }
      centre *= 1.0f / kCount;
      float squares = 0.0f;
#pragma unroll
      for (int i = 0; i < kCount; ++i) squares += (d[i] - centre) * (d[i] - centre);
      const float before = steps;
      steps += 1.0f;
      const float share = 1.0f / steps;
      const float delta = centre - mean;
      mean += delta * share;
      deviation += squares + delta * delta * (before * kCount) * share;
    }
    const Moments moments = merge_block<1>(Moments{steps * kCount, mean, deviation});
    if (threadIdx.x == 0) partials.store(item, moments);
  }
}

// Memory as an (outer, columns) matrix, columns = channels * inner. Item (split, group of columns).
template <typename T, int kCount>
__global__ void __launch_bounds__(kThreads, kMinimumBlocks)
    column_moments_kernel(const T* x, const float* running_mean, Partials partials, Layout layout, int64_t splits) {
  constexpr int kRows = kThreads / kColumnThreads;
  constexpr int64_t kWidth = kColumnThreads * kCount;
  const int64_t columns = layout.channels * layout.inner;
  const int64_t groups = (columns + kWidth - 1) / kWidth;
  for (int64_t item = blockIdx.x; item < groups * splits; item += gridDim.x) {
    const int64_t split = divide(item, groups);
    const int64_t column = (item - split * groups) * kWidth + static_cast<int>(threadIdx.x % kColumnThreads) * kCount;
    float shift[kCount] = {};
    float mean[kCount] = {};
    float deviation[kCount] = {};
    float steps = 0.0f;
    if (column < columns) {
#pragma unroll
      for (int i = 0; i < kCount; ++i) shift[i] = running_mean[divide(column + i, layout.inner)];
      for (int64_t row = split * kRows + threadIdx.x / kColumnThreads; row < layout.outer; row += splits * kRows) {
        const Pack<T, kCount> values = load_pack<kCount>(x + row * columns + column);
        steps += 1.0f;
        const float share = 1.0f / steps;
#pragma unroll
        for (int i = 0; i < kCount; ++i) {
          const float d = to_float(values.values[i]) - shift[i];
          const float delta = d - mean[i];
          mean[i] += delta * share;
          deviation[i] += delta * (d - mean[i]);
        }
      }
    }
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const Moments moments = merge_block<kColumnThreads>(Moments{steps, mean[i], deviation[i]});
      if (threadIdx.x < kColumnThreads && column < columns) partials.store((column + i) * splits + split, moments);
    }
  }
}

__device__ __forceinline__ double sum_block(double value) {
  __shared__ double shared[kThreads];
  __syncthreads();
  shared[threadIdx.x] = value;
  for (int width = kThreads / 2; width > 0; width /= 2) {
    __syncthreads();
    if (static_cast<int>(threadIdx.x) < width) shared[threadIdx.x] += shared[threadIdx.x + width];
  }
  __syncthreads();
  return shared[0];
}

// One block. Each channel's moments from its `count` consecutive parts, in float64.
__global__ void __launch_bounds__(kThreads)
    finish_kernel(const BnStatisticsParams params, Partials partials, int64_t count) {
  double mean_sum = 0;
  double var_sum = 0;
  const double elements = static_cast<double>(params.outer * params.inner);
  for (int64_t channel = threadIdx.x; channel < params.channels; channel += kThreads) {
    const float* counts = partials.values + channel * count;
    const float* means = counts + partials.step;
    const float* deviations = means + partials.step;
    double mean = 0;
    for (int64_t i = 0; i < count; ++i) mean += static_cast<double>(counts[i]) * static_cast<double>(means[i]);
    mean /= elements;
    double deviation = 0;
    for (int64_t i = 0; i < count; ++i) {
      const double delta = static_cast<double>(means[i]) - mean;
      deviation += static_cast<double>(deviations[i]) + static_cast<double>(counts[i]) * delta * delta;
    }
    const double var_error = deviation / elements - static_cast<double>(params.running_var[channel]);
    params.statistics[channel] = mean + static_cast<double>(params.running_mean[channel]);
    params.statistics[params.row_stride + channel] = mean;
    params.statistics[2 * params.row_stride + channel] = var_error;
    mean_sum += mean * mean;
    var_sum += var_error * var_error;
  }
  const double mean_loss = sum_block(mean_sum) / static_cast<double>(params.channels);
  const double var_loss = sum_block(var_sum) / static_cast<double>(params.channels);
  if (threadIdx.x != 0) return;
  if (params.mean_loss != nullptr) {
    *params.mean_loss = static_cast<float>(mean_loss);
    *params.var_loss = static_cast<float>(var_loss);
  }
  if (params.weighted != nullptr) *params.weighted = params.weight * (mean_loss + var_loss);
}

__global__ void __launch_bounds__(kThreads) total_kernel(const double* weighted, int64_t layers, float* loss) {
  double sum = 0;
  for (int64_t layer = threadIdx.x; layer < layers; layer += kThreads) sum += weighted[layer];
  sum = sum_block(sum);
  if (threadIdx.x == 0) *loss = static_cast<float>(sum);
}

struct Coefficients {
  float near;
  float slope;
  float offset;
};

__device__ __forceinline__ Coefficients coefficients_of(const BnGradientParams& params, int64_t channel,
                                                        float mean_factor, float var_factor) {
  const double mean = params.statistics[channel];
  const float near = static_cast<float>(mean);
  const float slope = var_factor * static_cast<float>(params.statistics[2 * params.row_stride + channel]);
  const float offset = mean_factor * static_cast<float>(params.statistics[params.row_stride + channel]);
  // What is left of the mean beyond its float32 value.
  return {near, slope, offset - slope * static_cast<float>(mean - static_cast<double>(near))};
}

template <typename T, int kCount>
__global__ void __launch_bounds__(kThreads, kMinimumBlocks)
    gradient_kernel(const BnGradientParams params, int64_t elements, bool periodic) {
  const T* x = static_cast<const T*>(params.x);
  T* result = static_cast<T*>(params.result);
  const float factor =
      params.weight * 2.0f / static_cast<float>(params.channels) / static_cast<float>(params.outer * params.inner);
  const float mean_factor = params.mean_scale == nullptr ? 0.0f : *params.mean_scale * factor;
  const float var_factor = params.var_scale == nullptr ? 0.0f : *params.var_scale * 2.0f * factor;
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x * kCount;
  Coefficients coefficients[kCount];
  for (int64_t first = thread * kCount; first < elements; first += step) {
    if (first == thread * kCount || !periodic) {
      const int64_t piece = divide(first, params.inner);
      int64_t position = first - piece * params.inner;
      int64_t channel = piece - divide(piece, params.channels) * params.channels;
      coefficients[0] = coefficients_of(params, channel, mean_factor, var_factor);
#pragma unroll
      for (int i = 1; i < kCount; ++i) {
        coefficients[i] = coefficients[i - 1];
        if (++position == params.inner) {
          position = 0;
          channel = channel + 1 == params.channels ? 0 : channel + 1;
          coefficients[i] = coefficients_of(params, channel, mean_factor, var_factor);
        }
      }
    }
    const Pack<T, kCount> values = load_pack<kCount>(x + first);
    Pack<T, kCount> y;
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const float d = to_float(values.values[i]) - coefficients[i].near;
      y.values[i] = from_float<T>(d * coefficients[i].slope + coefficients[i].offset);
    }
    store_pack<kCount>(result + first, y);
  }
}

struct Plan {
  bool by_column;
  bool packed;
  int64_t splits;
  int64_t items;
  int64_t parts;  // per channel
};

template <typename T>
Plan make_plan(const BnStatisticsParams& params) {
  constexpr int kCount = pack_size<T>();
  Plan plan{};
  plan.by_column = params.inner < kNarrowInner && params.outer > 1 && params.channels > 1;
  const int64_t columns = params.channels * params.inner;
  plan.packed = (plan.by_column ? columns : params.inner) % kCount == 0 && is_aligned(params.x, kPackBytes);
  const int64_t count = plan.packed ? kCount : 1;
  const int64_t units = plan.by_column ? ceil_divide(columns, kColumnThreads * count) : params.channels;
  const int64_t steps = plan.by_column ? ceil_divide(params.outer, kThreads / kColumnThreads)
                                       : ceil_divide(params.outer * params.inner, kThreads * count);
  const int64_t useful = ceil_divide(steps, kPacksPerThread);
  plan.splits = std::min({useful, ceil_divide(kReductionParts, units), kMaximumSplits});
  plan.items = units * plan.splits;
  plan.parts = plan.by_column ? params.inner * plan.splits : plan.splits;
  return plan;
}

template <typename T>
int launch_statistics(const BnStatisticsParams& params, void* stream) {
  constexpr int kCount = pack_size<T>();
  const Plan plan = make_plan<T>(params);
  const T* x = static_cast<const T*>(params.x);
  const Layout layout{params.outer, params.channels, params.inner};
  const Partials partials{params.workspace, params.channels * plan.parts};
  const auto run = [&](auto kernel) {
    return launch_striding(kernel, plan.items, kThreads, 0, stream, x, params.running_mean, partials, layout,
                           plan.splits);
  };
  int error;
  if (plan.by_column) {
    error = plan.packed ? run(column_moments_kernel<T, kCount>) : run(column_moments_kernel<T, 1>);
  } else {
    error = plan.packed ? run(channel_moments_kernel<T, kCount>) : run(channel_moments_kernel<T, 1>);
  }
  if (error != cudaSuccess) return error;
  return launch(finish_kernel, 1, kThreads, 0, stream, params, partials, plan.parts);
}

template <typename T, int kCount>
int launch_gradient(const BnGradientParams& params, int64_t elements, void* stream) {
  const auto kernel = gradient_kernel<T, kCount>;
  const MapGrid grid =
      map_grid(elements / kCount, kThreads * kCount, params.channels * params.inner, resident_blocks(kernel, kThreads));
  return launch(kernel, grid.blocks, kThreads, 0, stream, params, elements, grid.periodic);
}

}  // namespace

int64_t bn_statistics_workspace_cuda(const BnStatisticsParams& params) {
  const Plan plan = params.dtype == DType::kFloat32 ? make_plan<float>(params) : make_plan<__half>(params);
  return 3 * params.channels * plan.parts;
}

int bn_statistics_cuda(const BnStatisticsParams& params, void* stream) {
  return with_element_type(params.dtype,
                           [&](auto tag) { return launch_statistics<typename decltype(tag)::Type>(params, stream); });
}

int bn_statistics_backward_cuda(const BnGradientParams& params, void* stream) {
  return with_element_type(params.dtype, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    constexpr int kCount = pack_size<T>();
    const int64_t elements = params.outer * params.channels * params.inner;
    const bool packed =
        elements % kCount == 0 && is_aligned(params.x, kPackBytes) && is_aligned(params.result, kPackBytes);
    if (packed) return launch_gradient<T, kCount>(params, elements, stream);
    return launch_gradient<T, 1>(params, elements, stream);
  });
}

int bn_statistics_total_cuda(const double* weighted, int64_t layers, float* loss, void* stream) {
  return launch(total_kernel, 1, kThreads, 0, stream, weighted, layers, loss);
}

}  // namespace synq
