// synq_fast::softmax_fake_quantize and its gradients.
#include "softmax_fake_quantize.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros_like.h>

#include <algorithm>
#include <cmath>
#include <tuple>
#include <vector>

#include "ops/device.h"
#include "ops/parallel.h"
#include "ops/rows.h"
#include "probability_grid.h"

namespace synq {
namespace {

using at::Tensor;
using Pair = std::tuple<Tensor, Tensor>;

const cpu::SoftmaxFakeQuantizeKernels& kernels() {
  using namespace cpu;
  return SYNQ_SELECT(softmax_fake_quantize_kernels);
}

// What both directions are given, checked, and for as long as kernels need the pointers.
struct Arguments {
  Rows rows;
  Tensor scale;
  SoftmaxFakeQuantizeParams params{};

  Arguments(const char* op, const Tensor& x, const Tensor& given_scale, int64_t bits, double alpha, bool log2)
      : rows(op, "logits", x) {
    require(bits >= 2 && bits <= 16, op, "bits");
    require(std::isfinite(alpha), op, "alpha");
    require_type(given_scale.scalar_type() == at::kFloat, op, "scale");
    require(given_scale.device() == x.device() && given_scale.numel() == 1, op, "scale");
    scale = given_scale.contiguous();
    if (x.is_cpu()) require(!(*scale.const_data_ptr<float>() <= 0), op, "scale");
    params.x = rows.x.const_data_ptr();
    params.scale = scale.const_data_ptr<float>();
    params.rows = rows.count;
    params.columns = rows.columns;
    params.alpha = static_cast<float>(alpha);
    params.bits = static_cast<int32_t>(bits);
    params.log2 = log2;
    params.dtype = rows.dtype;
  }
};

template <Device device>
Tensor forward(const Tensor& x, const Tensor& scale, int64_t bits, double alpha, bool log2, double) {
  const Guard<device> guard(x);
  Arguments given("softmax_fake_quantize", x, scale, bits, alpha, log2);
  Tensor y = at::empty_like(given.rows.x);
  given.params.y = y.mutable_data_ptr();
  if constexpr (device == Device::kCPU) {
    const int64_t columns = given.rows.columns;
    for_each_part(given.rows.count, columns, [&](int64_t begin, int64_t end) {
      std::vector<float> workspace(2 * columns);
      kernels().forward(given.params, begin, end, workspace.data());
    });
  } else if (given.rows.count > 0) {
    launch(softmax_fake_quantize_cuda, given.params);
  }
  return given.rows.restored(y, x);
}

// The sum over all rows, in parts whose borders depend on the sizes alone, added in order.
double backward_in_parts(const SoftmaxFakeQuantizeParams& params) {
  const int64_t size = (kGrain + params.columns - 1) / params.columns;
  const int64_t parts = (params.rows + size - 1) / size;
  std::vector<double> partial(parts);
  for_each_part(parts, size * params.columns, [&](int64_t begin, int64_t end) {
    std::vector<float> workspace(3 * params.columns);
    for (int64_t part = begin; part < end; ++part) {
      const int64_t stop = std::min(params.rows, (part + 1) * size);
      kernels().backward(params, part * size, stop, workspace.data(), &partial[part]);
    }
  });
  double sum = 0.0;
  for (const double part : partial) sum += part;
  return sum;
}

template <Device device>
Pair backward(const Tensor& gradient, const Tensor& x, const Tensor& scale, int64_t bits, double alpha, bool log2,
              double gradient_scale) {
  const char* op = "softmax_fake_quantize_backward";
  const Guard<device> guard(x);
  Arguments given(op, x, scale, bits, alpha, log2);
  const Tensor incoming = match_layout(op, gradient, given.rows.x);
  Tensor of_x = at::empty_like(given.rows.x);
  if (x.numel() == 0) return {given.rows.restored(of_x, x), at::zeros_like(scale, at::MemoryFormat::Contiguous)};
  Tensor of_scale = at::empty(scale.sizes(), scale.options());
  SoftmaxFakeQuantizeParams& params = given.params;
  params.gradient = incoming.const_data_ptr();
  params.y = of_x.mutable_data_ptr();
  params.gradient_scale = gradient_scale;
  params.grad_scale = of_scale.mutable_data_ptr<float>();
  if constexpr (device == Device::kCPU) {
    *params.grad_scale = probability_grad_scale(log2, backward_in_parts(params), *params.scale, gradient_scale);
  } else {
    const int64_t size = softmax_fake_quantize_workspace_cuda(params);
    const Tensor workspace = at::empty({size}, scale.options().dtype(at::kDouble));
    params.workspace = workspace.mutable_data_ptr<double>();
    launch(softmax_fake_quantize_backward_cuda, params);
  }
  return {given.rows.restored(of_x, x), of_scale};
}

template <Device device>
void register_ops(torch::Library& library) {
  library.impl("softmax_fake_quantize", &forward<device>);
  library.impl("softmax_fake_quantize_backward", &backward<device>);
}

SYNQ_REGISTER(register_ops)

}  // namespace
}  // namespace synq
