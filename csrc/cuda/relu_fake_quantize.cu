// ReLU and fake quantization in one pass, alone and after a per-channel affine map, and their gradients.
#include "../relu_fake_quantize.h"

#include "../activation.h"
#include "affine_map.cuh"
#include "channel_sums.cuh"

namespace synq {
namespace {

struct ReluArguments : GridArguments {
  float upper;
  bool clip;
};

struct ReluOperation : GridOperation {
  using Arguments = ReluArguments;
  float upper;
  bool clip;

  __device__ __forceinline__ explicit ReluOperation(const Arguments& given)
      : GridOperation(given), upper(given.upper), clip(given.clip) {}
};

template <typename T>
struct ReluFakeQuantize : ReluOperation {
  using Input = T;
  using Output = T;
  using ReluOperation::ReluOperation;
  static constexpr bool kReadsGradient = false;

  __device__ __forceinline__ T apply(float x, T, const Affine& affine) const {
    return from_float<T>(fake_quantize(relu(x, upper), affine, low, high));
  }
};

template <typename T>
struct ReluGradient : ReluOperation {
  using Input = T;
  using Output = T;
  using ReluOperation::ReluOperation;
  static constexpr bool kReadsGradient = true;

  __device__ __forceinline__ T apply(float x, T gradient, const Affine& affine) const {
    return from_float<T>(activation_gradient(to_float(gradient), x, upper, affine, low, high, clip));
  }
};

struct AffineReluArguments : ReluArguments {
  ResidualArguments beside;
  const float* weight;
  const float* bias;
  float* grad_weight;
  float* grad_bias;
};

struct Map {
  float weight;
  float bias;
};

// The channels are those of the affine map; the range is one for all.
struct AffineReluOperation : ReluOperation {
  using Arguments = AffineReluArguments;
  using Factors = Map;
  const float* weight;
  const float* bias;
  Affine affine;

  __device__ __forceinline__ explicit AffineReluOperation(const Arguments& given)
      : ReluOperation(given), weight(given.weight), bias(given.bias), affine(GridOperation::factors(0)) {}
  __device__ __forceinline__ Map factors(int64_t channel) const { return {weight[channel], bias[channel]}; }
  __device__ __forceinline__ float quantized(float value) const {
    return fake_quantize(relu(value, upper), affine, low, high);
  }
  // The gradient at what precedes the ReLU.
  __device__ __forceinline__ float gradient_at(float value, float gradient) const {
    return activation_gradient(gradient, value, upper, affine, low, high, clip);
  }
};

__device__ __forceinline__ float mapped(float x, const Map& map) { return affine_map(x, map.weight, map.bias); }

template <typename T>
struct AffineReluFakeQuantize : AffineReluOperation {
  using Input = T;
  using Output = T;
  using AffineReluOperation::AffineReluOperation;
  static constexpr bool kReadsGradient = false;

  __device__ __forceinline__ T apply(float x, T, const Map& map) const {
    return from_float<T>(quantized(mapped(x, map)));
  }
};

template <typename T>
struct ResidualReluFakeQuantize : AffineReluOperation, WithResidual<T> {
  using Input = T;
  using Output = T;
  static constexpr bool kReadsGradient = false;
  static constexpr bool kGivesGradient = false;

  __device__ __forceinline__ explicit ResidualReluFakeQuantize(const Arguments& given)
      : AffineReluOperation(given), WithResidual<T>(given.beside) {}
  __device__ __forceinline__ T apply(float x, T, float residual, const Map& map, T&) const {
    return from_float<T>(quantized(add(mapped(x, map), residual)));
  }
};

template <typename T>
struct AffineReluGradient : AffineReluOperation {
  using Input = T;
  using Output = T;
  using AffineReluOperation::AffineReluOperation;
  static constexpr bool kReadsGradient = true;

  __device__ __forceinline__ T apply(float x, T gradient, const Map& map) const {
    return from_float<T>(mul(gradient_at(mapped(x, map), to_float(gradient)), map.weight));
  }
};

template <typename T>
struct ResidualReluGradient : AffineReluOperation, WithResidual<T> {
  using Input = T;
  using Output = T;
  static constexpr bool kReadsGradient = true;

