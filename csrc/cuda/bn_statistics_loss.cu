// Mean and variance per channel of the layers of a network, and losses on them.
//
// Blocks reduce parts of a channel, or of several neighbouring ones, to a count, a mean and a sum of squared
// deviations; a warp puts the parts of a channel together in a fixed order, and one block adds what the channels lose.
// Everything is relative to the running mean, and each thread merges a few values at a time into running moments (Chan,
// Golub and LeVeque), so neither a large mean nor one far from the running mean costs accuracy.
#include "../bn_statistics_loss.h"

#include <vector>

#include "bn_layers.cuh"

namespace synq {
namespace {

// Of one channel, as its parts lie in memory.
struct Moments {
  float count;
  float mean;
  float deviation;
};

// Of neighbouring columns: as many values of each.
template <int kCount>
struct ColumnMoments {
  float count;
  float mean[kCount];
  float deviation[kCount];

  // Values of each column less its shift: of(row, column).
  template <int kRows, typename Values>
  __device__ __forceinline__ void include(const Values& of) {
    const float before = count;
    count += kRows;
    const float share = kRows / count;
    const float weight = before * share;
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      float centre = of(0, i);
#pragma unroll
      for (int row = 1; row < kRows; ++row) centre += of(row, i);
      centre *= 1.0f / kRows;
#pragma unroll
      for (int row = 0; row < kRows; ++row) {
        const float d = of(row, i) - centre;
        deviation[i] = fmaf(d, d, deviation[i]);
      }
      const float delta = centre - mean[i];
      mean[i] = fmaf(delta, share, mean[i]);
      deviation[i] = fmaf(delta * delta, weight, deviation[i]);
    }
  }

  // Moments of other values: of(column).
  template <typename Of>
  __device__ __forceinline__ void absorb(float added, const Of& of) {
    const float before = count;
    count += added;
    const float share = added > 0.0f ? added / count : 0.0f;
    const float weight = before * share;
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const Moments other = of(i);
      const float delta = other.mean - mean[i];
      mean[i] = fmaf(delta, share, mean[i]);
      deviation[i] = fmaf(delta * delta, weight, deviation[i] + other.deviation);
    }
  }

  __device__ __forceinline__ Moments column(int i) const { return {count, mean[i], deviation[i]}; }
};

template <int kCount>
__device__ __forceinline__ ColumnMoments<kCount> merge(ColumnMoments<kCount> a, const ColumnMoments<kCount>& b) {
  a.absorb(b.count, [&](int i) { return b.column(i); });
  return a;
}

template <int kCount>
__device__ __forceinline__ void merge_exchanged(ColumnMoments<kCount>& value, int mask) {
  value.absorb(exchanged(value.count, mask), [&](int i) {
    return Moments{0.0f, exchanged(value.mean[i], mask), exchanged(value.deviation[i], mask)};
  });
}

struct StatisticsEntry {
  const void* x;
  const float* running_mean;
  Moments* parts;
  Layout layout;
  int64_t splits;
  int32_t lanes;
};

// Item (channel, split): packs of kCount elements within a channel's pieces, two at a time.
template <typename T, int kCount>
__global__ void __launch_bounds__(kThreads, kMinimumBlocks)
    channel_moments_kernel(const __grid_constant__ Table<StatisticsEntry> table, int64_t items) {
  constexpr int kAtOnce = 2;
  TablePlace place;
  for (int64_t given = blockIdx.x; given < items; given += gridDim.x) {
    const int64_t item = place.find(table, given);
    const StatisticsEntry& entry = table.entries[place.entry];
    const Layout layout = entry.layout;
    const int64_t packs = layout.outer * layout.inner / kCount;
    const int64_t channel = divide(item, entry.splits);
    const int64_t step = entry.splits * kThreads;
    const float shift = entry.running_mean[channel];
    const T* x = static_cast<const T*>(entry.x) + channel * layout.inner;
    const auto load = [&](int64_t pack) {
      const int64_t element = pack * kCount;
      const int64_t outer = layout.outer == 1 ? 0 : divide(element, layout.inner);
      return load_pack<kCount>(x + element + outer * (layout.channels - 1) * layout.inner);
    };
    ColumnMoments<1> found = {};
    int64_t pack = (item - channel * entry.splits) * kThreads + threadIdx.x;
    for (; pack + step < packs; pack += kAtOnce * step) {
      const Pack<T, kCount> values[kAtOnce] = {load(pack), load(pack + step)};
      found.template include<kAtOnce * kCount>(
          [&](int i, int) { return to_float(values[i / kCount].values[i % kCount]) - shift; });
    }
    if (pack < packs) {
      const Pack<T, kCount> values = load(pack);
      found.template include<kCount>([&](int i, int) { return to_float(values.values[i]) - shift; });
    }
    found = merge_rows<1>(found, 1);
    if (threadIdx.x == 0) entry.parts[item] = found.column(0);
  }
}

