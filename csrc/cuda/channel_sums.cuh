// The gradient of x, and two sums per channel, in one read of x and the incoming gradient.
//
// Each block sums a part of a channel, or of a group of neighbouring columns, and a second kernel adds the parts.
// Threads sum in float32, blocks in double; every part has its place, so every run gives the same bits.
#pragma once

#include "../affine.h"
#include "channel_parts.cuh"
#include "column_block.cuh"
#include "draws.cuh"
#include "one_grid.cuh"
#include "residual.cuh"

namespace synq {

struct Sums {
  double first;
  double second;
};

// An Operation names the types Input and Factors, is made from its Arguments, and has
//   Factors factors(int64_t channel) const;
//   float apply(float x, float gradient, const Factors& factors, float& first, float& second) const;
//   void finish(int64_t channel, Sums sums) const;
// apply returns the gradient of x and gives the element's two terms; or see residual.cuh and draws.cuh.
template <typename Operation>
struct SumArguments {
  const typename Operation::Input* x;
  const typename Operation::Input* gradient;
  typename Operation::Input* y;
  typename Operation::Arguments operation;
  Sums* partials;
  Layout layout;
  int64_t splits;
  int64_t head;  // elements of the only channel before the first pack
};

// Adds the sums of the threads whose indices agree modulo kStride, in the order of a tree. Every thread receives its
// result. The number of threads is a power of two.
template <int kStride>
__device__ __forceinline__ Sums add_block(Sums sums) {
  __shared__ Sums shared[kThreads];
  __syncthreads();
  shared[threadIdx.x] = sums;
  for (int width = blockDim.x / 2; width >= kStride; width /= 2) {
    __syncthreads();
    if (static_cast<int>(threadIdx.x) < width) {
      shared[threadIdx.x].first += shared[threadIdx.x + width].first;
      shared[threadIdx.x].second += shared[threadIdx.x + width].second;
    }
  }
  __syncthreads();
  return shared[threadIdx.x % kStride];
}

struct ThreadSums {
  float first = 0.0f;
  float second = 0.0f;

  // Element i of a pack.
  template <typename Operation, int kCount>
  __device__ __forceinline__ typename Operation::Input include(const Operation& operation, float x, float gradient,
                                                               const typename Operation::Factors& factors,
                                                               ResidualPack<Operation, kCount>& beside,
                                                               const DrawnPack<Operation, kCount>& drawn, int i) {
    float one;
    float other;
    float result;
    if constexpr (kHasResidual<Operation>) {
      const float residual = to_float(beside.values.values[i]);
      result = operation.apply(x, gradient, residual, factors, one, other, beside.gradients.values[i]);
    } else if constexpr (kHasChance<Operation>) {
      result = operation.apply(x, gradient, factors, one, other, drawn.keeps(i));
    } else {
      result = operation.apply(x, gradient, factors, one, other);
    }
    first = add(first, one);
    second = add(second, other);
    return from_float<typename Operation::Input>(result);
  }

  // The element at a place in memory.
  template <typename Operation>
  __device__ __forceinline__ void include(const SumArguments<Operation>& arguments, const Operation& operation,
                                          const typename Operation::Factors& factors, int64_t place) {
    ResidualPack<Operation, 1> beside(operation, place);
    const DrawnPack<Operation, 1> drawn(operation, place);
    arguments.y[place] = include(operation, to_float(arguments.x[place]), to_float(arguments.gradient[place]), factors,
                                 beside, drawn, 0);
    beside.store(operation, place);
  }
};

// Block (channel, split) handles one part of one channel.
template <typename Operation, int kCount>
__global__ void __launch_bounds__(kThreads, kMinimumBlocks)
    channel_sums_kernel(const SumArguments<Operation> arguments) {
  using T = typename Operation::Input;
  const Operation operation(arguments.operation);
  const Layout layout = arguments.layout;
  const int64_t length = layout.outer * layout.inner;
  const int64_t packs = (length - arguments.head) / kCount;
  const int64_t packed = packs * kCount;
  const int64_t step = arguments.splits * kThreads;
  for (int64_t item = blockIdx.x; item < layout.channels * arguments.splits; item += gridDim.x) {
    const int64_t channel = item / arguments.splits;
    const int64_t start = (item - channel * arguments.splits) * kThreads + threadIdx.x;
    const typename Operation::Factors factors = operation.factors(channel);
    ThreadSums sums;
    for (int64_t index = start; index < packs; index += step) {
      const int64_t place = layout.offset(channel, arguments.head + index * kCount);
      const Pack<T, kCount> x = load_pack<kCount>(arguments.x + place);
      const Pack<T, kCount> gradient = load_pack<kCount>(arguments.gradient + place);
      ResidualPack<Operation, kCount> beside(operation, place);
      const DrawnPack<Operation, kCount> drawn(operation, place);
      Pack<T, kCount> y;
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        y.values[i] =
            sums.include(operation, to_float(x.values[i]), to_float(gradient.values[i]), factors, beside, drawn, i);
      }
      store_pack<kCount>(arguments.y + place, y);
      beside.store(operation, place);
    }
    if (start < length - packed) {
      const int64_t place = layout.offset(channel, start < arguments.head ? start : start + packed);
      sums.include(arguments, operation, factors, place);
    }
    const Sums total = add_block<1>({sums.first, sums.second});
    if (threadIdx.x == 0) arguments.partials[item] = total;
  }
}

