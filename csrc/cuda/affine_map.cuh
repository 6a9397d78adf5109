// y[i] = operation(x[i], gradient[i], factors of i's channel): the one elementwise kernel of the family.
//
// A thread's elements lie a grid's width apart; with a periodic grid it meets the same channels at every step and
// computes their factors once, whatever the layout. No result depends on the grid.
#pragma once

#include "../affine.h"
#include "draws.cuh"
#include "memory.cuh"
#include "one_grid.cuh"
#include "residual.cuh"

namespace synq {

// An Operation names the types Input, Output and Factors, tells with kReadsGradient whether it has a gradient, is made
// from its Arguments, and has
//   Factors factors(int64_t channel) const;
//   Output apply(float x, Input gradient, const Factors& factors) const;  // or see residual.cuh and draws.cuh
//   void prepare(int64_t thread, int64_t threads) const;  // done once by the grid's threads together
template <typename Operation>
struct MapArguments {
  const typename Operation::Input* x;
  const typename Operation::Input* gradient;
  typename Operation::Output* y;
  typename Operation::Arguments operation;
  int64_t elements;
  int64_t head;   // elements before the first pack
  int64_t packs;  // whole packs after the head; what is left is the tail
  int64_t channels;
  int64_t inner;
  bool periodic;  // the distance between a thread's elements is a multiple of channels * inner
};

struct GridArguments {
  const float* range_min;
  const float* range_max;
  int bits;
};

// What operations over a grid given by its range have in common.
struct GridOperation {
  using Arguments = GridArguments;
  using Factors = Affine;
  Arguments arguments;
  float low;
  float high;

  __device__ __forceinline__ explicit GridOperation(const Arguments& given)
      : arguments(given), low(lowest_code(given.bits)), high(highest_code(given.bits)) {}
  __device__ __forceinline__ Affine factors(int64_t channel) const {
    return make_affine(arguments.range_min[channel], arguments.range_max[channel], arguments.bits);
  }
  __device__ __forceinline__ void prepare(int64_t, int64_t) const {}
};

__device__ __forceinline__ int64_t channel_of(int64_t element, int64_t channels, int64_t inner) {
  return (element / inner) % channels;
}

template <int kCount, typename Operation>
__device__ __forceinline__ void load_factors(const Operation& operation, typename Operation::Factors (&factors)[kCount],
                                             int64_t element, int64_t channels, int64_t inner) {
  int64_t position = element % inner;
  int64_t channel = channel_of(element, channels, inner);
  factors[0] = operation.factors(channel);
#pragma unroll
  for (int i = 1; i < kCount; ++i) {
    factors[i] = factors[i - 1];
    if (++position == inner) {
      position = 0;
      channel = channel + 1 == channels ? 0 : channel + 1;
      factors[i] = operation.factors(channel);
    }
  }
}

template <typename Operation, int kCount>
__device__ __forceinline__ typename Operation::Output apply(const Operation& operation, float x,
                                                            typename Operation::Input gradient,
                                                            const typename Operation::Factors& factors,
                                                            ResidualPack<Operation, kCount>& beside,
                                                            const DrawnPack<Operation, kCount>& drawn, int i) {
  if constexpr (kHasResidual<Operation>) {
    return operation.apply(x, gradient, to_float(beside.values.values[i]), factors, beside.gradients.values[i]);
  } else if constexpr (kHasChance<Operation>) {
    return operation.apply(x, gradient, factors, drawn.keeps(i));
  } else {
    return operation.apply(x, gradient, factors);
  }
}

template <typename Operation, int kCount, bool kPerChannel>
__global__ void __launch_bounds__(kThreads, kMinimumBlocks) affine_map_kernel(const MapArguments<Operation> arguments) {
  using Input = typename Operation::Input;
  using Output = typename Operation::Output;
  constexpr int kFactors = kPerChannel ? kCount : 1;
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const int64_t threads = static_cast<int64_t>(gridDim.x) * blockDim.x;
  const Operation operation(arguments.operation);
  operation.prepare(thread, threads);

  typename Operation::Factors factors[kFactors];
  if (!kPerChannel) factors[0] = operation.factors(0);
  for (int64_t pack = thread; pack < arguments.packs; pack += threads) {
    const int64_t first = arguments.head + pack * kCount;
    if (kPerChannel && (pack == thread || !arguments.periodic)) {
      load_factors(operation, factors, first, arguments.channels, arguments.inner);
    }
    const Pack<Input, kCount> x = load_pack<kCount>(arguments.x + first);
    Pack<Input, kCount> gradient = x;
    if (Operation::kReadsGradient) gradient = load_pack<kCount>(arguments.gradient + first);
    ResidualPack<Operation, kCount> beside(operation, first);
    const DrawnPack<Operation, kCount> drawn(operation, first);
    Pack<Output, kCount> y;
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      y.values[i] =
          apply(operation, to_float(x.values[i]), gradient.values[i], factors[kPerChannel ? i : 0], beside, drawn, i);
    }
    store_pack<kCount>(arguments.y + first, y);
    beside.store(operation, first);
  }

