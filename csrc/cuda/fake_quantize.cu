// Fake quantization with a given range, and the gradient of its clipped straight-through estimator.
#include "affine_map.cuh"

namespace synq {
namespace {

template <typename T>
struct FakeQuantize {
  using Input = T;
  using Output = T;
  static constexpr bool kReadsGradient = false;
  static constexpr bool kWritesQuantizer = false;

  static __device__ __forceinline__ T apply(float x, T, Affine affine, float low, float high) {
    return from_float<T>(fake_quantize(x, affine, low, high));
  }
};

template <typename T>
struct ClippedGradient {
  using Input = T;
  using Output = T;
  static constexpr bool kReadsGradient = true;
  static constexpr bool kWritesQuantizer = false;

  static __device__ __forceinline__ T apply(float x, T gradient, Affine affine, float low, float high) {
    return from_float<T>(clipped_gradient(to_float(gradient), x, affine, low, high));
  }
};

}  // namespace

int fake_quantize_cuda(const FakeQuantizeParams& params, void* stream) {
  return with_element_type(params.dtype, [&](auto tag) {
    return launch_affine_map<FakeQuantize<typename decltype(tag)::Type>>(params, stream);
  });
}

int fake_quantize_backward_cuda(const FakeQuantizeParams& params, void* stream) {
  return with_element_type(params.dtype, [&](auto tag) {
    return launch_affine_map<ClippedGradient<typename decltype(tag)::Type>>(params, stream);
  });
}

}  // namespace synq
