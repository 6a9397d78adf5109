// synq_fast::relu_fake_quantize and its gradient.
#include "relu_fake_quantize.h"

#include <ATen/ops/empty_like.h>

#include "cpu/relu_fake_quantize.h"
#include "ops/affine_table.h"
#include "ops/device.h"
#include "ops/parallel.h"
#include "ops/upper.h"

namespace synq {
namespace {

using at::Tensor;
using Axis = std::optional<int64_t>;
using Upper = std::optional<double>;

const cpu::ReluFakeQuantizeKernels& kernels() {
  using namespace cpu;
  return SYNQ_SELECT(relu_fake_quantize_kernels);
}

template <Device device>
Tensor forward(const Tensor& x, const Tensor& range_min, const Tensor& range_max, int64_t bits, Axis axis, Upper upper,
               bool /*clip*/) {
  const char* op = "relu_fake_quantize";
  const Guard<device> guard(x);
  const Input input = check_input(op, x, bits, axis);
  const Ranges ranges(op, range_min, range_max, input);
  const float bound = check_upper(op, upper);
  Tensor y = at::empty_like(input.x);
  if constexpr (device == Device::kCPU) {
    const AffineTable table(op, ranges, input, bits);
    auto job = make_job<cpu::ReluJob>(input, table, bits, y);
    job.upper = bound;
    for_each_part(x.numel(), 1, [&](int64_t begin, int64_t end) { kernels().relu(job, begin, end); });
  } else if (x.numel() > 0) {
    auto params = make_params<ReluFakeQuantizeParams>(input, ranges, bits);
    params.upper = bound;
    params.y = y.mutable_data_ptr();
    launch(relu_fake_quantize_cuda, params);
  }
  return y;
}

template <Device device>
Tensor backward(const Tensor& gradient, const Tensor& x, const Tensor& range_min, const Tensor& range_max, int64_t bits,
                Axis axis, Upper upper, bool clip) {
  const char* op = "relu_fake_quantize_backward";
  const Guard<device> guard(x);
  const Input input = check_input(op, x, bits, axis);
  const Ranges ranges(op, range_min, range_max, input);
  const float bound = check_upper(op, upper);
  const Tensor incoming = match_layout(op, gradient, input.x);
  Tensor result = at::empty_like(input.x);
  const auto fill = [&](auto& work) {
    work.upper = bound;
    work.gradient = incoming.const_data_ptr();
    work.clip = clip;
  };
  if constexpr (device == Device::kCPU) {
    const AffineTable table(op, ranges, input, bits);
    auto job = make_job<cpu::ReluJob>(input, table, bits, result);
    fill(job);
    for_each_part(x.numel(), 1, [&](int64_t begin, int64_t end) { kernels().relu_backward(job, begin, end); });
  } else if (x.numel() > 0) {
    auto params = make_params<ReluFakeQuantizeParams>(input, ranges, bits);
    fill(params);
    params.y = result.mutable_data_ptr();
    launch(relu_fake_quantize_backward_cuda, params);
  }
  return result;
}

template <Device device>
void register_ops(torch::Library& library) {
  library.impl("relu_fake_quantize", &forward<device>);
  library.impl("relu_fake_quantize_backward", &backward<device>);
}

SYNQ_REGISTER(register_ops)

}  // namespace
}  // namespace synq
