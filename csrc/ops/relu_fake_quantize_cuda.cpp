// The CUDA implementations behind synq_fast::relu_fake_quantize and synq_fast::affine_relu_fake_quantize. Nothing here
// waits for the device.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <c10/cuda/CUDAGuard.h>
#include <torch/library.h>

#include <tuple>

#include "ops/arguments.h"
#include "ops/launch.h"
#include "relu_fake_quantize.h"

namespace synq {
namespace {

using at::Tensor;
using Axis = std::optional<int64_t>;
using Optional = std::optional<Tensor>;
using Upper = std::optional<double>;

// The checked arguments; holds the contiguous tensors for as long as the launch needs their pointers.
struct ReluArguments {
  Input input;
  Tensor minimum;
  Tensor maximum;
  ReluFakeQuantizeParams params{};

  ReluArguments(const char* op, Input checked, const Input& of_range, const Tensor& range_min, const Tensor& range_max,
                int64_t bits, Upper upper)
      : input(std::move(checked)),
        minimum(check_range(op, "range_min", range_min, of_range)),
        maximum(check_range(op, "range_max", range_max, of_range)) {
    params.x = input.x.const_data_ptr();
    params.range_min = minimum.const_data_ptr<float>();
    params.range_max = maximum.const_data_ptr<float>();
    params.outer = input.outer;
    params.channels = input.channels;
    params.inner = input.inner;
    params.upper = check_upper(op, upper);
    params.bits = static_cast<int32_t>(bits);
    params.dtype = input.dtype;
  }
};

struct AffineArguments : ReluArguments {
  Tensor weight;
  Tensor bias;
  Tensor residual;  // undefined: none

  AffineArguments(const char* op, const Input& checked, const Tensor& given_weight, const Tensor& given_bias,
                  const Optional& given_residual, const Tensor& range_min, const Tensor& range_max, int64_t bits,
                  Upper upper)
      : ReluArguments(op, checked, whole(checked), range_min, range_max, bits, upper),
        weight(check_range(op, "weight", given_weight, checked)),
        bias(check_range(op, "bias", given_bias, checked)),
        residual(check_residual(op, given_residual, checked.x)) {
    params.weight = weight.const_data_ptr<float>();
    params.bias = bias.const_data_ptr<float>();
    if (residual.defined()) params.residual = residual.const_data_ptr();
  }
};

Tensor relu_cuda(const Tensor& x, const Tensor& range_min, const Tensor& range_max, int64_t bits, Axis axis,
                 Upper upper, bool /*clip*/) {
  const char* op = "relu_fake_quantize";
  const c10::cuda::CUDAGuard guard(x.device());
  const Input input = check_input(op, x, bits, axis);
  ReluArguments arguments(op, input, input, range_min, range_max, bits, upper);
  Tensor y = at::empty_like(input.x);
  if (x.numel() == 0) return y;
  arguments.params.y = y.mutable_data_ptr();
  launch(relu_fake_quantize_cuda, arguments.params);
  return y;
}

Tensor relu_backward_cuda(const Tensor& gradient, const Tensor& x, const Tensor& range_min, const Tensor& range_max,
                          int64_t bits, Axis axis, Upper upper, bool clip) {
  const char* op = "relu_fake_quantize_backward";
  const c10::cuda::CUDAGuard guard(x.device());
  const Input input = check_input(op, x, bits, axis);
  ReluArguments arguments(op, input, input, range_min, range_max, bits, upper);
  const Tensor incoming = match_layout(op, gradient, input.x);
  Tensor result = at::empty_like(input.x);
  if (x.numel() == 0) return result;
  arguments.params.gradient = incoming.const_data_ptr();
  arguments.params.y = result.mutable_data_ptr();
  arguments.params.clip = clip;
  launch(relu_fake_quantize_backward_cuda, arguments.params);
  return result;
}

Tensor affine_relu_cuda(const Tensor& x, const Tensor& weight, const Tensor& bias, const Optional& residual,
                        const Tensor& range_min, const Tensor& range_max, int64_t bits, Upper upper, bool /*clip*/) {
  const char* op = "affine_relu_fake_quantize";
  const c10::cuda::CUDAGuard guard(x.device());
  AffineArguments arguments(op, check_channels(op, x, bits), weight, bias, residual, range_min, range_max, bits, upper);
  Tensor y = at::empty_like(arguments.input.x);
  if (x.numel() == 0) return y;
  arguments.params.y = y.mutable_data_ptr();
  launch(affine_relu_fake_quantize_cuda, arguments.params);
  return y;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> affine_relu_backward_cuda(const Tensor& gradient, const Tensor& x,
                                                                     const Tensor& weight, const Tensor& bias,
                                                                     const Optional& residual, const Tensor& range_min,
                                                                     const Tensor& range_max, int64_t bits, Upper upper,
                                                                     bool clip, bool parameters, bool of_residual) {
  const char* op = "affine_relu_fake_quantize_backward";
  const c10::cuda::CUDAGuard guard(x.device());
  AffineArguments arguments(op, check_channels(op, x, bits), weight, bias, residual, range_min, range_max, bits, upper);
  const Input& input = arguments.input;
  TORCH_CHECK_VALUE(!of_residual || arguments.residual.defined(), op,
                    ": of_residual asks for the gradient of a residual, but there is none");
  const Tensor incoming = match_layout(op, gradient, input.x);
  Tensor grad_x = at::empty_like(input.x);
  Tensor grad_weight = at::empty({parameters ? input.channels : 0}, weight.options());
  Tensor grad_bias = at::empty_like(grad_weight);
  Tensor grad_residual = of_residual ? at::empty_like(input.x) : at::empty({0}, input.x.options());
  if (x.numel() == 0) return {grad_x, grad_weight.zero_(), grad_bias.zero_(), grad_residual};
  ReluFakeQuantizeParams& params = arguments.params;
  params.gradient = incoming.const_data_ptr();
  params.y = grad_x.mutable_data_ptr();
  if (of_residual) params.grad_residual = grad_residual.mutable_data_ptr();
  params.clip = clip;
  if (parameters) {
    params.grad_weight = grad_weight.mutable_data_ptr<float>();
    params.grad_bias = grad_bias.mutable_data_ptr<float>();
  }
  const Tensor workspace =
      at::empty({affine_relu_fake_quantize_workspace_cuda(params)}, weight.options().dtype(at::kDouble));
  params.workspace = workspace.mutable_data_ptr<double>();
  launch(affine_relu_fake_quantize_backward_cuda, params);
  return {grad_x, grad_weight, grad_bias, grad_residual};
}

}  // namespace

TORCH_LIBRARY_IMPL(synq_fast, CUDA, m) {
  m.impl("relu_fake_quantize", &relu_cuda);
  m.impl("relu_fake_quantize_backward", &relu_backward_cuda);
  m.impl("affine_relu_fake_quantize", &affine_relu_cuda);
  m.impl("affine_relu_fake_quantize_backward", &affine_relu_backward_cuda);
}

}  // namespace synq
