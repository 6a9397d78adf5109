// GELU with fake quantization over one learned grid, and its three gradients, each in one pass.
#include "../gelu_fake_quantize.h"

#include "affine_map.cuh"
#include "channel_sums.cuh"
#include "learned_operation.cuh"

namespace synq {
namespace {

// The part of the standard normal distribution below x, and its density at x. The part beyond a distance u is
// exp(-u^2 / 2) t times a polynomial of t = 1 / (1 + 0.35 u), a minimax one within a relative 3e-8.
struct Normal {
  float below;
  float density;

  __device__ __forceinline__ explicit Normal(float x) {
    const float power = expf(x * x * -0.5f);
    const float t = 1.0f / fmaf(fabsf(x), 0.35f, 1.0f);
    float tail = fmaf(-0.02914593741297722f, t, 0.1439717411994934f);
    tail = fmaf(tail, t, -0.2557143270969391f);
    tail = fmaf(tail, t, 0.15917424857616425f);
    tail = fmaf(tail, t, -0.02310989238321781f);
    tail = fmaf(tail, t, 0.10550802946090698f);
    tail = fmaf(tail, t, 0.11983285844326019f);
    tail = fmaf(tail, t, 0.13986186683177948f);
    tail = fmaf(tail, t, 0.13962140679359436f);
    const float beyond = power * t * tail;
    below = x < 0.0f ? beyond : 1.0f - beyond;
    density = power * 0.398942280f;
  }
};

template <typename T>
struct GeluFakeQuantize : LearnedOperation {
  using Input = T;
  using Output = T;
  using LearnedOperation::LearnedOperation;
  static constexpr bool kReadsGradient = false;

  __device__ __forceinline__ void prepare(int64_t, int64_t) const {}
  __device__ __forceinline__ T apply(float x, T, const Affine& affine) const {
    return from_float<T>(fake_quantize(mul(x, Normal(x).below), affine, low, high));
  }
};

template <typename T>
struct GeluGradient : LearnedOperation {
  using Input = T;
  using LearnedOperation::LearnedOperation;

  __device__ __forceinline__ float apply(float x, float gradient, const Affine& affine, float& first,
                                         float& second) const {
    const Normal normal(x);
    const LearnedTerms terms = learned_terms(gradient, mul(x, normal.below), affine, low, high);
    first = terms.of_scale;
    second = terms.of_zero;
    return terms.of_x * (normal.below + x * normal.density);
  }
};

}  // namespace

int gelu_fake_quantize_cuda(const FakeQuantizeLearnedParams& params, void* stream) {
  return with_element_type(params.dtype, [&](auto tag) {
    return launch_affine_map<GeluFakeQuantize<typename decltype(tag)::Type>>(params, arguments_of(params), stream);
  });
}

int gelu_fake_quantize_backward_cuda(const FakeQuantizeLearnedParams& params, void* stream) {
  return with_element_type(params.dtype, [&](auto tag) {
    return launch_channel_sums<GeluGradient<typename decltype(tag)::Type>>(params, arguments_of(params), stream);
  });
}

}  // namespace synq
