// The CPU implementations of fake quantization with given ranges.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <tuple>

#include "cpu/fake_quantize.h"
#include "ops/affine_table.h"
#include "ops/arguments.h"
#include "ops/parallel.h"

namespace synq {
namespace {

using at::Tensor;
using Optional = std::optional<int64_t>;

const cpu::FakeQuantizeKernels& kernels() {
  using namespace cpu;
  return SYNQ_SELECT(fake_quantize_kernels);
}

template <typename Kernel>
void run(Kernel kernel, const cpu::Job& job, int64_t count) {
  for_each_part(count, 1, [&](int64_t begin, int64_t end) { kernel(job, begin, end); });
}

Tensor fake_quantize_cpu(const Tensor& x, const Tensor& range_min, const Tensor& range_max, int64_t bits, Optional axis,
                         Optional groups, bool /*clip*/) {
  const Input input = check_input("fake_quantize", x, bits, axis, groups);
  const AffineTable table("fake_quantize", range_min, range_max, input, bits);
  Tensor y = at::empty_like(input.x);
  run(kernels().fake_quantize, make_job<cpu::Job>(input, table, bits, y), x.numel());
  return y;
}

Tensor fake_quantize_backward_cpu(const Tensor& gradient, const Tensor& x, const Tensor& range_min,
                                  const Tensor& range_max, int64_t bits, Optional axis, Optional groups) {
  const Input input = check_input("fake_quantize_backward", x, bits, axis, groups);
  const AffineTable table("fake_quantize_backward", range_min, range_max, input, bits);
  const Tensor incoming = match_layout("fake_quantize_backward", gradient, input.x);
  Tensor result = at::empty_like(input.x);
  cpu::Job job = make_job<cpu::Job>(input, table, bits, result);
  job.gradient = incoming.const_data_ptr();
  run(kernels().fake_quantize_backward, job, x.numel());
  return result;
}

std::tuple<Tensor, Tensor, Tensor> quantize_codes_cpu(const Tensor& x, const Tensor& range_min, const Tensor& range_max,
                                                      int64_t bits, Optional axis, Optional groups) {
  const Input input = check_input("quantize_codes", x, bits, axis, groups);
  const AffineTable table("quantize_codes", range_min, range_max, input, bits);
  Tensor codes = at::empty_like(input.x, input.x.options().dtype(bits <= 8 ? at::kChar : at::kShort));
  run(kernels().quantize_codes, make_job<cpu::Job>(input, table, bits, codes), x.numel());
  Tensor scale = at::empty(input.range_shape, input.x.options().dtype(at::kFloat));
  Tensor zero_point = at::empty_like(scale);
  float* scales = scale.mutable_data_ptr<float>();
  float* zero_points = zero_point.mutable_data_ptr<float>();
  for (int64_t i = 0; i < input.channels; ++i) {
    scales[i] = table.channel(i).scale;
    zero_points[i] = table.channel(i).zero_point;
  }
  return {codes, scale, zero_point};
}

}  // namespace

TORCH_LIBRARY_IMPL(synq_fast, CPU, m) {
  m.impl("fake_quantize", &fake_quantize_cpu);
  m.impl("fake_quantize_backward", &fake_quantize_backward_cpu);
  m.impl("quantize_codes", &quantize_codes_cpu);
}

}  // namespace synq