  const int64_t packed = arguments.packs * kCount;
  if (thread < arguments.elements - packed) {
    const int64_t element = thread < arguments.head ? thread : thread + packed;
    const int64_t channel = kPerChannel ? channel_of(element, arguments.channels, arguments.inner) : 0;
    const Input gradient = Operation::kReadsGradient ? arguments.gradient[element] : arguments.x[element];
    ResidualPack<Operation, 1> beside(operation, element);
    const DrawnPack<Operation, 1> drawn(operation, element);
    arguments.y[element] =
        apply(operation, to_float(arguments.x[element]), gradient, operation.factors(channel), beside, drawn, 0);
    beside.store(operation, element);
  }
}

template <typename Operation, int kCount>
int launch_packs(MapArguments<Operation> arguments, void* stream) {
  arguments.packs = std::max<int64_t>(arguments.elements - arguments.head, 0) / kCount;
  if constexpr (!kHasOneGrid<Operation>) {
    if (arguments.channels != 1) {
      const auto kernel = affine_map_kernel<Operation, kCount, true>;
      const MapGrid grid = map_grid(arguments.packs, kThreads * kCount, arguments.channels * arguments.inner,
                                    resident_blocks(kernel, kThreads));
      arguments.periodic = grid.periodic;
      return launch(kernel, grid.blocks, kThreads, 0, stream, arguments);
    }
  }
  const int64_t needed = std::max<int64_t>(ceil_divide(arguments.packs, kThreads), 1);
  return launch_striding(affine_map_kernel<Operation, kCount, false>, needed, kThreads, 0, stream, arguments);
}

// Params is one of the family's parameter structs. Packs need x, the gradient and y to reach a pack boundary at the
// same element; otherwise elements go one by one.
template <typename Operation, typename Params>
int launch_affine_map(const Params& params, const typename Operation::Arguments& operation, void* stream) {
  using Input = typename Operation::Input;
  using Output = typename Operation::Output;
  constexpr int kCount = pack_size<Input>();
  MapArguments<Operation> arguments = {};
  arguments.x = static_cast<const Input*>(params.x);
  arguments.gradient = static_cast<const Input*>(params.gradient);
  arguments.y = static_cast<Output*>(params.y);
  arguments.operation = operation;
  arguments.elements = params.elements();
  arguments.channels = params.channels;
  arguments.inner = std::max<int64_t>(params.inner, 1);

  const int64_t head = std::min(elements_to_boundary(arguments.x), arguments.elements);
  const bool packed = is_aligned(arguments.y + head, sizeof(Output) * kCount) &&
                      (!Operation::kReadsGradient || is_aligned(arguments.gradient + head, kPackBytes)) &&
                      is_residual_aligned<Operation>(operation, head);
  if (!packed) return launch_packs<Operation, 1>(arguments, stream);
  arguments.head = head;
  return launch_packs<Operation, kCount>(arguments, stream);
}

}  // namespace synq
