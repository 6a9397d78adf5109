// Fake quantization over a learned grid, and its three gradients.
#include "../fake_quantize_learned.h"

#include "../learned_grid.h"
#include "affine_map.cuh"
#include "channel_sums.cuh"

namespace synq {
namespace {

struct LearnedArguments {
  const float* scale;
  const float* zero_point;
  float* grad_scale;
  float* grad_zero_point;
  double gradient_scale;
  int bits;
  ChanceArguments chance;
};

struct LearnedOperation {
  using Arguments = LearnedArguments;
  using Factors = Affine;
  Arguments arguments;
  float low;
  float high;

  __device__ __forceinline__ explicit LearnedOperation(const Arguments& given)
      : arguments(given), low(lowest_code(given.bits)), high(highest_code(given.bits)) {}
  __device__ __forceinline__ Affine factors(int64_t channel) const {
    return learned_grid(arguments.scale[channel], arguments.zero_point[channel]);
  }
};

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
  __device__ __forceinline__ void finish(int64_t channel, Sums sums) const {
    const float scale = arguments.scale[channel];
    arguments.grad_scale[channel] = learned_grad_scale(sums.first, scale, arguments.gradient_scale);
    arguments.grad_zero_point[channel] = learned_grad_zero_point(sums.second, scale, arguments.gradient_scale);
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

LearnedArguments arguments_of(const FakeQuantizeLearnedParams& params) {
  return {params.scale,
          params.zero_point,
          params.grad_scale,
          params.grad_zero_point,
          params.gradient_scale,
          params.bits,
          {params.seed, params.threshold, params.offset}};
}

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
