// synq_fast::gelu_fake_quantize and its gradients.
#include "gelu_fake_quantize.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros_like.h>

#include <tuple>

#include "cpu/gelu_fake_quantize.h"
#include "ops/channel_sums.h"
#include "ops/device.h"
#include "ops/learned_table.h"
#include "ops/parallel.h"

namespace synq {
namespace {

using at::Tensor;
using Triple = std::tuple<Tensor, Tensor, Tensor>;

const cpu::GeluFakeQuantizeKernels& kernels() {
  using namespace cpu;
  return SYNQ_SELECT(gelu_fake_quantize_kernels);
}

template <Device device>
Tensor forward(const Tensor& x, const Tensor& scale, const Tensor& zero_point, int64_t bits, double) {
  const char* op = "gelu_fake_quantize";
  const Guard<device> guard(x);
  const Input input = check_input(op, x, bits, std::nullopt);
  const LearnedPair grid(op, scale, zero_point, input);
  Tensor y = at::empty_like(input.x);
  if constexpr (device == Device::kCPU) {
    const LearnedTable table(op, grid, input);
    const cpu::Job job = table.job(input, bits, y);
    for_each_part(x.numel(), 1, [&](int64_t begin, int64_t end) { kernels().forward(job, begin, end); });
  } else if (x.numel() > 0) {
    launch(gelu_fake_quantize_cuda, learned_params(input, grid, bits, 1.0, {}, y));
  }
  return y;
}

template <Device device>
Triple backward(const Tensor& gradient, const Tensor& x, const Tensor& scale, const Tensor& zero_point, int64_t bits,
                double gradient_scale) {
  const char* op = "gelu_fake_quantize_backward";
  const Guard<device> guard(x);
  const Input input = check_input(op, x, bits, std::nullopt);
  const LearnedPair grid(op, scale, zero_point, input);
  const Tensor incoming = match_layout(op, gradient, input.x);
  Tensor grad_x = at::empty_like(input.x);
  if (x.numel() == 0) {
    constexpr auto kContiguous = at::MemoryFormat::Contiguous;
    return {grad_x, at::zeros_like(scale, kContiguous), at::zeros_like(zero_point, kContiguous)};
  }
  Tensor grad_scale = at::empty(scale.sizes(), scale.options());
  Tensor grad_zero_point = at::empty(zero_point.sizes(), scale.options());
  float* of_scale = grad_scale.mutable_data_ptr<float>();
  float* of_zero = grad_zero_point.mutable_data_ptr<float>();
  if constexpr (device == Device::kCPU) {
    const LearnedTable table(op, grid, input);
    cpu::Job job = table.job(input, bits, grad_x);
    job.gradient = incoming.const_data_ptr();
    const ChannelSums sums = sum_over_parts(input, [&](int64_t begin, int64_t end, double* first, double* second) {
      kernels().backward(job, begin, end, first, second);
    });
    *of_scale = learned_grad_scale(sums.first[0], job.scale[0], gradient_scale);
    *of_zero = learned_grad_zero_point(sums.second[0], job.scale[0], gradient_scale);
  } else {
    auto params = learned_params(input, grid, bits, gradient_scale, {}, grad_x);
    params.gradient = incoming.const_data_ptr();
    params.grad_scale = of_scale;
    params.grad_zero_point = of_zero;
    const int64_t size = fake_quantize_learned_workspace_cuda(params);
    const Tensor workspace = at::empty({size}, scale.options().dtype(at::kDouble));
    params.workspace = workspace.mutable_data_ptr<double>();
    launch(gelu_fake_quantize_backward_cuda, params);
  }
  return {grad_x, grad_scale, grad_zero_point};
}

template <Device device>
void register_ops(torch::Library& library) {
  library.impl("gelu_fake_quantize", &forward<device>);
  library.impl("gelu_fake_quantize_backward", &backward<device>);
}

SYNQ_REGISTER(register_ops)

}  // namespace
}  // namespace synq