__device__ __forceinline__ Sums merge(const Sums& a, const Sums& b) { return {a.first + b.first, a.second + b.second}; }

// Block (split, group of columns) handles the rows of one split; partials are (columns, splits). A thread keeps to a
// pack of columns.
template <typename Operation, int kCount>
__global__ void __launch_bounds__(kThreads, kMinimumBlocks)
    column_sums_kernel(const SumArguments<Operation> arguments, int lanes, int64_t items) {
  using T = typename Operation::Input;
  __shared__ Sums shared[kBlockWarps][kMostLanes<T, kCount> * kCount];
  const Operation operation(arguments.operation);
  const Layout layout = arguments.layout;
  const int thread = static_cast<int>(threadIdx.x);
  const int rows = kThreads / lanes;
  const int width = lanes * kCount;
  const int64_t columns = layout.channels * layout.inner;
  const int64_t groups = (columns + width - 1) / width;
  for (int64_t item = blockIdx.x; item < items; item += gridDim.x) {
    const int64_t split = item / groups;
    const int64_t begin = (item - split * groups) * width;
    const int64_t column = begin + thread % lanes * kCount;
    ThreadSums sums[kCount];
    if (column < columns) {
      typename Operation::Factors factors[kCount];
#pragma unroll
      for (int i = 0; i < kCount; ++i) factors[i] = operation.factors((column + i) / layout.inner);
      RowReader<T, kCount> reader(arguments.x + column, columns, layout.outer, split * rows + thread / lanes,
                                  arguments.splits * rows);
      for (; reader.left > 0; --reader.left, reader.pointer += reader.jump) {
        const int64_t place = reader.pointer - arguments.x;
        const DrawnPack<Operation, kCount> drawn(operation, place);
        const Pack<T, kCount> x = load_pack<kCount>(reader.pointer);
        const Pack<T, kCount> gradient = load_pack<kCount>(arguments.gradient + place);
        ResidualPack<Operation, kCount> beside(operation, place);
        Pack<T, kCount> y;
#pragma unroll
        for (int i = 0; i < kCount; ++i) {
          y.values[i] = sums[i].include(operation, to_float(x.values[i]), to_float(gradient.values[i]), factors[i],
                                        beside, drawn, i);
        }
        store_pack<kCount>(arguments.y + place, y);
        beside.store(operation, place);
      }
    }
    __syncthreads();  // what was here before has been read
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const Sums total = merge_lanes(Sums{sums[i].first, sums[i].second}, lanes);
      if (thread % kWarp < lanes) shared[thread / kWarp][thread % kWarp * kCount + i] = total;
    }
    __syncthreads();
    if (thread < width && begin + thread < columns) {
      Sums total = shared[0][thread];
      for (int warp = 1; warp < kBlockWarps; ++warp) total = merge(total, shared[warp][thread]);
      arguments.partials[(begin + thread) * arguments.splits + split] = total;
    }
  }
}

// Each channel's sums from its `count` consecutive partials.
template <typename Operation>
__global__ void __launch_bounds__(kThreads)
    finish_sums_kernel(typename Operation::Arguments given, const Sums* partials, int64_t channels, int64_t count) {
  const Operation operation(given);
  for (int64_t channel = blockIdx.x; channel < channels; channel += gridDim.x) {
    Sums sums = {0.0, 0.0};
    for (int64_t i = threadIdx.x; i < count; i += blockDim.x) {
      sums.first += partials[channel * count + i].first;
      sums.second += partials[channel * count + i].second;
    }
    sums = add_block<1>(sums);
    if (threadIdx.x == 0) operation.finish(channel, sums);
  }
}

// How the rows of a matrix are divided, by its sizes alone: threads side by side on packs of so many columns, and parts
// of a few rows a thread.
struct ColumnPlan {
  int count;
  int lanes;
  int64_t groups;
  int64_t splits;
};

