// The CPU implementations behind synq_fast::relu_fake_quantize and synq_fast::affine_relu_fake_quantize.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "cpu/relu_fake_quantize.h"
#include "ops/affine_table.h"
#include "ops/arguments.h"
#include "ops/channel_sums.h"
#include "ops/parallel.h"

namespace synq {
namespace {

using at::Tensor;
using Axis = std::optional<int64_t>;
using Optional = std::optional<Tensor>;
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

// The affine map, repeated where channels are innermost and few: rows are then long enough for vectors.
class MapTable {
 public:
  MapTable(const char* op, const Tensor& weight, const Tensor& bias, const Input& input)
      : weight_(check_range(op, "weight", weight, input)),
        bias_(check_range(op, "bias", bias, input)),
        columns_(input.channels) {
    const bool short_rows = input.inner == 1 && columns_ > 1 && columns_ <= kColumns / 2;
    if (!short_rows || input.elements() < 4 * kColumns) return;
    columns_ = kColumns / columns_ * columns_;
    values_.resize(2 * columns_);
    for (int64_t i = 0; i < columns_; i += input.channels) {
      std::copy_n(weight_.const_data_ptr<float>(), input.channels, values_.data() + i);
      std::copy_n(bias_.const_data_ptr<float>(), input.channels, values_.data() + columns_ + i);
    }
  }

  int64_t columns() const { return columns_; }
  const float* weight() const { return values_.empty() ? weight_.const_data_ptr<float>() : values_.data(); }
  const float* bias() const { return values_.empty() ? bias_.const_data_ptr<float>() : values_.data() + columns_; }

 private:
  static constexpr int64_t kColumns = 512;

  Tensor weight_;
  Tensor bias_;
  int64_t columns_;
  std::vector<float> values_;
};

// The checked arguments of the ops with an affine map: x by its channels, and one range for all of them.
struct AffineArguments {
  Input input;
  MapTable map;
  Tensor residual;  // undefined: none
  AffineTable table;
  float upper;

  AffineArguments(const char* op, const Tensor& x, const Tensor& weight, const Tensor& bias, const Optional& given,
                  const Tensor& range_min, const Tensor& range_max, int64_t bits, Upper bound)
      : input(check_channels(op, x, bits)),
        map(op, weight, bias, input),
        residual(check_residual(op, given, input.x)),
        table(op, range_min, range_max, whole(input), bits),
        upper(check_upper(op, bound)) {}

  cpu::ReluJob job(int64_t bits, Tensor& y) const {
    cpu::ReluJob result = make_job<cpu::ReluJob>(input, bits, y);
    result.scale = table.scale();
    result.zero_point = table.zero_point();
    result.upper = upper;
    result.weight = map.weight();
    result.bias = map.bias();
    result.channels = map.columns();
    result.sums = input.channels;
    if (residual.defined()) result.residual = residual.const_data_ptr();
    return result;
  }
};

Tensor affine_relu_cpu(const Tensor& x, const Tensor& weight, const Tensor& bias, const Optional& residual,
                       const Tensor& range_min, const Tensor& range_max, int64_t bits, Upper upper, bool /*clip*/) {
  const AffineArguments arguments("affine_relu_fake_quantize", x, weight, bias, residual, range_min, range_max, bits,
                                  upper);
  Tensor y = at::empty_like(arguments.input.x);
  run(kernels().affine_relu, arguments.job(bits, y), x.numel());
  return y;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> affine_relu_backward_cpu(const Tensor& gradient, const Tensor& x,
                                                                    const Tensor& weight, const Tensor& bias,
                                                                    const Optional& residual, const Tensor& range_min,
                                                                    const Tensor& range_max, int64_t bits, Upper upper,
                                                                    bool clip, bool parameters, bool of_residual) {
  const char* op = "affine_relu_fake_quantize_backward";
  const AffineArguments arguments(op, x, weight, bias, residual, range_min, range_max, bits, upper);
  const Input& input = arguments.input;
  TORCH_CHECK_VALUE(!of_residual || arguments.residual.defined(), op,
                    ": of_residual asks for the gradient of a residual, but there is none");
  const Tensor incoming = match_layout(op, gradient, input.x);
  Tensor grad_x = at::empty_like(input.x);
  Tensor grad_weight = at::empty({parameters ? input.channels : 0}, weight.options());
  Tensor grad_bias = at::empty_like(grad_weight);
  Tensor grad_residual = of_residual ? at::empty_like(input.x) : at::empty({0}, input.x.options());
  cpu::ReluJob job = arguments.job(bits, grad_x);
  job.gradient = incoming.const_data_ptr();
  if (of_residual) job.of_residual = grad_residual.mutable_data_ptr();
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
  return {grad_x, grad_weight, grad_bias, grad_residual};
}

}  // namespace

TORCH_LIBRARY_IMPL(synq_fast, CPU, m) {
  m.impl("relu_fake_quantize", &relu_cpu);
  m.impl("relu_fake_quantize_backward", &relu_backward_cpu);
  m.impl("affine_relu_fake_quantize", &affine_relu_cpu);
  m.impl("affine_relu_fake_quantize_backward", &affine_relu_backward_cpu);
}

}  // namespace synq
