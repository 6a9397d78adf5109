// synq_fast::layer_norm_fake_quantize and its gradients.
#include "layer_norm_fake_quantize.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros_like.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "learned_grid.h"
#include "ops/device.h"
#include "ops/parallel.h"
#include "ops/rows.h"

namespace synq {
namespace {

using at::Tensor;
using Five = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

const cpu::LayerNormFakeQuantizeKernels& kernels() {
  using namespace cpu;
  return SYNQ_SELECT(layer_norm_fake_quantize_kernels);
}

// What both directions are given, checked, and for as long as kernels need the pointers.
struct Arguments {
  Rows rows;
  Tensor weight;
  Tensor bias;
  Tensor scale;
  Tensor zero_point;
  LayerNormFakeQuantizeParams params{};

  Arguments(const char* op, const Tensor& x, const Tensor& given_weight, const Tensor& given_bias,
            const Tensor& given_scale, const Tensor& given_zero_point, int64_t bits, double eps)
      : rows(op, "x", x),
        weight(check(op, "weight", given_weight, rows.columns)),
        bias(check(op, "bias", given_bias, rows.columns)),
        scale(check(op, "scale", given_scale, 1)),
        zero_point(check(op, "zero_point", given_zero_point, 1)) {
    require(bits >= 2 && bits <= 16, op, "bits");
    require(eps >= 0, op, "eps");
    if (x.is_cpu()) require(!(*scale.const_data_ptr<float>() <= 0), op, "scale");
    params.x = rows.x.const_data_ptr();
    params.weight = weight.const_data_ptr<float>();
    params.bias = bias.const_data_ptr<float>();
    params.scale = scale.const_data_ptr<float>();
    params.zero_point = zero_point.const_data_ptr<float>();
    params.rows = rows.count;
    params.columns = rows.columns;
    params.eps = static_cast<float>(eps);
    params.bits = static_cast<int32_t>(bits);
    params.dtype = rows.dtype;
  }

  Tensor check(const char* op, const char* name, const Tensor& value, int64_t count) const {
    require_type(value.scalar_type() == at::kFloat, op, name);
    require(value.device() == rows.x.device() && value.numel() == count, op, name);
    return value.contiguous();
  }
};

template <Device device>
Tensor forward(const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& scale, const Tensor& zero_point,
               int64_t bits, double eps, double) {
  const Guard<device> guard(x);
  Arguments given("layer_norm_fake_quantize", x, weight, bias, scale, zero_point, bits, eps);
  Tensor y = at::empty_like(given.rows.x);
  given.params.y = y.mutable_data_ptr();
  if constexpr (device == Device::kCPU) {
    const int64_t columns = given.rows.columns;
    for_each_part(given.rows.count, columns, [&](int64_t begin, int64_t end) {
      std::vector<float> workspace(given.rows.dtype == DType::kFloat32 ? 0 : columns);
      kernels().forward(given.params, begin, end, workspace.data());
    });
  } else if (given.rows.count > 0) {
    launch(layer_norm_fake_quantize_cuda, given.params);
  }
  return given.rows.restored(y, x);
}

// Sums over all rows, in parts whose borders depend on the sizes alone, added in order.
std::vector<double> backward_in_parts(const LayerNormFakeQuantizeParams& params) {
  constexpr int64_t kMostParts = 64;
  const int64_t columns = params.columns;
  const int64_t count = 2 * columns + 2;
  const int64_t size = std::max((kGrain + columns - 1) / columns, (params.rows + kMostParts - 1) / kMostParts);
  const int64_t parts = (params.rows + size - 1) / size;
  std::vector<double> partial(parts * count);
  for_each_part(parts, size * columns, [&](int64_t begin, int64_t end) {
    std::vector<float> workspace(5 * columns);
    for (int64_t part = begin; part < end; ++part) {
      const int64_t stop = std::min(params.rows, (part + 1) * size);
      kernels().backward(params, part * size, stop, workspace.data(), partial.data() + part * count);
    }
  });
  for (int64_t part = 1; part < parts; ++part) {
    for (int64_t i = 0; i < count; ++i) partial[i] += partial[part * count + i];
  }
  partial.resize(count);
  return partial;
}

template <Device device>
Five backward(const Tensor& gradient, const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& scale,
              const Tensor& zero_point, int64_t bits, double eps, double gradient_scale) {
  const char* op = "layer_norm_fake_quantize_backward";
  const Guard<device> guard(x);
  Arguments given(op, x, weight, bias, scale, zero_point, bits, eps);
  const Tensor incoming = match_layout(op, gradient, given.rows.x);
  Tensor of_x = at::empty_like(given.rows.x);
  if (x.numel() == 0) {
    constexpr auto kContiguous = at::MemoryFormat::Contiguous;
    const auto zeros = [](const Tensor& value) { return at::zeros_like(value, kContiguous); };
    return {given.rows.restored(of_x, x), zeros(weight), zeros(bias), zeros(scale), zeros(zero_point)};
  }
  const auto like = [](const Tensor& value) { return at::empty(value.sizes(), value.options()); };
  Five results(of_x, like(weight), like(bias), like(scale), like(zero_point));
  LayerNormFakeQuantizeParams& params = given.params;
  params.gradient = incoming.const_data_ptr();
  params.y = of_x.mutable_data_ptr();
  params.gradient_scale = gradient_scale;
  params.grad_weight = std::get<1>(results).mutable_data_ptr<float>();
  params.grad_bias = std::get<2>(results).mutable_data_ptr<float>();
  params.grad_scale = std::get<3>(results).mutable_data_ptr<float>();
  params.grad_zero_point = std::get<4>(results).mutable_data_ptr<float>();
  if constexpr (device == Device::kCPU) {
    const std::vector<double> sums = backward_in_parts(params);
    for (int64_t i = 0; i < params.columns; ++i) {
      params.grad_weight[i] = static_cast<float>(sums[i]);
      params.grad_bias[i] = static_cast<float>(sums[params.columns + i]);
    }
    *params.grad_scale = learned_grad_scale(sums[2 * params.columns], *params.scale, gradient_scale);
    *params.grad_zero_point = learned_grad_zero_point(sums[2 * params.columns + 1], *params.scale, gradient_scale);
  } else {
    const Tensor workspace = at::empty({layer_norm_fake_quantize_workspace_cuda(params)}, scale.options());
    params.workspace = workspace.mutable_data_ptr<float>();
    launch(layer_norm_fake_quantize_backward_cuda, params);
  }
  std::get<0>(results) = given.rows.restored(of_x, x);
  return results;
}

template <Device device>
void register_ops(torch::Library& library) {
  library.impl("layer_norm_fake_quantize", &forward<device>);
  library.impl("layer_norm_fake_quantize_backward", &backward<device>);
}

SYNQ_REGISTER(register_ops)

}  // namespace
}  // namespace synq
