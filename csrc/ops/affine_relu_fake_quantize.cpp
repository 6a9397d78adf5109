// synq_fast::affine_relu_fake_quantize and its gradients.
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "cpu/relu_fake_quantize.h"
#include "ops/affine_table.h"
#include "ops/channel_sums.h"
#include "ops/device.h"
#include "ops/parallel.h"
#include "ops/upper.h"
#include "relu_fake_quantize.h"

namespace synq {
namespace {

using at::Tensor;
using Optional = std::optional<Tensor>;
using Upper = std::optional<double>;

const cpu::ReluFakeQuantizeKernels& kernels() {
  using namespace cpu;
  return SYNQ_SELECT(relu_fake_quantize_kernels);
}

// A summand of x in the memory layout of x; undefined where none was given.
Tensor check_residual(const char* op, const Optional& residual, const Tensor& x) {
  if (!residual || !residual->defined()) return {};
  require_type(residual->scalar_type() == x.scalar_type(), op, "residual");
  require(residual->sizes() == x.sizes() && residual->device() == x.device(), op, "residual");
  return residual->strides() == x.strides() ? *residual : at::empty_like(x).copy_(*residual);
}

// The checked arguments: x by its channels, and one range for all of them.
struct Arguments {
  Input input;
  Tensor weight;
  Tensor bias;
  Tensor residual;  // undefined: none
  Ranges ranges;
  float upper;

  Arguments(const char* op, const Tensor& x, const Tensor& given_weight, const Tensor& given_bias,
            const Optional& given_residual, const Tensor& range_min, const Tensor& range_max, int64_t bits, Upper bound)
      : input(check_channels(op, x, bits)),
        weight(check_range(op, "weight", given_weight, input)),
        bias(check_range(op, "bias", given_bias, input)),
        residual(check_residual(op, given_residual, input.x)),
        ranges(op, range_min, range_max, whole(input)),
        upper(check_upper(op, bound)) {}

  const void* summand() const { return residual.defined() ? residual.const_data_ptr() : nullptr; }

  ReluFakeQuantizeParams params(int64_t bits, Tensor& y) const {
    auto result = make_params<ReluFakeQuantizeParams>(input, ranges, bits);
    result.y = y.mutable_data_ptr();
    result.weight = weight.const_data_ptr<float>();
    result.bias = bias.const_data_ptr<float>();
    result.residual = summand();
    result.upper = upper;
    return result;
  }
};

// What the CPU kernels read: the grid, and the map, repeated where channels are innermost and few: rows are then long
// enough for vectors.
class Tables {
 public:
  Tables(const char* op, const Arguments& arguments, int64_t bits)
      : arguments_(arguments),
        grid_(op, arguments.ranges, whole(arguments.input), bits),
        columns_(arguments.input.channels) {
    const Input& input = arguments.input;
    const bool short_rows = input.inner == 1 && columns_ > 1 && columns_ <= kColumns / 2;
    if (!short_rows || input.elements() < 4 * kColumns) return;
    columns_ = kColumns / columns_ * columns_;
    values_.resize(2 * columns_);
    for (int64_t i = 0; i < columns_; i += input.channels) {
      std::copy_n(arguments.weight.const_data_ptr<float>(), input.channels, values_.data() + i);
      std::copy_n(arguments.bias.const_data_ptr<float>(), input.channels, values_.data() + columns_ + i);
    }
  }

  cpu::ReluJob job(int64_t bits, Tensor& y) const {
    auto result = make_job<cpu::ReluJob>(arguments_.input, bits, y);
    const bool repeated = !values_.empty();
    result.scale = grid_.scale();
    result.zero_point = grid_.zero_point();
    result.upper = arguments_.upper;
    result.weight = repeated ? values_.data() : arguments_.weight.const_data_ptr<float>();
    result.bias = repeated ? values_.data() + columns_ : arguments_.bias.const_data_ptr<float>();
    result.channels = columns_;
    result.sums = arguments_.input.channels;
    result.residual = arguments_.summand();
    return result;
  }

 private:
  static constexpr int64_t kColumns = 512;

