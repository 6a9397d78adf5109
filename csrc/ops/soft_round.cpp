// synq_fast::soft_round and its gradients.
#include "soft_round.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros_like.h>
#include <c10/util/SmallVector.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "learned_grid.h"
#include "ops/channel_sums.h"
#include "ops/device.h"
#include "ops/parallel.h"
#include "ops/quantized.h"

namespace synq {
namespace {

using at::Tensor;
using Axis = std::optional<int64_t>;

constexpr int64_t kMaximumBits = 8;

const cpu::SoftRoundKernels& kernels() {
  using namespace cpu;
  return SYNQ_SELECT(soft_round_kernels);
}

// What both directions are given, checked, and for as long as kernels need the pointers.
struct Arguments {
  Input input;
  Tensor base;
  Tensor scale;
  Tensor zero_point;
  Tensor exponent;
  SoftRoundParams params{};
  c10::SmallVector<float, 64> offsets;  // the zero points rounded, on the CPU

  Arguments(const char* op, const Tensor& v, const Tensor& given_base, const Tensor& given_scale,
            const Tensor& given_zero_point, const Tensor& given_exponent, int64_t bits, Axis axis)
      : input(check_input(op, v, bits, axis)) {
    require_type(v.scalar_type() == at::kFloat, op, "v");
    require(bits <= kMaximumBits, op, "bits");
    require_type(given_base.scalar_type() == at::kChar, op, "base");
    require(given_base.sizes() == v.sizes() && given_base.device() == v.device(), op, "base");
    const bool together = given_base.strides() == input.x.strides();
    base = together ? given_base : at::empty_like(input.x, given_base.options()).copy_(given_base);
    scale = check_range(op, "scale", given_scale, input);
    zero_point = check_range(op, "zero_point", given_zero_point, input);
    require_type(given_exponent.scalar_type() == at::kFloat, op, "exponent");
    require(given_exponent.numel() == 1 && given_exponent.device() == v.device(), op, "exponent");
    exponent = given_exponent;

    static_cast<Layout&>(params) = input;
    params.v = input.x.const_data_ptr<float>();
    params.base = base.const_data_ptr<int8_t>();
    params.scale = scale.const_data_ptr<float>();
    params.zero_point = zero_point.const_data_ptr<float>();
    params.exponent = exponent.const_data_ptr<float>();
    params.bits = static_cast<int32_t>(bits);
  }

  void round_zero_points(const char* op) {
    for (int64_t i = 0; i < input.channels; ++i) {
      require(!(params.scale[i] <= 0), op, "scale");
      offsets.push_back(learned_grid(params.scale[i], params.zero_point[i]).zero_point);
    }
    params.zero_point = offsets.data();
  }
};

// Parts and their order depend on the number of elements alone.
double forward_in_parts(const SoftRoundParams& params) {
  constexpr int64_t kMostParts = 64;
  const int64_t count = params.elements();
  const int64_t size = std::max(kGrain, (count + kMostParts - 1) / kMostParts);
  std::vector<double> penalties((count + size - 1) / size);
  for_each_part(static_cast<int64_t>(penalties.size()), size, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) {
      kernels().forward(params, part * size, std::min(count, (part + 1) * size), &penalties[part]);
    }
  });
  double penalty = 0.0;
  for (const double part : penalties) penalty += part;
  return penalty;
}

template <Device device>
std::tuple<Tensor, Tensor> forward(const Tensor& v, const Tensor& base, const Tensor& scale, const Tensor& zero_point,
                                   const Tensor& exponent, int64_t bits, Axis axis) {
  const char* op = "soft_round";
  const Guard<device> guard(v);
  Arguments given(op, v, base, scale, zero_point, exponent, bits, axis);
  Tensor w = at::empty_like(given.input.x);
  Tensor penalty = at::empty({}, floats_like(v));
  if (v.numel() == 0) return {w, penalty.zero_()};
  given.params.y = w.mutable_data_ptr<float>();
  if constexpr (device == Device::kCPU) {
    given.round_zero_points(op);
    *penalty.mutable_data_ptr<float>() = static_cast<float>(forward_in_parts(given.params));
  } else {
    const Tensor workspace = at::empty({soft_round_workspace_cuda(given.params)}, floats_like(v).dtype(at::kDouble));
    given.params.workspace = workspace.mutable_data_ptr<double>();
    given.params.penalty = penalty.mutable_data_ptr<float>();
    launch(soft_round_cuda, given.params);
  }
  return {w, penalty};
}

template <Device device>
std::tuple<Tensor, Tensor> backward(const std::optional<Tensor>& grad_w, const std::optional<Tensor>& grad_penalty,
                                    const Tensor& v, const Tensor& base, const Tensor& scale, const Tensor& zero_point,
                                    const Tensor& exponent, int64_t bits, Axis axis) {
  const char* op = "soft_round_backward";
  const Guard<device> guard(v);
  Arguments given(op, v, base, scale, zero_point, exponent, bits, axis);
  Tensor of_v = at::empty_like(given.input.x);
  constexpr auto kContiguous = at::MemoryFormat::Contiguous;
  if (v.numel() == 0 || (!grad_w && !grad_penalty)) return {of_v.zero_(), at::zeros_like(scale, kContiguous)};
  Tensor of_scale = grad_w ? at::empty(scale.sizes(), scale.options()) : at::zeros_like(scale, kContiguous);
  SoftRoundParams& params = given.params;
  params.y = of_v.mutable_data_ptr<float>();
  params.grad_scale = of_scale.mutable_data_ptr<float>();
  Tensor incoming;
  if (grad_w) {
    incoming = match_layout(op, *grad_w, given.input.x);
    params.gradient = incoming.const_data_ptr<float>();
  }
  Tensor factor;
  if (grad_penalty) {
    require(grad_penalty->numel() == 1 && grad_penalty->device() == v.device(), op, "grad_penalty");
    factor = grad_penalty->to(at::kFloat);
    params.grad_penalty = factor.const_data_ptr<float>();
  }
  if constexpr (device == Device::kCPU) {
    given.round_zero_points(op);
    const ChannelSums sums = sum_over_parts(given.input, [&](int64_t begin, int64_t end, double* first, double*) {
      kernels().backward(params, begin, end, first);
    });
    for (int64_t i = 0; grad_w && i < given.input.channels; ++i) {
      params.grad_scale[i] = learned_grad_scale(-sums.first[i], params.scale[i], 1.0);
    }
  } else {
    const Tensor workspace = at::empty({soft_round_workspace_cuda(params)}, floats_like(v).dtype(at::kDouble));
    params.workspace = workspace.mutable_data_ptr<double>();
    launch(soft_round_backward_cuda, params);
  }
  return {of_v, of_scale};
}

template <Device device>
void register_ops(torch::Library& library) {
  library.impl("soft_round", &forward<device>);
  library.impl("soft_round_backward", &backward<device>);
}

SYNQ_REGISTER(register_ops)

}  // namespace
}  // namespace synq
