// Fake quantization over a learned grid, and its three gradients.
#include "../fake_quantize_learned.h"

#include "affine_map.cuh"
#include "channel_sums.cuh"
#include "learned_operation.cuh"

namespace synq {
namespace {

template <typename T>
struct FakeQuantizeLearned : LearnedOperation {
  using Input = T;
  using Output = T;
  using LearnedOperation::LearnedOperation;
  static constexpr bool kReadsGradient = false;

  __device__ __forceinline__ void prepare(int64_t, int64_t) const {}
  __device__ __forceinline__ T apply(float x, T, const Affine& affine) const {
    return from_float<T>(fake_quantize(x, affine, low, high));
  }
};

template <typename T>
struct FakeQuantizeDropped : LearnedOperation, WithChance {
  using Input = T;
  using Output = T;
  static constexpr bool kReadsGradient = false;

  __device__ __forceinline__ explicit FakeQuantizeDropped(const Arguments& given)
      : LearnedOperation(given), WithChance(given.chance) {}
  __device__ __forceinline__ void prepare(int64_t, int64_t) const {}
  __device__ __forceinline__ T apply(float x, T, const Affine& affine, bool kept) const {
    return from_float<T>(kept ? fake_quantize(x, affine, low, high) : x);
  }
};

template <typename T>
struct LearnedGradient : LearnedOperation {
  using Input = T;
  using LearnedOperation::LearnedOperation;

  __device__ __forceinline__ float apply(float x, float gradient, const Affine& affine, float& first,
                                         float& second) const {
    const LearnedTerms terms = learned_terms(gradient, x, affine, low, high);
    first = terms.of_scale;
    second = terms.of_zero;
    return terms.of_x;
  }
};

template <typename T>
struct DroppedGradient : LearnedGradient<T>, WithChance {
  __device__ __forceinline__ explicit DroppedGradient(const LearnedArguments& given)
      : LearnedGradient<T>(given), WithChance(given.chance) {}
  __device__ __forceinline__ float apply(float x, float gradient, const Affine& affine, float& first, float& second,
                                         bool kept) const {
    const float of_x = LearnedGradient<T>::apply(x, gradient, affine, first, second);
    if (kept) return of_x;
    first = second = 0.0f;
    return gradient;
  }
};

}  // namespace

int fake_quantize_learned_cuda(const FakeQuantizeLearnedParams& params, void* stream) {
  return with_element_type(params.dtype, [&](auto tag) {
    return launch_affine_map<FakeQuantizeLearned<typename decltype(tag)::Type>>(params, arguments_of(params), stream);
  });
}

int64_t fake_quantize_learned_workspace_cuda(const FakeQuantizeLearnedParams& params) {
  return channel_sums_workspace(params);
}

int fake_quantize_learned_backward_cuda(const FakeQuantizeLearnedParams& params, void* stream) {
  return with_element_type(params.dtype, [&](auto tag) {
    return launch_channel_sums<LearnedGradient<typename decltype(tag)::Type>>(params, arguments_of(params), stream);
  });
}

int fake_quantize_learned_dropped_cuda(const FakeQuantizeLearnedParams& params, void* stream) {
  return with_element_type(params.dtype, [&](auto tag) {
    return launch_affine_map<FakeQuantizeDropped<typename decltype(tag)::Type>>(params, arguments_of(params), stream);
  });
}

int fake_quantize_learned_dropped_backward_cuda(const FakeQuantizeLearnedParams& params, void* stream) {
  return with_element_type(params.dtype, [&](auto tag) {
    return launch_channel_sums<DroppedGradient<typename decltype(tag)::Type>>(params, arguments_of(params), stream);
  });
}

}  // namespace synq
