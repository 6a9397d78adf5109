// What operations over a learned grid have in common.
#pragma once

#include "../fake_quantize_learned.h"
#include "../learned_grid.h"
#include "channel_sums.cuh"
#include "draws.cuh"

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
  // The channel's gradients from the sums of its LearnedTerms.
  __device__ __forceinline__ void finish(int64_t channel, Sums sums) const {
    const float scale = arguments.scale[channel];
    arguments.grad_scale[channel] = learned_grad_scale(sums.first, scale, arguments.gradient_scale);
    arguments.grad_zero_point[channel] = learned_grad_zero_point(sums.second, scale, arguments.gradient_scale);
  }
};

inline LearnedArguments arguments_of(const FakeQuantizeLearnedParams& params) {
  return {params.scale,
          params.zero_point,
          params.grad_scale,
          params.grad_zero_point,
          params.gradient_scale,
          params.bits,
          {params.seed, params.threshold, params.offset}};
}

}  // namespace
}  // namespace synq
