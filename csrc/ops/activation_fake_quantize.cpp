// synq_fast::activation_fake_quantize and its gradients.
#include "activation_fake_quantize.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros_like.h>

#include <tuple>

#include "cpu/activation_fake_quantize.h"
#include "ops/channel_sums.h"
#include "ops/device.h"
#include "ops/learned_table.h"
#include "ops/parallel.h"

namespace synq {
namespace {

using at::Tensor;
using Triple = std::tuple<Tensor, Tensor, Tensor>;

const cpu::ActivationFakeQuantizeKernels& kernels() {
  using namespace cpu;
  return SYNQ_SELECT(activation_fake_quantize_kernels);
}

// What both directions are given, checked.
struct Arguments {
  Input input;
  LearnedPair grid;
  int64_t bits;
  Activation activation;
  bool minifloat;

  Arguments(const char* op, const Tensor& x, const Tensor& scale, const Tensor& zero_point, int64_t activation,
            int64_t bits, bool minifloat)
      : input(check_input(op, x, bits, std::nullopt)),
        grid(op, scale, zero_point, input),
        bits(bits),
        activation(static_cast<Activation>(activation)),
        minifloat(minifloat) {
    require(activation >= 0 && activation < kActivations, op, "activation");
    require(!minifloat || (bits >= 3 && bits <= 8), op, "bits");
  }

  cpu::ActivationJob job(const LearnedTable& table, Tensor& y) const {
    return {table.job(input, bits, y), activation, minifloat};
  }

  ActivationFakeQuantizeParams params(double gradient_scale, Tensor& y) const {
    return {learned_params(input, grid, bits, gradient_scale, {}, y), activation, minifloat};
  }
};

template <Device device>
Tensor forward(const Tensor& x, const Tensor& scale, const Tensor& zero_point, int64_t activation, int64_t bits,
               bool minifloat, double) {
  const char* op = "activation_fake_quantize";
  const Guard<device> guard(x);
  const Arguments given(op, x, scale, zero_point, activation, bits, minifloat);
  Tensor y = at::empty_like(given.input.x);
  if constexpr (device == Device::kCPU) {
    const LearnedTable table(op, given.grid, given.input);
    const cpu::ActivationJob job = given.job(table, y);
    for_each_part(x.numel(), 1, [&](int64_t begin, int64_t end) { kernels().forward(job, begin, end); });
  } else if (x.numel() > 0) {
    launch(activation_fake_quantize_cuda, given.params(1.0, y));
  }
  return y;
}

template <Device device>
Triple backward(const Tensor& gradient, const Tensor& x, const Tensor& scale, const Tensor& zero_point,
                int64_t activation, int64_t bits, bool minifloat, double gradient_scale) {
  const char* op = "activation_fake_quantize_backward";
  const Guard<device> guard(x);
  const Arguments given(op, x, scale, zero_point, activation, bits, minifloat);
  const Tensor incoming = match_layout(op, gradient, given.input.x);
  Tensor grad_x = at::empty_like(given.input.x);
  if (x.numel() == 0) {
    constexpr auto kContiguous = at::MemoryFormat::Contiguous;
    return {grad_x, at::zeros_like(scale, kContiguous), at::zeros_like(zero_point, kContiguous)};
  }
  Tensor grad_scale = at::empty(scale.sizes(), scale.options());
  Tensor grad_zero_point = at::empty(zero_point.sizes(), scale.options());
  float* of_scale = grad_scale.mutable_data_ptr<float>();
  float* of_zero = grad_zero_point.mutable_data_ptr<float>();
  if constexpr (device == Device::kCPU) {
    const LearnedTable table(op, given.grid, given.input);
    cpu::ActivationJob job = given.job(table, grad_x);
    job.gradient = incoming.const_data_ptr();
    const ChannelSums sums =
        sum_over_parts(given.input, [&](int64_t begin, int64_t end, double* first, double* second) {
          kernels().backward(job, begin, end, first, second);
        });
    *of_scale = learned_grad_scale(sums.first[0], job.scale[0], gradient_scale);
    *of_zero = learned_grad_zero_point(sums.second[0], job.scale[0], gradient_scale);
  } else {
    auto params = given.params(gradient_scale, grad_x);
    params.gradient = incoming.const_data_ptr();
    params.grad_scale = of_scale;
    params.grad_zero_point = of_zero;
    const int64_t size = fake_quantize_learned_workspace_cuda(params);
    const Tensor workspace = at::empty({size}, scale.options().dtype(at::kDouble));
    params.workspace = workspace.mutable_data_ptr<double>();
    launch(activation_fake_quantize_backward_cuda, params);
  }
  return {grad_x, grad_scale, grad_zero_point};
}

template <Device device>
void register_ops(torch::Library& library) {
  library.impl("activation_fake_quantize", &forward<device>);
  library.impl("activation_fake_quantize_backward", &backward<device>);
}

SYNQ_REGISTER(register_ops)

}  // namespace
}  // namespace synq
