// synq_fast::fake_quantize_minifloat and its gradient.
#include "fake_quantize_minifloat.h"

#include <ATen/ops/empty_like.h>

#include "cpu/fake_quantize_minifloat.h"
#include "minifloat_grid.h"
#include "ops/affine_table.h"
#include "ops/device.h"
#include "ops/parallel.h"
#include "ops/quantized.h"

namespace synq {
namespace {

using at::Tensor;
using Optional = std::optional<int64_t>;

const cpu::FakeQuantizeMinifloatKernels& kernels() {
  using namespace cpu;
  return SYNQ_SELECT(fake_quantize_minifloat_kernels);
}

Input check_minifloat(const char* op, const Tensor& x, int64_t bits, Optional axis) {
  require(bits >= 3 && bits <= 8, op, "bits");
  return check_input(op, x, bits, axis);
}

template <Device device>
Tensor forward(const Tensor& x, const Tensor& range_min, const Tensor& range_max, int64_t bits, Optional axis,
               bool /*clip*/) {
  const char* op = "fake_quantize_minifloat";
  const Guard<device> guard(x);
  const Input input = check_minifloat(op, x, bits, axis);
  const Ranges ranges(op, range_min, range_max, input);
  Tensor y = at::empty_like(input.x);
  if constexpr (device == Device::kCPU) {
    const AffineTable table(op, ranges, input, minifloat_span(static_cast<int>(bits)));
    const auto job = make_job<cpu::Job>(input, table, bits, y);
    for_each_part(x.numel(), 1, [&](int64_t begin, int64_t end) { kernels().forward(job, begin, end); });
  } else if (x.numel() > 0) {
    auto params = make_params<FakeQuantizeParams>(input, ranges, bits);
    params.y = y.mutable_data_ptr();
    launch(fake_quantize_minifloat_cuda, params);
  }
  return y;
}

template <Device device>
Tensor backward(const Tensor& gradient, const Tensor& x, const Tensor& range_min, const Tensor& range_max, int64_t bits,
                Optional axis) {
  const char* op = "fake_quantize_minifloat_backward";
  const Guard<device> guard(x);
  const Input input = check_minifloat(op, x, bits, axis);
  const Ranges ranges(op, range_min, range_max, input);
  const Tensor incoming = match_layout(op, gradient, input.x);
  Tensor result = at::empty_like(input.x);
  if constexpr (device == Device::kCPU) {
    const AffineTable table(op, ranges, input, minifloat_span(static_cast<int>(bits)));
    auto job = make_job<cpu::Job>(input, table, bits, result);
    job.gradient = incoming.const_data_ptr();
    for_each_part(x.numel(), 1, [&](int64_t begin, int64_t end) { kernels().backward(job, begin, end); });
  } else if (x.numel() > 0) {
    auto params = make_params<FakeQuantizeParams>(input, ranges, bits);
    params.gradient = incoming.const_data_ptr();
    params.y = result.mutable_data_ptr();
    launch(fake_quantize_minifloat_backward_cuda, params);
  }
  return result;
}

template <Device device>
void register_ops(torch::Library& library) {
  library.impl("fake_quantize_minifloat", &forward<device>);
  library.impl("fake_quantize_minifloat_backward", &backward<device>);
}

SYNQ_REGISTER(register_ops)

}  // namespace
}  // namespace synq
