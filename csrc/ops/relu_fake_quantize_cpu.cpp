// The CPU implementations behind synq_fast::relu_fake_quantize and synq_fast::affine_relu_fake_quantize.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <algorithm>
#include <tuple>

#include "cpu/relu_fake_quantize.h"
#include "ops/affine_table.h"
#include "ops/arguments.h"
#include "ops/channel_sums.h"
#include "ops/parallel.h"

namespace synq {
namespace {

using at::Tensor;
using Axis = std::optional<int64_t>;
using Upper = std::optional<double>;

const cpu::ReluFakeQuantizeKernels& kernels() {
  using namespace cpu;
  return SYNQ_SELECT(relu_fake_quantize_kernels);
}

template <typename Kernel>
void run(Kernel kernel, const cpu::ReluJob& job, int64_t count) {
  for_each_part(count, 1, [&](int64_t begin, int64_t end) { kernel(job, begin, end); });
}

Tensor relu_cpu(const Tensor& x, const Tensor& range_min, const Tensor& range_max, int64_t bits, Axis axis, Upper upper,
                bool /*clip*/) {
  const char* op = "relu_fake_quantize";
  const Input input = check_input(op, x, bits, axis);
  const AffineTable table(op, range_min, range_max, input, bits);
  const float bound = check_upper(op, upper);
  Tensor y = at::empty_like(input.x);
  cpu::ReluJob job = make_job<cpu::ReluJob>(input, table, bits, y);
  job.upper = bound;
  run(kernels().relu, job, x.numel());
  return y;
}

Tensor relu_backward_cpu(const Tensor& gradient, const Tensor& x, const Tensor& range_min, const Tensor& range_max,
                         int64_t bits, Axis axis, Upper upper, bool clip) {
  const char* op = "relu_fake_quantize_backward";
  const Input input = check_input(op, x, bits, axis);
  const AffineTable table(op, range_min, range_max, input, bits);
  const float bound = check_upper(op, upper);
  const Tensor incoming = match_layout(op, gradient, input.x);
  Tensor result = at::empty_like(input.x);
  cpu::ReluJob job = make_job<cpu::ReluJob>(input, table, bits, result);
  job.upper = bound;
  job.gradient = incoming.const_data_ptr();
  job.clip = clip;
  run(kernels().relu_backward, job, x.numel());
  return result;
}

// The checked arguments of the ops with an affine map: x by its channels, and one range for all of them.
struct AffineArguments {
  Input input;
  Tensor weight;
  Tensor bias;
  AffineTable table;
  float upper;

  AffineArguments(const char* op, const Tensor& x, const Tensor& given_weight, const Tensor& given_bias,
                  const Tensor& range_min, const Tensor& range_max, int64_t bits, Upper bound)
      : input(check_channels(op, x, bits)),
        weight(check_range(op, "weight", given_weight, input)),
        bias(check_range(op, "bias", given_bias, input)),
        table(op, range_min, range_max, whole(input), bits),
        upper(check_upper(op, bound)) {}

  cpu::ReluJob job(int64_t bits, Tensor& y) const {
    cpu::ReluJob result = make_job<cpu::ReluJob>(input, bits, y);
    result.scale = table.scale();
    result.zero_point = table.zero_point();
    result.upper = upper;
    result.weight = weight.const_data_ptr<float>();
    result.bias = bias.const_data_ptr<float>();
    return result;
  }
};

Tensor affine_relu_cpu(const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& range_min,
                       const Tensor& range_max, int64_t bits, Upper upper, bool /*clip*/) {
  const AffineArguments arguments("affine_relu_fake_quantize", x, weight, bias, range_min, range_max, bits, upper);
  Tensor y = at::empty_like(arguments.input.x);
  run(kernels().affine_relu, arguments.job(bits, y), x.numel());
  return y;
}

std::tuple<Tensor, Tensor, Tensor> affine_relu_backward_cpu(const Tensor& gradient, const Tensor& x,
                                                            const Tensor& weight, const Tensor& bias,
                                                            const Tensor& range_min, const Tensor& range_max,
                                                            int64_t bits, Upper upper, bool clip, bool parameters) {
  const char* op = "affine_relu_fake_quantize_backward";
  const AffineArguments arguments(op, x, weight, bias, range_min, range_max, bits, upper);
  const Input& input = arguments.input;
  const Tensor incoming = match_layout(op, gradient, input.x);
  Tensor grad_x = at::empty_like(input.x);
  Tensor grad_weight = at::empty({parameters ? input.channels : 0}, weight.options());
  Tensor grad_bias = at::empty_like(grad_weight);
  cpu::ReluJob job = arguments.job(bits, grad_x);
  job.gradient = incoming.const_data_ptr();
  job.clip = clip;
  if (parameters) {
    const ChannelSums sums = sum_over_parts(input, [&](int64_t begin, int64_t end, double* first, double* second) {
      kernels().affine_relu_backward(job, begin, end, first, second);
    });
    std::copy(sums.first.begin(), sums.first.end(), grad_weight.mutable_data_ptr<float>());
    std::copy(sums.second.begin(), sums.second.end(), grad_bias.mutable_data_ptr<float>());
  } else {
    for_each_part(x.numel(), 1, [&](int64_t begin, int64_t end) {
      kernels().affine_relu_backward(job, begin, end, nullptr, nullptr);
    });
  }
  return {grad_x, grad_weight, grad_bias};
}

}  // namespace

TORCH_LIBRARY_IMPL(synq_fast, CPU, m) {
  m.impl("relu_fake_quantize", &relu_cpu);
  m.impl("relu_fake_quantize_backward", &relu_backward_cpu);
  m.impl("affine_relu_fake_quantize", &affine_relu_cpu);
  m.impl("affine_relu_fake_quantize_backward", &affine_relu_backward_cpu);
}

}  // namespace synq
