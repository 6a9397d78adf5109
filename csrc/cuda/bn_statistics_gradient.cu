// The gradient of the losses on channel statistics: one product and one sum per element.
#include "../bn_statistics_loss.h"
#include "bn_layers.cuh"

namespace synq {
namespace {

struct Coefficients {
  float near;
  float slope;
  float offset;
};

struct GradientScales {
  int64_t row_stride;
  const float* mean;
  const float* var;
};

struct GradientEntry {
  const void* x;
  void* result;
  const double* statistics;
  Layout layout;
  int64_t splits;
  int32_t lanes;
  float factor;  // of both gradients
};

// Of the channels of one layer.
class Slopes {
 public:
  __device__ __forceinline__ Slopes(const GradientEntry& entry, const GradientScales& scales)
      : statistics_(entry.statistics),
        row_stride_(scales.row_stride),
        mean_factor_(scales.mean == nullptr ? 0.0f : *scales.mean * entry.factor),
        var_factor_(scales.var == nullptr ? 0.0f : *scales.var * 2.0f * entry.factor) {}

  __device__ __forceinline__ Coefficients of(int64_t channel) const {
    const double mean = statistics_[channel];
    const float near = static_cast<float>(mean);
    const float slope = var_factor_ * static_cast<float>(statistics_[2 * row_stride_ + channel]);
    const float offset = mean_factor_ * static_cast<float>(statistics_[row_stride_ + channel]);
    // What is left of the mean beyond its float32 value.
    return {near, slope, offset - slope * static_cast<float>(mean - static_cast<double>(near))};
  }

 private:
  const double* statistics_;
  int64_t row_stride_;
  float mean_factor_;
  float var_factor_;
};

template <typename T>
__device__ __forceinline__ T gradient_at(T x, const Coefficients& coefficients) {
  const float d = to_float(x) - coefficients.near;
  return from_float<T>(d * coefficients.slope + coefficients.offset);
}

// Memory as an (outer, columns) matrix: a thread keeps to a pack of columns, whose coefficients it finds once.
template <typename T, int kCount>
__global__ void __launch_bounds__(kThreads, kMinimumBlocks)
    column_gradient_kernel(const __grid_constant__ Table<GradientEntry> table, int64_t items,
                           const GradientScales scales) {
  constexpr int kAtOnce = 2;
  TablePlace place;
  for (int64_t given = blockIdx.x; given < items; given += gridDim.x) {
    const int64_t item = place.find(table, given);
    const GradientEntry& entry = table.entries[place.entry];
    const Layout layout = entry.layout;
    const int lanes = entry.lanes;
    const int rows = kThreads / lanes;
    const int64_t columns = layout.channels * layout.inner;
    const int64_t groups = divide(columns + lanes * kCount - 1, lanes * kCount);
    const int64_t split = divide(item, groups);
    const int64_t column = ((item - split * groups) * lanes + static_cast<int>(threadIdx.x) % lanes) * kCount;
    if (column >= columns) continue;
    const Slopes slopes(entry, scales);
    Coefficients coefficients[kCount];
#pragma unroll
    for (int i = 0; i < kCount; ++i) coefficients[i] = slopes.of(divide(column + i, layout.inner));
    const T* x = static_cast<const T*>(entry.x) + column;
    T* result = static_cast<T*>(entry.result) + column;
    const int64_t step = entry.splits * rows;
    int64_t row = split * rows + static_cast<int>(threadIdx.x) / lanes;
    const auto finish = [&](int64_t at, Pack<T, kCount> values) {
#pragma unroll
      for (int i = 0; i < kCount; ++i) values.values[i] = gradient_at(values.values[i], coefficients[i]);
      store_pack<kCount>(result + at * columns, values);
    };
    for (; row + (kAtOnce - 1) * step < layout.outer; row += kAtOnce * step) {
      Pack<T, kCount> values[kAtOnce];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) values[i] = load_pack<kCount>(x + (row + i * step) * columns);
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) finish(row + i * step, values[i]);
    }
    for (; row < layout.outer; row += step) finish(row, load_pack<kCount>(x + row * columns));
  }
}

