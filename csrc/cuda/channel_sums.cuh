// The gradient of x, and two sums per channel, in one read of x and the incoming gradient.
//
// Each block sums a part of a channel, or of a group of neighbouring columns, and a second kernel adds the parts.
// Threads sum in float32, blocks in double; every part has its place, so every run gives the same bits.
#pragma once

#include "../affine.h"
#include "channel_parts.cuh"
#include "draws.cuh"
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

// Block (split, group of columns) handles the rows of one split; partials are (columns, splits).
template <typename Operation>
__global__ void __launch_bounds__(kThreads, kMinimumBlocks)
    column_sums_kernel(const SumArguments<Operation> arguments) {
  constexpr int kRows = kThreads / kColumns;
  const Operation operation(arguments.operation);
  const Layout layout = arguments.layout;
  const int64_t columns = layout.channels * layout.inner;
  const int64_t groups = (columns + kColumns - 1) / kColumns;
  for (int64_t item = blockIdx.x; item < groups * arguments.splits; item += gridDim.x) {
    const int64_t split = item / groups;
    const int64_t column = (item - split * groups) * kColumns + threadIdx.x % kColumns;
    ThreadSums sums;
    if (column < columns) {
      const typename Operation::Factors factors = operation.factors(column / layout.inner);
      const int64_t first = split * kRows + threadIdx.x / kColumns;
      for (int64_t row = first; row < layout.outer; row += arguments.splits * kRows) {
        sums.include(arguments, operation, factors, row * columns + column);
      }
    }
    const Sums total = add_block<kColumns>({sums.first, sums.second});
    if (threadIdx.x < kColumns && column < columns) arguments.partials[column * arguments.splits + split] = total;
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

// Partials per channel.
template <typename T>
int64_t partial_sums(const Layout& layout) {
  return is_narrow(layout) ? layout.inner * column_splits(layout) : channel_splits(layout, pack_size<T>());
}

// Doubles that the partials of a launch take.
template <typename Params>
int64_t channel_sums_workspace(const Params& params) {
  const Layout layout = layout_of(params);
  const bool wide = params.dtype == DType::kFloat32;
  return 2 * layout.channels * (wide ? partial_sums<float>(layout) : partial_sums<__half>(layout));
}

template <typename Operation, typename Params>
int launch_channel_sums(const Params& params, const typename Operation::Arguments& operation, void* stream) {
  using T = typename Operation::Input;
  constexpr int kCount = pack_size<T>();
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
  if (is_narrow(layout)) {
    arguments.splits = column_splits(layout);
    const int64_t items = ceil_divide(layout.columns(), kColumns) * arguments.splits;
    error = launch_striding(column_sums_kernel<Operation>, items, kThreads, 0, stream, arguments);
  } else {
    arguments.splits = channel_splits(layout, kCount);
    const int64_t items = layout.channels * arguments.splits;
    // A single channel may start and end anywhere; rows that follow each other must all start at a boundary.
    const bool single = layout.channels == 1;
    const int64_t head = single ? std::min(elements_to_boundary(arguments.x), layout.inner) : 0;
    const bool packed = (single || layout.inner % kCount == 0) && is_aligned(arguments.x + head, kPackBytes) &&
                        is_aligned(arguments.gradient + head, kPackBytes) &&
                        is_aligned(arguments.y + head, kPackBytes) && is_residual_aligned<Operation>(operation, head);
    if (packed) {
      arguments.head = head;
      error = launch_striding(channel_sums_kernel<Operation, kCount>, items, kThreads, 0, stream, arguments);
    } else {
      error = launch_striding(channel_sums_kernel<Operation, 1>, items, kThreads, 0, stream, arguments);
    }
  }
  if (error != cudaSuccess) return error;
  const int64_t count = partial_sums<T>(layout);
  return launch_striding(finish_sums_kernel<Operation>, layout.channels, threads_for(count), 0, stream, operation,
                         static_cast<const Sums*>(arguments.partials), layout.channels, count);
}

}  // namespace synq
