// The CPU implementations behind synq_fast::fake_quantize_learned.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <c10/util/SmallVector.h>
#include <torch/library.h>

#include <tuple>

#include "cpu/fake_quantize_learned.h"
#include "learned_grid.h"
#include "ops/affine_table.h"
#include "ops/arguments.h"
#include "ops/channel_sums.h"
#include "ops/parallel.h"

namespace synq {
namespace {

using at::Tensor;
using Axis = std::optional<int64_t>;

const cpu::FakeQuantizeKernels& forward_kernels() {
  using namespace cpu;
  return SYNQ_SELECT(fake_quantize_kernels);
}

const cpu::FakeQuantizeLearnedKernels& backward_kernels() {
  using namespace cpu;
  return SYNQ_SELECT(fake_quantize_learned_kernels);
}

// The given scales, and the zero points rounded.
struct LearnedTable {
  Tensor scale;
  c10::SmallVector<float, 64> zero_point;

  LearnedTable(const char* op, const Tensor& given_scale, const Tensor& given_zero_point, const Input& input)
      : scale(check_range(op, "scale", given_scale, input)), zero_point(input.channels) {
    const Tensor offset = check_range(op, "zero_point", given_zero_point, input);
    const float* factors = scale.const_data_ptr<float>();
    const float* offsets = offset.const_data_ptr<float>();
    for (int64_t i = 0; i < input.channels; ++i) {
      TORCH_CHECK_VALUE(!(factors[i] <= 0), op, ": scale must be positive, got ", factors[i],
                        input.channels > 1 ? c10::str(" in channel ", i) : "");
      zero_point[i] = learned_grid(factors[i], offsets[i]).zero_point;
    }
  }

  cpu::Job job(const Input& input, int64_t bits, Tensor& y) const {
    cpu::Job job = make_job<cpu::Job>(input, bits, y);
    job.scale = scale.const_data_ptr<float>();
    job.zero_point = zero_point.data();
    return job;
  }
};

Tensor fake_quantize_learned_cpu(const Tensor& x, const Tensor& scale, const Tensor& zero_point, int64_t bits,
                                 Axis axis, double /*gradient_scale*/) {
  const Input input = check_input("fake_quantize_learned", x, bits, axis);
  const LearnedTable table("fake_quantize_learned", scale, zero_point, input);
  Tensor y = at::empty_like(input.x);
  const cpu::Job job = table.job(input, bits, y);
  for_each_part(x.numel(), 1, [&](int64_t begin, int64_t end) { forward_kernels().fake_quantize(job, begin, end); });
  return y;
}

std::tuple<Tensor, Tensor, Tensor> fake_quantize_learned_backward_cpu(const Tensor& gradient, const Tensor& x,
                                                                      const Tensor& scale, const Tensor& zero_point,
                                                                      int64_t bits, Axis axis, double gradient_scale) {
  const char* op = "fake_quantize_learned_backward";
  const Input input = check_input(op, x, bits, axis);
  const LearnedTable table(op, scale, zero_point, input);
  const Tensor incoming = match_layout(op, gradient, input.x);
  Tensor grad_x = at::empty_like(input.x);
  Tensor grad_scale = at::empty(scale.sizes(), scale.options());
  Tensor grad_zero_point = at::empty(zero_point.sizes(), scale.options());
  cpu::Job job = table.job(input, bits, grad_x);
  job.gradient = incoming.const_data_ptr();
  const ChannelSums sums = sum_over_parts(input, [&](int64_t begin, int64_t end, double* first, double* second) {
    backward_kernels().backward(job, begin, end, first, second);
  });
  float* of_scale = grad_scale.mutable_data_ptr<float>();
  float* of_zero = grad_zero_point.mutable_data_ptr<float>();
  for (int64_t i = 0; i < input.channels; ++i) {
    of_scale[i] = learned_grad_scale(sums.first[i], job.scale[i], gradient_scale);
    of_zero[i] = learned_grad_zero_point(sums.second[i], job.scale[i], gradient_scale);
  }
  return {grad_x, grad_scale, grad_zero_point};
}

}  // namespace

TORCH_LIBRARY_IMPL(synq_fast, CPU, m) {
  m.impl("fake_quantize_learned", &fake_quantize_learned_cpu);
  m.impl("fake_quantize_learned_backward", &fake_quantize_learned_backward_cpu);
}

}  // namespace synq