// Memory from its beginning to its end, whatever lies where a pack begins.
template <typename T, int kCount>
__global__ void __launch_bounds__(kThreads, kMinimumBlocks)
    gradient_kernel(const GradientEntry entry, const GradientScales scales, int64_t elements, bool periodic) {
  const T* x = static_cast<const T*>(entry.x);
  T* result = static_cast<T*>(entry.result);
  const Layout layout = entry.layout;
  const Slopes slopes(entry, scales);
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x * kCount;
  Coefficients coefficients[kCount];
  for (int64_t first = thread * kCount; first < elements; first += step) {
    if (first == thread * kCount || !periodic) {
      const int64_t piece = divide(first, layout.inner);
      int64_t position = first - piece * layout.inner;
      int64_t channel = piece - divide(piece, layout.channels) * layout.channels;
      coefficients[0] = slopes.of(channel);
#pragma unroll
      for (int i = 1; i < kCount; ++i) {
        coefficients[i] = coefficients[i - 1];
        if (++position == layout.inner) {
          position = 0;
          channel = channel + 1 == layout.channels ? 0 : channel + 1;
          coefficients[i] = slopes.of(channel);
        }
      }
    }
    Pack<T, kCount> values = load_pack<kCount>(x + first);
#pragma unroll
    for (int i = 0; i < kCount; ++i) values.values[i] = gradient_at(values.values[i], coefficients[i]);
    store_pack<kCount>(result + first, values);
  }
}

bool begins_packs(const BnLayerGradient& layer) {
  return is_aligned(layer.x, kPackBytes) && is_aligned(layer.result, kPackBytes);
}

GradientEntry entry_of(const BnLayerGradient& layer, const Plan& plan) {
  const float factor =
      static_cast<float>(layer.weight) * 2.0f / static_cast<float>(layer.channels) / static_cast<float>(layer.length());
  return {layer.x, layer.result, layer.statistics, layer, plan.splits, plan.lanes, factor};
}

template <typename T, int kCount>
int launch_one(const BnLayerGradient& layer, const GradientScales& scales, void* stream) {
  const auto kernel = gradient_kernel<T, kCount>;
  const int64_t elements = layer.elements();
  const MapGrid grid =
      map_grid(elements / kCount, kThreads * kCount, layer.columns(), resident_blocks(kernel, kThreads));
  return launch(kernel, grid.blocks, kThreads, 0, stream, entry_of(layer, Plan{}), scales, elements, grid.periodic);
}

// The layers of one type: together where columns are read in packs, else one by one.
template <typename T>
int launch_gradients(const BnGradientParams& params, DType dtype, void* stream) {
  constexpr int kCount = pack_size<T>();
  const GradientScales scales{params.row_stride, params.mean_scale, params.var_scale};
  int error = cudaSuccess;
  const auto fill = [&](int64_t i, Table<GradientEntry>& table) {
    const BnLayerGradient& layer = params.layers[i];
    if (layer.dtype != dtype || error != cudaSuccess) return;
    const Plan plan = make_plan<T>(layer, kCount, begins_packs(layer));
    if (plan.by_column && plan.packed) {
      table.append(plan.items, entry_of(layer, plan));
    } else if (begins_packs(layer) && layer.elements() % kCount == 0) {
      error = launch_one<T, kCount>(layer, scales, stream);
    } else {
      error = launch_one<T, 1>(layer, scales, stream);
    }
  };
  const int later = launch_tables<GradientEntry>(params.count, fill, [&](const Table<GradientEntry>& table) {
    return launch_striding(column_gradient_kernel<T, kCount>, table.items(), kThreads, 0, stream, table, table.items(),
                           scales);
  });
  return error != cudaSuccess ? error : later;
}

}  // namespace

int bn_statistics_backward_cuda(const BnGradientParams& params, void* stream) {
  for (const DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16}) {
    const int error = with_element_type(
        dtype, [&](auto tag) { return launch_gradients<typename decltype(tag)::Type>(params, dtype, stream); });
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

}  // namespace synq
