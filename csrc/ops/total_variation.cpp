// synq_fast::total_variation and its gradient.
#include "total_variation.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include <cmath>
#include <tuple>
#include <vector>

#include "ops/device.h"
#include "ops/parallel.h"
#include "ops/tensors.h"

namespace synq {
namespace {

using at::Tensor;

const cpu::TotalVariationKernels& kernels() {
  using namespace cpu;
  return SYNQ_SELECT(total_variation_kernels);
}

TotalVariationParams make_params(const char* op, const Planes& images, int64_t groups) {
  TotalVariationParams params{};
  static_cast<PlaneLayout&>(params) = images;
  params.x = images.x.const_data_ptr();
  params.groups = groups;
  params.dtype = check_dtype(op, "x", images.x);
  return params;
}

// The sums of every row are added up in order, so threads do not show.
void compute(const TotalVariationParams& params) {
  const int64_t rows = params.planes * params.height;
  const int64_t length = params.width * params.step;
  std::vector<double> sums(4 * rows);
  for_each_part(rows, length, [&](int64_t begin, int64_t end) {
    std::vector<float> scratch(2 * length);
    kernels().sums(params, begin, end, sums.data() + 4 * begin, scratch.data());
  });
  const int64_t group_rows = rows / params.groups;
  for (int64_t group = 0; group < params.groups; ++group) {
    double value = 0.0;
    for (int64_t d = 0; d < 4; ++d) {
      double sum = 0.0;
      for (int64_t row = group * group_rows; row < (group + 1) * group_rows; ++row) sum += sums[4 * row + d];
      params.norms[4 * group + d] = static_cast<float>(std::sqrt(sum));
      value += std::sqrt(sum);
    }
    params.value[group] = static_cast<float>(value);
  }
}

template <Device device>
std::tuple<Tensor, Tensor> forward(const Tensor& x, bool per_image) {
  const Guard<device> guard(x);
  const char* op = "total_variation";
  require(x.dim() == 4, op, "x");
  const Planes images(op, x);
  const auto floats = floats_like(x);
  const int64_t groups = per_image ? x.size(0) : 1;
  Tensor value = per_image ? at::empty({groups}, floats) : at::empty({}, floats);
  Tensor norms = at::empty({groups, 4}, floats);
  TotalVariationParams params = make_params(op, images, groups);
  if (x.numel() == 0) return {value.zero_(), norms.zero_()};
  params.value = value.mutable_data_ptr<float>();
  params.norms = norms.mutable_data_ptr<float>();
  if constexpr (device == Device::kCPU) {
    compute(params);
  } else {
    const Tensor workspace = at::empty({total_variation_workspace_cuda(params)}, floats.dtype(at::kDouble));
    params.workspace = workspace.mutable_data_ptr<double>();
    launch(total_variation_cuda, params);
  }
  return {value, norms};
}

template <Device device>
Tensor backward(const Tensor& gradient, const Tensor& x, const Tensor& given_norms) {
  const char* op = "total_variation_backward";
  const Guard<device> guard(x);
  require(x.dim() == 4, op, "x");
  const Planes images(op, x);
  require(given_norms.dim() == 2 && given_norms.size(1) == 4 && given_norms.scalar_type() == at::kFloat &&
              given_norms.device() == x.device() && (given_norms.size(0) == 1 || given_norms.size(0) == x.size(0)),
          op, "norms");
  require(gradient.numel() == given_norms.size(0) && gradient.device() == x.device(), op, "grad");
  Tensor result = at::empty_like(x);
  if (x.numel() == 0) return result;
  Tensor dense = images.x.strides() == result.strides() ? result : at::empty_like(images.x);
  const Tensor incoming = gradient.to(at::kFloat).contiguous();
  Tensor norms = given_norms.contiguous();
  TotalVariationParams params = make_params(op, images, norms.size(0));
  params.norms = norms.mutable_data_ptr<float>();
  params.y = dense.mutable_data_ptr();
  if constexpr (device == Device::kCPU) {
    std::vector<float> factors(4 * params.groups);
    for (int64_t i = 0; i < 4 * params.groups; ++i) {
      factors[i] = params.norms[i] == 0.0f ? 0.0f : incoming.const_data_ptr<float>()[i / 4] / params.norms[i];
    }
    params.factors = factors.data();
    const int64_t length = images.width * images.step;
    for_each_part(images.rows(), length, [&](int64_t begin, int64_t end) {
      std::vector<float> scratch(4 * length);
      kernels().backward(params, begin, end, scratch.data());
    });
  } else {
    params.gradient = incoming.const_data_ptr<float>();
    launch(total_variation_backward_cuda, params);
  }
  return dense.is_same(result) ? result : result.copy_(dense);
}

template <Device device>
void register_ops(torch::Library& library) {
  library.impl("total_variation", &forward<device>);
  library.impl("total_variation_backward", &backward<device>);
}

SYNQ_REGISTER(register_ops)

}  // namespace
}  // namespace synq
