// synq_fast::fake_quantize_log and its gradients.
#include "fake_quantize_log.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros_like.h>

#include <algorithm>
#include <tuple>

#include "cpu/fake_quantize_log.h"
#include "ops/affine_table.h"
#include "ops/channel_sums.h"
#include "ops/device.h"
#include "ops/parallel.h"
#include "ops/quantized.h"

namespace synq {
namespace {

using at::Tensor;
using Axis = std::optional<int64_t>;

const cpu::FakeQuantizeLogKernels& kernels() {
  using namespace cpu;
  return SYNQ_SELECT(fake_quantize_log_kernels);
}

cpu::Job log_job(const char* op, const Input& input, const Tensor& scale, int64_t bits, Tensor& y) {
  cpu::Job job = make_job<cpu::Job>(input, bits, y);
  job.scale = scale.const_data_ptr<float>();
  for (int64_t i = 0; i < input.channels; ++i) require(!(job.scale[i] <= 0), op, "scale");
  return job;
}

FakeQuantizeLearnedParams log_params(const Input& input, const Tensor& scale, int64_t bits, Tensor& y) {
  auto params = make_params<FakeQuantizeLearnedParams>(input, bits);
  params.y = y.mutable_data_ptr();
  params.scale = scale.const_data_ptr<float>();
  return params;
}

template <Device device>
Tensor forward(const Tensor& x, const Tensor& scale, int64_t bits, Axis axis) {
  const char* op = "fake_quantize_log";
  const Guard<device> guard(x);
  const Input input = check_input(op, x, bits, axis);
  const Tensor largest = check_range(op, "scale", scale, input);
  Tensor y = at::empty_like(input.x);
  if constexpr (device == Device::kCPU) {
    const cpu::Job job = log_job(op, input, largest, bits, y);
    for_each_part(x.numel(), 1, [&](int64_t begin, int64_t end) { kernels().forward(job, begin, end); });
  } else if (x.numel() > 0) {
    launch(fake_quantize_log_cuda, log_params(input, largest, bits, y));
  }
  return y;
}

template <Device device>
std::tuple<Tensor, Tensor> backward(const Tensor& gradient, const Tensor& x, const Tensor& scale, int64_t bits,
                                    Axis axis) {
  const char* op = "fake_quantize_log_backward";
  const Guard<device> guard(x);
  const Input input = check_input(op, x, bits, axis);
  const Tensor largest = check_range(op, "scale", scale, input);
  const Tensor incoming = match_layout(op, gradient, input.x);
  Tensor grad_x = at::empty_like(input.x);
  if (x.numel() == 0) return {grad_x, at::zeros_like(scale, at::MemoryFormat::Contiguous)};
  Tensor grad_scale = at::empty(scale.sizes(), scale.options());
  float* of_scale = grad_scale.mutable_data_ptr<float>();
  if constexpr (device == Device::kCPU) {
    cpu::Job job = log_job(op, input, largest, bits, grad_x);
    job.gradient = incoming.const_data_ptr();
    const ChannelSums sums = sum_over_parts(
        input, [&](int64_t begin, int64_t end, double* first, double*) { kernels().backward(job, begin, end, first); });
    std::transform(sums.first.begin(), sums.first.end(), of_scale, [](double sum) { return static_cast<float>(sum); });
  } else {
    auto params = log_params(input, largest, bits, grad_x);
    params.gradient = incoming.const_data_ptr();
    params.grad_scale = of_scale;
    const int64_t size = fake_quantize_learned_workspace_cuda(params);
    const Tensor workspace = at::empty({size}, scale.options().dtype(at::kDouble));
    params.workspace = workspace.mutable_data_ptr<double>();
    launch(fake_quantize_log_backward_cuda, params);
  }
  return {grad_x, grad_scale};
}

template <Device device>
void register_ops(torch::Library& library) {
  library.impl("fake_quantize_log", &forward<device>);
  library.impl("fake_quantize_log_backward", &backward<device>);
}

SYNQ_REGISTER(register_ops)

}  // namespace
}  // namespace synq