  __device__ __forceinline__ explicit ResidualReluGradient(const Arguments& given)
      : AffineReluOperation(given), WithResidual<T>(given.beside) {}
  __device__ __forceinline__ T apply(float x, T gradient, float residual, const Map& map, T& of_residual) const {
    const float before_relu = gradient_at(add(mapped(x, map), residual), to_float(gradient));
    of_residual = from_float<T>(before_relu);
    return from_float<T>(mul(before_relu, map.weight));
  }
};

struct AffineReluSums : AffineReluOperation {
  float* grad_weight;
  float* grad_bias;

  __device__ __forceinline__ explicit AffineReluSums(const Arguments& given)
      : AffineReluOperation(given), grad_weight(given.grad_weight), grad_bias(given.grad_bias) {}
  __device__ __forceinline__ float terms(float x, float before_relu, const Map& map, float& first,
                                         float& second) const {
    second = before_relu;
    first = mul(x, before_relu);
    return mul(before_relu, map.weight);
  }
  __device__ __forceinline__ void finish(int64_t channel, Sums sums) const {
    grad_weight[channel] = static_cast<float>(sums.first);
    grad_bias[channel] = static_cast<float>(sums.second);
  }
};

template <typename T>
struct AffineReluGradients : AffineReluSums {
  using Input = T;
  using AffineReluSums::AffineReluSums;

  __device__ __forceinline__ float apply(float x, float gradient, const Map& map, float& first, float& second) const {
    return terms(x, gradient_at(mapped(x, map), gradient), map, first, second);
  }
};

template <typename T>
struct ResidualReluGradients : AffineReluSums, WithResidual<T> {
  using Input = T;

  __device__ __forceinline__ explicit ResidualReluGradients(const Arguments& given)
      : AffineReluSums(given), WithResidual<T>(given.beside) {}
  __device__ __forceinline__ float apply(float x, float gradient, float residual, const Map& map, float& first,
                                         float& second, T& of_residual) const {
    const float before_relu = gradient_at(add(mapped(x, map), residual), gradient);
    of_residual = from_float<T>(before_relu);
    return terms(x, before_relu, map, first, second);
  }
};

ReluArguments relu_arguments(const ReluFakeQuantizeParams& params) {
  return {{params.range_min, params.range_max, params.bits}, params.upper, params.clip};
}

AffineReluArguments affine_relu_arguments(const ReluFakeQuantizeParams& params) {
  return {relu_arguments(params), {params.residual, params.grad_residual},
          params.weight,          params.bias,
          params.grad_weight,     params.grad_bias};
}

}  // namespace

int relu_fake_quantize_cuda(const ReluFakeQuantizeParams& params, void* stream) {
  return with_element_type(params.dtype, [&](auto tag) {
    return launch_affine_map<ReluFakeQuantize<typename decltype(tag)::Type>>(params, relu_arguments(params), stream);
  });
}

int relu_fake_quantize_backward_cuda(const ReluFakeQuantizeParams& params, void* stream) {
  return with_element_type(params.dtype, [&](auto tag) {
    return launch_affine_map<ReluGradient<typename decltype(tag)::Type>>(params, relu_arguments(params), stream);
  });
}

int affine_relu_fake_quantize_cuda(const ReluFakeQuantizeParams& params, void* stream) {
  const AffineReluArguments arguments = affine_relu_arguments(params);
  return with_element_type(params.dtype, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    if (params.residual == nullptr) return launch_affine_map<AffineReluFakeQuantize<T>>(params, arguments, stream);
    return launch_affine_map<ResidualReluFakeQuantize<T>>(params, arguments, stream);
  });
}

int64_t affine_relu_fake_quantize_workspace_cuda(const ReluFakeQuantizeParams& params) {
  return params.grad_weight == nullptr ? 0 : channel_sums_workspace(params);
}

int affine_relu_fake_quantize_backward_cuda(const ReluFakeQuantizeParams& params, void* stream) {
  const AffineReluArguments arguments = affine_relu_arguments(params);
  return with_element_type(params.dtype, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    if (params.grad_weight == nullptr) {
      if (params.residual == nullptr) return launch_affine_map<AffineReluGradient<T>>(params, arguments, stream);
      return launch_affine_map<ResidualReluGradient<T>>(params, arguments, stream);
    }
    if (params.residual == nullptr) return launch_channel_sums<AffineReluGradients<T>>(params, arguments, stream);
    return launch_channel_sums<ResidualReluGradients<T>>(params, arguments, stream);
  });
}

}  // namespace synq