template <typename T>
ColumnPlan plan_columns(const Layout& layout, int count) {
  ColumnPlan plan{};
  plan.count = layout.columns() % count == 0 ? count : 1;
  const int64_t packs = layout.columns() / plan.count;
  plan.lanes = lanes_for(packs, static_cast<int64_t>(sizeof(T)) * plan.count);
  plan.groups = ceil_divide(packs, plan.lanes);
  const int64_t useful = ceil_divide(layout.outer, 8 * kThreads / plan.lanes);
  plan.splits = std::min(useful, ceil_divide(kReductionParts, plan.groups));
  return plan;
}

// Partials per channel.
template <typename T>
int64_t partial_sums(const Layout& layout) {
  return is_narrow(layout) ? layout.inner * plan_columns<T>(layout, kSumPack).splits
                           : channel_splits(layout, pack_size<T>());
}

// Doubles that the partials of a launch take.
template <typename Params>
int64_t channel_sums_workspace(const Params& params) {
  const Layout layout = layout_of(params);
  const bool wide = params.dtype == DType::kFloat32;
  return 2 * layout.channels * (wide ? partial_sums<float>(layout) : partial_sums<__half>(layout));
}

template <typename Operation>
int launch_columns(SumArguments<Operation> arguments, void* stream) {
  using T = typename Operation::Input;
  const Layout& layout = arguments.layout;
  const ColumnPlan plan = plan_columns<T>(layout, kSumPack);
  arguments.splits = plan.splits;
  const size_t bytes = sizeof(T) * plan.count;
  const bool packed = plan.count > 1 && is_aligned(arguments.x, bytes) && is_aligned(arguments.gradient, bytes) &&
                      is_aligned(arguments.y, bytes) && is_residual_aligned<Operation>(arguments.operation, 0);
  const auto run = [&](auto kernel, int count) {
    const int64_t packs = layout.columns() / count;
    const int lanes = lanes_for(packs, static_cast<int64_t>(sizeof(T)) * count);
    const int64_t items = ceil_divide(packs, lanes) * plan.splits;
    return launch_striding(kernel, items, kThreads, 0, stream, arguments, lanes, items);
  };
  return packed ? run(column_sums_kernel<Operation, kSumPack>, kSumPack) : run(column_sums_kernel<Operation, 1>, 1);
}

template <typename Operation>
int launch_rows(SumArguments<Operation> arguments, void* stream) {
  constexpr int kCount = pack_size<typename Operation::Input>();
  const Layout& layout = arguments.layout;
  arguments.splits = channel_splits(layout, kCount);
  const int64_t items = layout.channels * arguments.splits;
  // A single channel may start and end anywhere; rows that follow each other must all start at a boundary.
  const bool single = layout.channels == 1;
  const int64_t head = single ? std::min(elements_to_boundary(arguments.x), layout.inner) : 0;
  const bool packed = (single || layout.inner % kCount == 0) && is_aligned(arguments.x + head, kPackBytes) &&
                      is_aligned(arguments.gradient + head, kPackBytes) && is_aligned(arguments.y + head, kPackBytes) &&
                      is_residual_aligned<Operation>(arguments.operation, head);
  if (!packed) return launch_striding(channel_sums_kernel<Operation, 1>, items, kThreads, 0, stream, arguments);
  arguments.head = head;
  return launch_striding(channel_sums_kernel<Operation, kCount>, items, kThreads, 0, stream, arguments);
}

template <typename Operation, typename Params>
int launch_channel_sums(const Params& params, const typename Operation::Arguments& operation, void* stream) {
  using T = typename Operation::Input;
  const Layout layout = layout_of(params);
  SumArguments<Operation> arguments = {static_cast<const T*>(params.x),
                                       static_cast<const T*>(params.gradient),
                                       static_cast<T*>(params.y),
                                       operation,
                                       reinterpret_cast<Sums*>(params.workspace),
                                       layout,
                                       1,
                                       0};
  int error;
  if constexpr (kHasOneGrid<Operation>) {
    error = launch_rows(arguments, stream);
  } else {
    error = is_narrow(layout) ? launch_columns(arguments, stream) : launch_rows(arguments, stream);
  }
  if (error != cudaSuccess) return error;
  const int64_t count = partial_sums<T>(layout);
  return launch_striding(finish_sums_kernel<Operation>, layout.channels, threads_for(count), 0, stream, operation,
                         static_cast<const Sums*>(arguments.partials), layout.channels, count);
}

}  // namespace synq
