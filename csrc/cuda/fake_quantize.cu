// Fake quantization with a given range, and the gradient of its clipped straight-through estimator.
#include "../fake_quantize.h"

#include "affine_map.cuh"

namespace synq {
namespace {

template <typename T>
struct FakeQuantize : GridOperation {
  using Input = T;
  using Output = T;
  using GridOperation::GridOperation;
  static constexpr bool kReadsGradient = false;

  __device__ __forceinline__ T apply(float x, T, const Affine& affine) const {
    return from_float<T>(fake_quantize(x, affine, low, high));
  }
};

template <typename T>
struct ClippedGradient : GridOperation {
  using Input = T;
  using Output = T;
  using GridOperation::GridOperation;
  static constexpr bool kReadsGradient = true;

  __device__ __forceinline__ T apply(float x, T gradient, const Affine& affine) const {
    return from_float<T>(clipped_gradient(to_float(gradient), x, affine, low, high));
  }
};

GridArguments grid_of(const FakeQuantizeParams& params) { return {params.range_min, params.range_max, params.bits}; }

}  // namespace

int fake_quantize_cuda(const FakeQuantizeParams& params, void* stream) {
  return with_element_type(params.dtype, [&](auto tag) {
    return launch_affine_map<FakeQuantize<typename decltype(tag)::Type>>(params, grid_of(params), stream);
  });
}

int fake_quantize_backward_cuda(const FakeQuantizeParams& params, void* stream) {
  return with_element_type(params.dtype, [&](auto tag) {
    return launch_affine_map<ClippedGradient<typename decltype(tag)::Type>>(params, grid_of(params), stream);
  });
}

}  // namespace synq
