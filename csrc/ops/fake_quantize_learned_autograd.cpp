// Gradients of fake quantization over a learned grid.
#include <tuple>

#include "ops/autograd.h"

namespace synq {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using Axis = std::optional<int64_t>;
using Triple = std::tuple<Tensor, Tensor, Tensor>;

Tensor call_forward(const Tensor& x, const Tensor& scale, const Tensor& zero_point, int64_t bits, Axis axis,
                    double gradient_scale) {
  static const auto op = find_op<Tensor(const Tensor&, const Tensor&, const Tensor&, int64_t, Axis, double)>(
      "synq_fast::fake_quantize_learned");
  at::AutoDispatchBelowADInplaceOrView below;
  return op.call(x, scale, zero_point, bits, axis, gradient_scale);
}

Triple call_backward(const Tensor& gradient, const Tensor& x, const Tensor& scale, const Tensor& zero_point,
                     int64_t bits, Axis axis, double gradient_scale) {
  static const auto op =
      find_op<Triple(const Tensor&, const Tensor&, const Tensor&, const Tensor&, int64_t, Axis, double)>(
          "synq_fast::fake_quantize_learned_backward");
  return op.call(gradient, x, scale, zero_point, bits, axis, gradient_scale);
}

struct FakeQuantizeLearned : torch::autograd::Function<FakeQuantizeLearned> {
  static constexpr bool is_traceable = true;

  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& scale, const Tensor& zero_point,
                        int64_t bits, Axis axis, double gradient_scale) {
    ctx->save_for_backward({x, scale, zero_point});
    ctx->saved_data["bits"] = bits;
    ctx->saved_data["axis"] = axis;
    ctx->saved_data["gradient_scale"] = gradient_scale;
    return call_forward(x, scale, zero_point, bits, axis, gradient_scale);
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& gradients) {
    const auto saved = ctx->get_saved_variables();
    const auto [of_x, of_scale, of_zero_point] =
        call_backward(gradients[0], saved[0], saved[1], saved[2], ctx->saved_data["bits"].toInt(),
                      ctx->saved_data["axis"].toOptional<int64_t>(), ctx->saved_data["gradient_scale"].toDouble());
    return {of_x, of_scale, of_zero_point, {}, {}, {}};
  }
};

struct FakeQuantizeLearnedBackward : torch::autograd::Function<FakeQuantizeLearnedBackward> {
  static variable_list forward(AutogradContext* /*ctx*/, const Tensor& gradient, const Tensor& x, const Tensor& scale,
                               const Tensor& zero_point, int64_t bits, Axis axis, double gradient_scale) {
    at::AutoDispatchBelowADInplaceOrView below;
    const auto [of_x, of_scale, of_zero_point] =
        call_backward(gradient, x, scale, zero_point, bits, axis, gradient_scale);
    return {of_x, of_scale, of_zero_point};
  }
  static variable_list backward(AutogradContext* /*ctx*/, const variable_list& /*gradients*/) {
    refuse_second_derivative("fake_quantize_learned");
  }
};

Tensor fake_quantize_learned(const Tensor& x, const Tensor& scale, const Tensor& zero_point, int64_t bits, Axis axis,
                             double gradient_scale) {
  if (needs_node(x) || needs_node(scale) || needs_node(zero_point)) {
    return FakeQuantizeLearned::apply(x, scale, zero_point, bits, axis, gradient_scale);
  }
  return call_forward(x, scale, zero_point, bits, axis, gradient_scale);
}

Triple fake_quantize_learned_backward(const Tensor& gradient, const Tensor& x, const Tensor& scale,
                                      const Tensor& zero_point, int64_t bits, Axis axis, double gradient_scale) {
  if (needs_node(gradient) || needs_node(x) || needs_node(scale) || needs_node(zero_point)) {
    const variable_list result =
        FakeQuantizeLearnedBackward::apply(gradient, x, scale, zero_point, bits, axis, gradient_scale);
    return {result[0], result[1], result[2]};
  }
  at::AutoDispatchBelowADInplaceOrView below;
  return call_backward(gradient, x, scale, zero_point, bits, axis, gradient_scale);
}

}  // namespace

TORCH_LIBRARY_IMPL(synq_fast, Autograd, m) {
  m.impl("fake_quantize_learned", &fake_quantize_learned);
  m.impl("fake_quantize_learned_backward", &fake_quantize_learned_backward);
}

}  // namespace synq
