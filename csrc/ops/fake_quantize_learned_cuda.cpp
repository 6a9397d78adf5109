// The CUDA implementations behind synq_fast::fake_quantize_learned. Nothing here waits for the device.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros_like.h>
#include <c10/cuda/CUDAGuard.h>
#include <torch/library.h>

#include <tuple>

#include "fake_quantize_learned.h"
#include "ops/arguments.h"
#include "ops/launch.h"

namespace synq {
namespace {

using at::Tensor;
using Axis = std::optional<int64_t>;

FakeQuantizeLearnedParams make_learned_params(const Input& input, const Tensor& scale, const Tensor& zero_point,
                                              int64_t bits, double gradient_scale, Tensor& y) {
  FakeQuantizeLearnedParams params{};
  params.x = input.x.const_data_ptr();
  params.y = y.mutable_data_ptr();
  params.scale = scale.const_data_ptr<float>();
  params.zero_point = zero_point.const_data_ptr<float>();
  params.outer = input.outer;
  params.channels = input.channels;
  params.inner = input.inner;
  params.gradient_scale = gradient_scale;
  params.bits = static_cast<int32_t>(bits);
  params.dtype = input.dtype;
  return params;
}

Tensor fake_quantize_learned_cuda_op(const Tensor& x, const Tensor& scale, const Tensor& zero_point, int64_t bits,
                                     Axis axis, double gradient_scale) {
  const c10::cuda::CUDAGuard guard(x.device());
  const Input input = check_input("fake_quantize_learned", x, bits, axis);
  const Tensor factor = check_range("fake_quantize_learned", "scale", scale, input);
  const Tensor offset = check_range("fake_quantize_learned", "zero_point", zero_point, input);
  Tensor y = at::empty_like(input.x);
  if (x.numel() == 0) return y;
  launch(fake_quantize_learned_cuda, make_learned_params(input, factor, offset, bits, gradient_scale, y));
  return y;
}

std::tuple<Tensor, Tensor, Tensor> fake_quantize_learned_backward_cuda_op(const Tensor& gradient, const Tensor& x,
                                                                          const Tensor& scale, const Tensor& zero_point,
                                                                          int64_t bits, Axis axis,
                                                                          double gradient_scale) {
  const char* op = "fake_quantize_learned_backward";
  const c10::cuda::CUDAGuard guard(x.device());
  const Input input = check_input(op, x, bits, axis);
  const Tensor factor = check_range(op, "scale", scale, input);
  const Tensor offset = check_range(op, "zero_point", zero_point, input);
  const Tensor incoming = match_layout(op, gradient, input.x);
  Tensor grad_x = at::empty_like(input.x);
  if (x.numel() == 0) {
    return {grad_x, at::zeros_like(scale, at::MemoryFormat::Contiguous),
            at::zeros_like(zero_point, at::MemoryFormat::Contiguous)};
  }
  Tensor grad_scale = at::empty(scale.sizes(), scale.options());
  Tensor grad_zero_point = at::empty(zero_point.sizes(), scale.options());
  FakeQuantizeLearnedParams params = make_learned_params(input, factor, offset, bits, gradient_scale, grad_x);
  params.gradient = incoming.const_data_ptr();
  params.grad_scale = grad_scale.mutable_data_ptr<float>();
  params.grad_zero_point = grad_zero_point.mutable_data_ptr<float>();
  const Tensor workspace =
      at::empty({fake_quantize_learned_workspace_cuda(params)}, scale.options().dtype(at::kDouble));
  params.workspace = workspace.mutable_data_ptr<double>();
  launch(fake_quantize_learned_backward_cuda, params);
  return {grad_x, grad_scale, grad_zero_point};
}

}  // namespace

TORCH_LIBRARY_IMPL(synq_fast, CUDA, m) {
  m.impl("fake_quantize_learned", &fake_quantize_learned_cuda_op);
  m.impl("fake_quantize_learned_backward", &fake_quantize_learned_backward_cuda_op);
}

}  // namespace synq