// Memory as an (outer, columns) matrix, columns = channels * inner. Item (split, group of columns): a thread keeps to a
// pack of columns and takes a few rows at a time.
template <typename T, int kCount>
__global__ void __launch_bounds__(kThreads, kMinimumBlocks)
    column_moments_kernel(const __grid_constant__ Table<StatisticsEntry> table, int64_t items) {
  constexpr int kAtOnce = 4;
  TablePlace place;
  for (int64_t given = blockIdx.x; given < items; given += gridDim.x) {
    const int64_t item = place.find(table, given);
    const StatisticsEntry& entry = table.entries[place.entry];
    const Layout layout = entry.layout;
    const int lanes = entry.lanes;
    const int rows = kThreads / lanes;
    const int64_t columns = layout.channels * layout.inner;
    const int64_t groups = divide(columns + lanes * kCount - 1, lanes * kCount);
    const int64_t split = divide(item, groups);
    const int64_t column = ((item - split * groups) * lanes + static_cast<int>(threadIdx.x) % lanes) * kCount;
    ColumnMoments<kCount> found = {};
    if (column < columns) {
      float shift[kCount];
#pragma unroll
      for (int i = 0; i < kCount; ++i) shift[i] = entry.running_mean[divide(column + i, layout.inner)];
      RowReader<T, kCount> reader(static_cast<const T*>(entry.x) + column, columns, layout.outer,
                                  split * rows + static_cast<int>(threadIdx.x) / lanes, entry.splits * rows);
      reader.template read<kAtOnce>([&](const auto& packs) {
        found.template include<sizeof(packs) / sizeof(packs[0])>(
            [&](int row, int i) { return to_float(packs[row].values[i]) - shift[i]; });
      });
    }
    found = merge_rows<kMostLanes<T, kCount>>(found, lanes);
    if (static_cast<int>(threadIdx.x) < lanes && column < columns) {
#pragma unroll
      for (int i = 0; i < kCount; ++i) entry.parts[(column + i) * entry.splits + split] = found.column(i);
    }
  }
}

struct Losses {
  double mean;
  double var;
};

__device__ __forceinline__ Losses merge(const Losses& a, const Losses& b) { return {a.mean + b.mean, a.var + b.var}; }

struct Sum {
  double value;
};

__device__ __forceinline__ Sum merge(const Sum& a, const Sum& b) { return {a.value + b.value}; }

struct FinishEntry {
  const Moments* parts;
  const float* running_mean;
  const float* running_var;
  double* statistics;
  int64_t count;  // parts of a channel
  double elements;
  double factor;  // of the channel's squares
};

// A warp per channel: its moments from consecutive parts, in float64. A block writes what its channels lose.
__global__ void __launch_bounds__(kThreads) finish_kernel(const __grid_constant__ Table<FinishEntry> table,
                                                          int64_t channels, int64_t row_stride, Losses* losses) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t item = static_cast<int64_t>(blockIdx.x) * kBlockWarps + static_cast<int>(threadIdx.x) / kWarp;
  Losses lost = {};
  if (item < channels) {
    TablePlace place;
    const int64_t channel = place.find(table, item);
    const FinishEntry& entry = table.entries[place.entry];
    const Moments* parts = entry.parts + channel * entry.count;
    Sum mean = {};
#pragma unroll 8
    for (int64_t i = lane; i < entry.count; i += kWarp) {
      mean.value += static_cast<double>(parts[i].count) * static_cast<double>(parts[i].mean);
    }
    mean = merge_lanes(mean, 1);
    mean.value /= entry.elements;
    Sum deviation = {};
#pragma unroll 8
    for (int64_t i = lane; i < entry.count; i += kWarp) {
      const double delta = static_cast<double>(parts[i].mean) - mean.value;
      deviation.value += static_cast<double>(parts[i].deviation) + static_cast<double>(parts[i].count) * delta * delta;
    }
    deviation = merge_lanes(deviation, 1);
    if (lane == 0) {
      const double var_error = deviation.value / entry.elements - static_cast<double>(entry.running_var[channel]);
      entry.statistics[channel] = mean.value + static_cast<double>(entry.running_mean[channel]);
      entry.statistics[row_stride + channel] = mean.value;
      entry.statistics[2 * row_stride + channel] = var_error;
      lost = {entry.factor * (mean.value * mean.value), entry.factor * (var_error * var_error)};
    }
  }
  lost = merge_rows<1>(lost, 1);
  if (threadIdx.x == 0) losses[blockIdx.x] = lost;
}

__global__ void __launch_bounds__(kThreads)
    total_kernel(const Losses* losses, int64_t count, float* mean_loss, float* var_loss, float* loss) {
  Losses total = {};
#pragma unroll 4
  for (int64_t i = threadIdx.x; i < count; i += kThreads) total = merge(total, losses[i]);
  total = merge_rows<1>(total, 1);
  if (threadIdx.x != 0) return;
  if (mean_loss != nullptr) {
    *mean_loss = static_cast<float>(total.mean);
    *var_loss = static_cast<float>(total.var);
  }
  if (loss != nullptr) *loss = static_cast<float>(total.mean + total.var);
}

