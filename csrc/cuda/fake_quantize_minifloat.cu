// Fake quantization to small floats, and the gradient of its clipped straight-through estimator.
#include "../fake_quantize_minifloat.h"

#include "../minifloat_grid.h"
#include "affine_map.cuh"

namespace synq {
namespace {

struct MinifloatOperation : GridOperation {
  Minifloat grid;

  __device__ __forceinline__ explicit MinifloatOperation(const Arguments& given)
      : GridOperation(given), grid(minifloat_of(given.bits)) {}
  __device__ __forceinline__ Affine factors(int64_t channel) const {
    return make_affine(arguments.range_min[channel], arguments.range_max[channel], minifloat_span(arguments.bits));
  }
};

template <typename T>
struct FakeQuantizeMinifloat : MinifloatOperation {
  using Input = T;
  using Output = T;
  using MinifloatOperation::MinifloatOperation;
  static constexpr bool kReadsGradient = false;

  __device__ __forceinline__ T apply(float x, T, const Affine& affine) const {
    return from_float<T>(fake_quantize_minifloat(x, affine, grid));
  }
};

template <typename T>
struct MinifloatGradient : MinifloatOperation {
  using Input = T;
  using Output = T;
  using MinifloatOperation::MinifloatOperation;
  static constexpr bool kReadsGradient = true;

  __device__ __forceinline__ T apply(float x, T gradient, const Affine& affine) const {
    return from_float<T>(minifloat_gradient(to_float(gradient), x, affine, grid));
  }
};

GridArguments minifloat_arguments(const FakeQuantizeParams& params) {
  return {params.range_min, params.range_max, params.bits};
}

}  // namespace

int fake_quantize_minifloat_cuda(const FakeQuantizeParams& params, void* stream) {
  return with_element_type(params.dtype, [&](auto tag) {
    return launch_affine_map<FakeQuantizeMinifloat<typename decltype(tag)::Type>>(params, minifloat_arguments(params),
                                                                                  stream);
  });
}

int fake_quantize_minifloat_backward_cuda(const FakeQuantizeParams& params, void* stream) {
  return with_element_type(params.dtype, [&](auto tag) {
    return launch_affine_map<MinifloatGradient<typename decltype(tag)::Type>>(params, minifloat_arguments(params),
                                                                              stream);
  });
}

}  // namespace synq
