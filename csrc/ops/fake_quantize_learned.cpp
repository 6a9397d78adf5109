// synq_fast::fake_quantize_learned and its gradients.
#include "fake_quantize_learned.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros_like.h>

#include <tuple>

#include "cpu/fake_quantize_learned.h"
#include "learned_grid.h"
#include "ops/channel_sums.h"
#include "ops/device.h"
#include "ops/draws.h"
#include "ops/learned_table.h"
#include "ops/parallel.h"

namespace synq {
namespace {

using at::Tensor;
using Axis = std::optional<int64_t>;
using Triple = std::tuple<Tensor, Tensor, Tensor>;

const cpu::FakeQuantizeKernels& forward_kernels() {
  using namespace cpu;
  return SYNQ_SELECT(fake_quantize_kernels);
}

const cpu::FakeQuantizeLearnedKernels& kernels() {
  using namespace cpu;
  return SYNQ_SELECT(fake_quantize_learned_kernels);
}

template <Device device>
Tensor run_forward(const char* op, const Tensor& x, const Tensor& scale, const Tensor& zero_point, int64_t bits,
                   Axis axis, const Choice& choice) {
  const Guard<device> guard(x);
  const Input input = check_input(op, x, bits, axis);
  const LearnedPair grid(op, scale, zero_point, input);
  Tensor y = at::empty_like(input.x);
  if constexpr (device == Device::kCPU) {
    const LearnedTable table(op, grid, input);
    const cpu::Job job = table.job(input, bits, y);
    for_each_part(x.numel(), 1, [&](int64_t begin, int64_t end) {
      if (choice.seed == nullptr) {
        forward_kernels().fake_quantize(job, begin, end);
      } else {
        kernels().dropped(job, choice.chance(), begin, end);
      }
    });
  } else if (x.numel() > 0) {
    const bool dropped = choice.seed != nullptr;
    launch(dropped ? fake_quantize_learned_dropped_cuda : fake_quantize_learned_cuda,
           learned_params(input, grid, bits, 1.0, choice, y));
  }
  return y;
}

template <Device device>
Triple run_backward(const char* op, const Tensor& gradient, const Tensor& x, const Tensor& scale,
                    const Tensor& zero_point, int64_t bits, Axis axis, double gradient_scale, const Choice& choice) {
  const Guard<device> guard(x);
  const Input input = check_input(op, x, bits, axis);
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
      if (choice.seed == nullptr) {
        kernels().backward(job, begin, end, first, second);
      } else {
        kernels().dropped_backward(job, choice.chance(), begin, end, first, second);
      }
    });
    for (int64_t i = 0; i < input.channels; ++i) {
      of_scale[i] = learned_grad_scale(sums.first[i], job.scale[i], gradient_scale);
      of_zero[i] = learned_grad_zero_point(sums.second[i], job.scale[i], gradient_scale);
    }
  } else {
    auto params = learned_params(input, grid, bits, gradient_scale, choice, grad_x);
    params.gradient = incoming.const_data_ptr();
    params.grad_scale = of_scale;
    params.grad_zero_point = of_zero;
    const int64_t size = fake_quantize_learned_workspace_cuda(params);
    const Tensor workspace = at::empty({size}, scale.options().dtype(at::kDouble));
    params.workspace = workspace.mutable_data_ptr<double>();
    const bool dropped = choice.seed != nullptr;
    launch(dropped ? fake_quantize_learned_dropped_backward_cuda : fake_quantize_learned_backward_cuda, params);
  }
  return {grad_x, grad_scale, grad_zero_point};
}

template <Device device>
Tensor forward(const Tensor& x, const Tensor& scale, const Tensor& zero_point, int64_t bits, Axis axis, double) {
  return run_forward<device>("fake_quantize_learned", x, scale, zero_point, bits, axis, {});
}

template <Device device>
Triple backward(const Tensor& gradient, const Tensor& x, const Tensor& scale, const Tensor& zero_point, int64_t bits,
                Axis axis, double gradient_scale) {
  const char* op = "fake_quantize_learned_backward";
  return run_backward<device>(op, gradient, x, scale, zero_point, bits, axis, gradient_scale, {});
}

template <Device device>
Tensor dropped(const Tensor& x, const Tensor& scale, const Tensor& zero_point, const Tensor& seed, int64_t bits,
               Axis axis, double keep, double, int64_t offset) {
  const char* op = "fake_quantize_learned_dropped";
  const Choice choice{check_seed(op, seed, x), check_keep(op, keep), check_offset(op, offset)};
  return run_forward<device>(op, x, scale, zero_point, bits, axis, choice);
}

template <Device device>
Triple dropped_backward(const Tensor& gradient, const Tensor& x, const Tensor& scale, const Tensor& zero_point,
                        const Tensor& seed, int64_t bits, Axis axis, double keep, double gradient_scale,
                        int64_t offset) {
  const char* op = "fake_quantize_learned_dropped_backward";
  const Choice choice{check_seed(op, seed, x), check_keep(op, keep), check_offset(op, offset)};
  return run_backward<device>(op, gradient, x, scale, zero_point, bits, axis, gradient_scale, choice);
}

template <Device device>
void register_ops(torch::Library& library) {
  library.impl("fake_quantize_learned", &forward<device>);
  library.impl("fake_quantize_learned_backward", &backward<device>);
  library.impl("fake_quantize_learned_dropped", &dropped<device>);
  library.impl("fake_quantize_learned_dropped_backward", &dropped_backward<device>);
}

SYNQ_REGISTER(register_ops)

}  // namespace
}  // namespace synq