Plan plan_of(const BnLayer& layer) {
  const bool aligned = is_aligned(layer.x, kPackBytes);
  return layer.dtype == DType::kFloat32 ? make_plan<float>(layer, kSumPack, aligned)
                                        : make_plan<__half>(layer, kSumPack, aligned);
}

int64_t blocks_of(int64_t channels) { return ceil_divide(channels, kBlockWarps); }

// Blocks that put parts together: each has channels of one table.
int64_t count_losses(const BnStatisticsParams& params) {
  int64_t blocks = 0;
  int64_t channels = 0;
  for (int64_t i = 0; i < params.count; ++i) {
    channels += params.layers[i].channels;
    if ((i + 1) % kLayers != 0 && i + 1 < params.count) continue;
    blocks += blocks_of(channels);
    channels = 0;
  }
  return blocks;
}

// Enqueues what a network's layers need. In the workspace: what the channels of each block lose, then the parts.
class Launches {
 public:
  Launches(const BnStatisticsParams& params, void* stream)
      : params_(params), stream_(stream), losses_(reinterpret_cast<Losses*>(params.workspace)) {
    for (int64_t i = 0; i < params.count; ++i) plans_.push_back(plan_of(params.layers[i]));
    auto* parts = reinterpret_cast<Moments*>(losses_ + count_losses(params));
    for (int64_t i = 0; i < params.count; ++i) {
      parts_.push_back(parts);
      parts += params.layers[i].channels * plans_[i].parts;
    }
  }

  // Layers of one type that are read alike share a launch.
  int moments() const {
    for (int64_t i = 0; i < params_.count; ++i) {
      int64_t first = 0;
      while (!alike(first, i)) ++first;
      if (first != i) continue;
      const int error = with_element_type(params_.layers[i].dtype,
                                          [&](auto tag) { return moments_like<typename decltype(tag)::Type>(i); });
      if (error != cudaSuccess) return error;
    }
    return cudaSuccess;
  }

  int finish() const {
    Losses* losses = losses_;
    const auto fill = [&](int64_t i, Table<FinishEntry>& table) {
      const BnLayer& layer = params_.layers[i];
      table.append(layer.channels,
                   {parts_[i], layer.running_mean, layer.running_var, layer.statistics, plans_[i].parts,
                    static_cast<double>(layer.length()), layer.weight / static_cast<double>(layer.channels)});
    };
    const auto run = [&](const Table<FinishEntry>& table) {
      const int64_t blocks = blocks_of(table.items());
      const int error =
          launch(finish_kernel, blocks, kThreads, 0, stream_, table, table.items(), params_.row_stride, losses);
      losses += blocks;
      return error;
    };
    const int error = launch_tables<FinishEntry>(params_.count, fill, run);
    if (error != cudaSuccess) return error;
    return launch(total_kernel, 1, kThreads, 0, stream_, static_cast<const Losses*>(losses_), count_losses(params_),
                  params_.mean_loss, params_.var_loss, params_.loss);
  }

 private:
  bool alike(int64_t i, int64_t other) const {
    return params_.layers[i].dtype == params_.layers[other].dtype && plans_[i].reads_like(plans_[other]);
  }

  template <typename T>
  int moments_like(int64_t first) const {
    constexpr int kCount = pack_size<T>();
    const auto fill = [&](int64_t i, Table<StatisticsEntry>& table) {
      if (!alike(i, first)) return;
      const BnLayer& layer = params_.layers[i];
      table.append(plans_[i].items, {layer.x, layer.running_mean, parts_[i], layer, plans_[i].splits, plans_[i].lanes});
    };
    return launch_tables<StatisticsEntry>(params_.count, fill, [&](const Table<StatisticsEntry>& table) {
      const auto run = [&](auto kernel) {
        return launch_striding(kernel, table.items(), kThreads, 0, stream_, table, table.items());
      };
      const Plan& like = plans_[first];
      if (like.by_column)
        return like.packed ? run(column_moments_kernel<T, kSumPack>) : run(column_moments_kernel<T, 1>);
      return like.packed ? run(channel_moments_kernel<T, kCount>) : run(channel_moments_kernel<T, 1>);
    });
  }

  const BnStatisticsParams& params_;
  void* stream_;
  Losses* losses_;
  std::vector<Plan> plans_;
  std::vector<Moments*> parts_;
};

}  // namespace

int64_t bn_statistics_workspace_cuda(const BnStatisticsParams& params) {
  int64_t parts = 0;
  for (int64_t i = 0; i < params.count; ++i) parts += params.layers[i].channels * plan_of(params.layers[i]).parts;
  constexpr int64_t kDouble = sizeof(double);
  return count_losses(params) * static_cast<int64_t>(sizeof(Losses)) / kDouble +
         ceil_divide(parts * static_cast<int64_t>(sizeof(Moments)), kDouble);
}

int bn_statistics_cuda(const BnStatisticsParams& params, void* stream) {
  const Launches launches(params, stream);
  const int error = launches.moments();
  return error != cudaSuccess ? error : launches.finish();
}

}  // namespace synq