  const Arguments& arguments_;
  AffineTable grid_;
  int64_t columns_;
  std::vector<float> values_;
};

template <Device device>
Tensor forward(const Tensor& x, const Tensor& weight, const Tensor& bias, const Optional& residual,
               const Tensor& range_min, const Tensor& range_max, int64_t bits, Upper upper, bool /*clip*/) {
  const char* op = "affine_relu_fake_quantize";
  const Guard<device> guard(x);
  const Arguments arguments(op, x, weight, bias, residual, range_min, range_max, bits, upper);
  Tensor y = at::empty_like(arguments.input.x);
  if constexpr (device == Device::kCPU) {
    const Tables tables(op, arguments, bits);
    const cpu::ReluJob job = tables.job(bits, y);
    for_each_part(x.numel(), 1, [&](int64_t begin, int64_t end) { kernels().affine_relu(job, begin, end); });
  } else if (x.numel() > 0) {
    launch(affine_relu_fake_quantize_cuda, arguments.params(bits, y));
  }
  return y;
}

template <Device device>
std::tuple<Tensor, Tensor, Tensor, Tensor> backward(const Tensor& gradient, const Tensor& x, const Tensor& weight,
                                                    const Tensor& bias, const Optional& residual,
                                                    const Tensor& range_min, const Tensor& range_max, int64_t bits,
                                                    Upper upper, bool clip, bool parameters, bool of_residual) {
  const char* op = "affine_relu_fake_quantize_backward";
  const Guard<device> guard(x);
  const Arguments arguments(op, x, weight, bias, residual, range_min, range_max, bits, upper);
  const Input& input = arguments.input;
  require(!of_residual || arguments.residual.defined(), op, "of_residual");
  const Tensor incoming = match_layout(op, gradient, input.x);
  Tensor grad_x = at::empty_like(input.x);
  Tensor grad_weight = at::empty({parameters ? input.channels : 0}, weight.options());
  Tensor grad_bias = at::empty_like(grad_weight);
  Tensor grad_residual = of_residual ? at::empty_like(input.x) : at::empty({0}, input.x.options());
  if (x.numel() == 0) return {grad_x, grad_weight.zero_(), grad_bias.zero_(), grad_residual};
  float* of_weight = grad_weight.mutable_data_ptr<float>();
  float* of_bias = grad_bias.mutable_data_ptr<float>();
  if constexpr (device == Device::kCPU) {
    const Tables tables(op, arguments, bits);
    cpu::ReluJob job = tables.job(bits, grad_x);
    job.gradient = incoming.const_data_ptr();
    if (of_residual) job.of_residual = grad_residual.mutable_data_ptr();
    job.clip = clip;
    const auto kernel = kernels().affine_relu_backward;
    if (parameters) {
      const ChannelSums sums = sum_over_parts(input, [&](int64_t begin, int64_t end, double* first, double* second) {
        kernel(job, begin, end, first, second);
      });
      std::copy(sums.first.begin(), sums.first.end(), of_weight);
      std::copy(sums.second.begin(), sums.second.end(), of_bias);
    } else {
      for_each_part(x.numel(), 1, [&](int64_t begin, int64_t end) { kernel(job, begin, end, nullptr, nullptr); });
    }
  } else {
    ReluFakeQuantizeParams params = arguments.params(bits, grad_x);
    params.gradient = incoming.const_data_ptr();
    if (of_residual) params.grad_residual = grad_residual.mutable_data_ptr();
    params.clip = clip;
    if (parameters) {
      params.grad_weight = of_weight;
      params.grad_bias = of_bias;
    }
    const int64_t size = affine_relu_fake_quantize_workspace_cuda(params);
    const Tensor workspace = at::empty({size}, weight.options().dtype(at::kDouble));
    params.workspace = workspace.mutable_data_ptr<double>();
    launch(affine_relu_fake_quantize_backward_cuda, params);
  }
  return {grad_x, grad_weight, grad_bias, grad_residual};
}

template <Device device>
void register_ops(torch::Library& library) {
  library.impl("affine_relu_fake_quantize", &forward<device>);
  library.impl("affine_relu_fake_quantize_backward", &backward<device>);
}

SYNQ_REGISTER(register_ops)

}  // namespace
}  // namespace synq
