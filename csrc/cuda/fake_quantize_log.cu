// Fake quantization over a logarithmic grid, and its two gradients, each in one pass.
#include "../fake_quantize_log.h"

#include "../log_grid.h"
#include "affine_map.cuh"
#include "channel_sums.cuh"

namespace synq {
namespace {

struct LogArguments {
  const float* scale;
  float* grad_scale;
  int bits;
};

struct LogOperation {
  using Arguments = LogArguments;
  using Factors = float;
  Arguments arguments;
  int32_t least;

  __device__ __forceinline__ explicit LogOperation(const Arguments& given)
      : arguments(given), least(least_ratio(given.bits)) {}
  __device__ __forceinline__ float factors(int64_t channel) const { return arguments.scale[channel]; }
  __device__ __forceinline__ void prepare(int64_t, int64_t) const {}
  __device__ __forceinline__ void finish(int64_t channel, Sums sums) const {
    arguments.grad_scale[channel] = static_cast<float>(sums.first);
  }
};

template <typename T>
struct FakeQuantizeLog : LogOperation {
  using Input = T;
  using Output = T;
  using LogOperation::LogOperation;
  static constexpr bool kReadsGradient = false;

  __device__ __forceinline__ T apply(float x, T, float scale) const {
    return from_float<T>(fake_quantize_log(x, scale, least));
  }
};

template <typename T>
struct LogGradient : LogOperation {
  using Input = T;
  using LogOperation::LogOperation;

  __device__ __forceinline__ float apply(float x, float gradient, float scale, float& first, float& second) const {
    const LogTerms terms = log_terms(gradient, x, scale, least);
    first = terms.of_scale;
    second = 0.0f;
    return terms.of_x;
  }
};

LogArguments log_arguments(const FakeQuantizeLearnedParams& params) {
  return {params.scale, params.grad_scale, params.bits};
}

}  // namespace

int fake_quantize_log_cuda(const FakeQuantizeLearnedParams& params, void* stream) {
  return with_element_type(params.dtype, [&](auto tag) {
    return launch_affine_map<FakeQuantizeLog<typename decltype(tag)::Type>>(params, log_arguments(params), stream);
  });
}

int fake_quantize_log_backward_cuda(const FakeQuantizeLearnedParams& params, void* stream) {
  return with_element_type(params.dtype, [&](auto tag) {
    return launch_channel_sums<LogGradient<typename decltype(tag)::Type>>(params, log_arguments(params), stream);
  });
}

}  // namespace synq
