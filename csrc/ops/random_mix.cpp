// synq_fast::random_mix and its gradients.
#include "random_mix.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/empty_strided.h>

#include <tuple>

#include "ops/device.h"
#include "ops/draws.h"
#include "ops/parallel.h"
#include "ops/tensors.h"

namespace synq {
namespace {

using at::Tensor;

const cpu::RandomMixKernels& kernels() {
  using namespace cpu;
  return SYNQ_SELECT(random_mix_kernels);
}

RandomMixParams make_params(const char* op, const Tensor& seed, double keep, int64_t offset, const char* name,
                            const Tensor& x) {
  RandomMixParams params{};
  params.dtype = check_dtype(op, name, x);
  params.elements = x.numel();
  params.seed = check_seed(op, seed, x);
  params.threshold = check_keep(op, keep);
  params.offset = check_offset(op, offset);
  return params;
}

template <Device device>
Tensor forward(const Tensor& a, const Tensor& b, const Tensor& seed, double keep, int64_t offset) {
  const char* op = "random_mix";
  const Guard<device> guard(a);
  RandomMixParams params = make_params(op, seed, keep, offset, "a", a);
  require_type(b.scalar_type() == a.scalar_type(), op, "b");
  require(b.device() == a.device() && b.sizes() == a.sizes(), op, "b");
  const Tensor first = make_dense(a);
  const Tensor second = match_layout(op, b, first);
  Tensor y = at::empty_like(first);
  params.a = first.const_data_ptr();
  params.b = second.const_data_ptr();
  params.y = y.mutable_data_ptr();
  if constexpr (device == Device::kCPU) {
    const auto part = [&](int64_t begin, int64_t end) { kernels().forward(params, begin, end); };
    for_each_part(params.elements, 1, part);
  } else if (params.elements > 0) {
    launch(random_mix_cuda, params);
  }
  return y;
}

template <Device device>
std::tuple<Tensor, Tensor> backward(const Tensor& grad, const Tensor& seed, at::IntArrayRef strides, double keep,
                                    bool of_a, bool of_b, int64_t offset) {
  const char* op = "random_mix_backward";
  const Guard<device> guard(grad);
  RandomMixParams params = make_params(op, seed, keep, offset, "grad", grad);
  require(strides.size() == static_cast<size_t>(grad.dim()), op, "strides");
  // Draws follow memory, which these strides fill.
  const Tensor like = at::empty_strided(grad.sizes(), strides, grad.options());
  require(like.is_non_overlapping_and_dense(), op, "strides");
  const Tensor incoming = grad.strides() == strides ? grad : at::empty_like(like).copy_(grad);
  Tensor grad_a = of_a ? like : at::empty({0}, grad.options());
  Tensor grad_b = of_b ? (of_a ? at::empty_like(like) : like) : at::empty({0}, grad.options());
  params.gradient = incoming.const_data_ptr();
  if (of_a) params.grad_a = grad_a.mutable_data_ptr();
  if (of_b) params.grad_b = grad_b.mutable_data_ptr();
  if constexpr (device == Device::kCPU) {
    const auto part = [&](int64_t begin, int64_t end) { kernels().backward(params, begin, end); };
    for_each_part(params.elements, 1, part);
  } else if (params.elements > 0) {
    launch(random_mix_backward_cuda, params);
  }
  return {grad_a, grad_b};
}

template <Device device>
void register_ops(torch::Library& library) {
  library.impl("random_mix", &forward<device>);
  library.impl("random_mix_backward", &backward<device>);
}

SYNQ_REGISTER(register_ops)

}  // namespace
}  // namespace synq
