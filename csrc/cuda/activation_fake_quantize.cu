// Activation functions with fake quantization over one learned grid, and the three gradients, each in one pass.
#include "../activation_fake_quantize.h"

#include "../learned_levels.h"
#include "affine_map.cuh"
#include "channel_sums.cuh"
#include "functions.cuh"
#include "learned_operation.cuh"
#include "one_grid.cuh"

namespace synq {
namespace {

template <typename Curve, typename Levels, typename T>
struct ActivationOperation : LearnedOperation, OfOneGrid {
  using Input = T;
  Levels levels;

  __device__ __forceinline__ explicit ActivationOperation(const Arguments& given)
      : LearnedOperation(given), levels(given.bits) {}
};

template <typename Curve, typename Levels, typename T>
struct ActivationFakeQuantize : ActivationOperation<Curve, Levels, T> {
  using Output = T;
  using ActivationOperation<Curve, Levels, T>::ActivationOperation;
  static constexpr bool kReadsGradient = false;

  __device__ __forceinline__ void prepare(int64_t, int64_t) const {}
  __device__ __forceinline__ T apply(float x, T, const Affine& affine) const {
    return from_float<T>(this->levels.rounded(Curve(x).value(), affine));
  }
};

template <typename Curve, typename Levels, typename T>
struct ActivationGradient : ActivationOperation<Curve, Levels, T> {
  using ActivationOperation<Curve, Levels, T>::ActivationOperation;

  __device__ __forceinline__ float apply(float x, float gradient, const Affine& affine, float& first,
                                         float& second) const {
    const Curve curve(x);
    const LearnedTerms terms = this->levels.terms(gradient, curve.value(), affine);
    first = terms.of_scale;
    second = terms.of_zero;
    return terms.of_x * curve.slope();
  }
};

template <typename A, typename B, typename C>
struct KernelTypes {
  using Curve = A;
  using Levels = B;
  using Element = C;
};

// Calls launch(tag of the types of a kernel).
template <typename Launch>
int with_kernel_types(const ActivationFakeQuantizeParams& params, Launch launch) {
  return with_activation(params.activation, [&](auto tag) {
    return with_levels(params.minifloat, params.bits, [&](auto levels) {
      return with_element_type(params.dtype, [&](auto element) {
        return launch(
            KernelTypes<Curve<decltype(tag)::kActivation>, decltype(levels), typename decltype(element)::Type>{});
      });
    });
  });
}

}  // namespace

int activation_fake_quantize_cuda(const ActivationFakeQuantizeParams& params, void* stream) {
  return with_kernel_types(params, [&](auto tag) {
    using Tag = decltype(tag);
    using Operation = ActivationFakeQuantize<typename Tag::Curve, typename Tag::Levels, typename Tag::Element>;
    return launch_affine_map<Operation>(params, arguments_of(params), stream);
  });
}

int activation_fake_quantize_backward_cuda(const ActivationFakeQuantizeParams& params, void* stream) {
  return with_kernel_types(params, [&](auto tag) {
    using Tag = decltype(tag);
    using Operation = ActivationGradient<typename Tag::Curve, typename Tag::Levels, typename Tag::Element>;
    return launch_channel_sums<Operation>(params, arguments_of(params), stream);
  });
}

}  // namespace synq
