// synq_fast::fake_quantize and its gradient.
#include "fake_quantize.h"

#include <ATen/ops/empty_like.h>

#include "cpu/fake_quantize.h"
#include "ops/affine_table.h"
#include "ops/device.h"
#include "ops/parallel.h"
#include "ops/quantized.h"

namespace synq {
namespace {

using at::Tensor;
using Optional = std::optional<int64_t>;

const cpu::FakeQuantizeKernels& kernels() {
  using namespace cpu;
  return SYNQ_SELECT(fake_quantize_kernels);
}

template <Device device>
Tensor forward(const Tensor& x, const Tensor& range_min, const Tensor& range_max, int64_t bits, Optional axis,
               Optional groups, bool /*clip*/) {
  const char* op = "fake_quantize";
  const Guard<device> guard(x);
  const Input input = check_input(op, x, bits, axis, groups);
  const Ranges ranges(op, range_min, range_max, input);
  Tensor y = at::empty_like(input.x);
  if constexpr (device == Device::kCPU) {
    const AffineTable table(op, ranges, input, bits);
    const auto job = make_job<cpu::Job>(input, table, bits, y);
    for_each_part(x.numel(), 1, [&](int64_t begin, int64_t end) { kernels().fake_quantize(job, begin, end); });
  } else if (x.numel() > 0) {
    auto params = make_params<FakeQuantizeParams>(input, ranges, bits);
    params.y = y.mutable_data_ptr();
    launch(fake_quantize_cuda, params);
  }
  return y;
}

template <Device device>
Tensor backward(const Tensor& gradient, const Tensor& x, const Tensor& range_min, const Tensor& range_max, int64_t bits,
                Optional axis, Optional groups) {
  const char* op = "fake_quantize_backward";
  const Guard<device> guard(x);
  const Input input = check_input(op, x, bits, axis, groups);
  const Ranges ranges(op, range_min, range_max, input);
  const Tensor incoming = match_layout(op, gradient, input.x);
  Tensor result = at::empty_like(input.x);
  if constexpr (device == Device::kCPU) {
    const AffineTable table(op, ranges, input, bits);
    auto job = make_job<cpu::Job>(input, table, bits, result);
    job.gradient = incoming.const_data_ptr();
    for_each_part(x.numel(), 1, [&](int64_t begin, int64_t end) { kernels().fake_quantize_backward(job, begin, end); });
  } else if (x.numel() > 0) {
    auto params = make_params<FakeQuantizeParams>(input, ranges, bits);
    params.gradient = incoming.const_data_ptr();
    params.y = result.mutable_data_ptr();
    launch(fake_quantize_backward_cuda, params);
  }
  return result;
}

template <Device device>
void register_ops(torch::Library& library) {
  library.impl("fake_quantize", &forward<device>);
  library.impl("fake_quantize_backward", &backward<device>);
}

SYNQ_REGISTER(register_ops)

}  // namespace
}  // namespace synq
