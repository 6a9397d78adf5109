// Gradients of ReLU and fake quantization in one pass, alone and after a per-channel affine map.
#include <tuple>

#include "ops/autograd.h"

namespace synq {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using Axis = std::optional<int64_t>;
using Upper = std::optional<double>;
using Optional = std::optional<Tensor>;
using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor>;  // of x, weight, bias and the residual

Tensor call_relu(const Tensor& x, const Tensor& range_min, const Tensor& range_max, int64_t bits, Axis axis,
                 Upper upper, bool clip) {
  static const auto op = find_op<Tensor(const Tensor&, const Tensor&, const Tensor&, int64_t, Axis, Upper, bool)>(
      "synq_fast::relu_fake_quantize");
  at::AutoDispatchBelowADInplaceOrView below;
  return op.call(x, range_min, range_max, bits, axis, upper, clip);
}

// Not below autograd: the gradient of the gradient records its own node.
Tensor call_relu_backward(const Tensor& gradient, const Tensor& x, const Tensor& range_min, const Tensor& range_max,
                          int64_t bits, Axis axis, Upper upper, bool clip) {
  static const auto op =
      find_op<Tensor(const Tensor&, const Tensor&, const Tensor&, const Tensor&, int64_t, Axis, Upper, bool)>(
          "synq_fast::relu_fake_quantize_backward");
  return op.call(gradient, x, range_min, range_max, bits, axis, upper, clip);
}

Tensor call_affine(const Tensor& x, const Tensor& weight, const Tensor& bias, const Optional& residual,
                   const Tensor& range_min, const Tensor& range_max, int64_t bits, Upper upper, bool clip) {
  static const auto op = find_op<Tensor(const Tensor&, const Tensor&, const Tensor&, const Optional&, const Tensor&,
                                        const Tensor&, int64_t, Upper, bool)>("synq_fast::affine_relu_fake_quantize");
  at::AutoDispatchBelowADInplaceOrView below;
  return op.call(x, weight, bias, residual, range_min, range_max, bits, upper, clip);
}

Gradients call_affine_backward(const Tensor& gradient, const Tensor& x, const Tensor& weight, const Tensor& bias,
                               const Optional& residual, const Tensor& range_min, const Tensor& range_max, int64_t bits,
                               Upper upper, bool clip, bool parameters, bool of_residual) {
  static const auto op = find_op<Gradients(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Optional&,
                                           const Tensor&, const Tensor&, int64_t, Upper, bool, bool, bool)>(
      "synq_fast::affine_relu_fake_quantize_backward");
  return op.call(gradient, x, weight, bias, residual, range_min, range_max, bits, upper, clip, parameters, of_residual);
}

void save_relu(AutogradContext* ctx, const Tensor& x, const Tensor& range_min, const Tensor& range_max, int64_t bits,
               Axis axis, Upper upper, bool clip) {
  ctx->save_for_backward({x, range_min, range_max});
  ctx->saved_data["bits"] = bits;
  ctx->saved_data["axis"] = axis;
  ctx->saved_data["upper"] = upper;
  ctx->saved_data["clip"] = clip;
}

Tensor relu_gradient(AutogradContext* ctx, const Tensor& gradient) {
  const auto saved = ctx->get_saved_variables();
  auto& data = ctx->saved_data;
  return call_relu_backward(gradient, saved[0], saved[1], saved[2], data["bits"].toInt(),
                            data["axis"].toOptional<int64_t>(), data["upper"].toOptional<double>(),
                            data["clip"].toBool());
}

struct ReluFakeQuantize : torch::autograd::Function<ReluFakeQuantize> {
  static constexpr bool is_traceable = true;

  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& range_min, const Tensor& range_max,
                        int64_t bits, Axis axis, Upper upper, bool clip) {
    save_relu(ctx, x, range_min, range_max, bits, axis, upper, clip);
    return call_relu(x, range_min, range_max, bits, axis, upper, clip);
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& gradients) {
    return {relu_gradient(ctx, gradients[0]), {}, {}, {}, {}, {}, {}};
  }
};

// Linear in the incoming gradient with a symmetric mask, so it is its own derivative.
struct ReluFakeQuantizeBackward : torch::autograd::Function<ReluFakeQuantizeBackward> {
  static constexpr bool is_traceable = true;

  static Tensor forward(AutogradContext* ctx, const Tensor& gradient, const Tensor& x, const Tensor& range_min,
                        const Tensor& range_max, int64_t bits, Axis axis, Upper upper, bool clip) {
    save_relu(ctx, x, range_min, range_max, bits, axis, upper, clip);
    at::AutoDispatchBelowADInplaceOrView below;
    return call_relu_backward(gradient, x, range_min, range_max, bits, axis, upper, clip);
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& gradients) {
    return {relu_gradient(ctx, gradients[0]), {}, {}, {}, {}, {}, {}, {}};
  }
};

struct AffineReluFakeQuantize : torch::autograd::Function<AffineReluFakeQuantize> {
  static constexpr bool is_traceable = true;

  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& weight, const Tensor& bias,
                        const Optional& residual, const Tensor& range_min, const Tensor& range_max, int64_t bits,
                        Upper upper, bool clip) {
    ctx->save_for_backward({x, weight, bias, residual.value_or(Tensor()), range_min, range_max});
    ctx->saved_data["bits"] = bits;
    ctx->saved_data["upper"] = upper;
    ctx->saved_data["clip"] = clip;
    return call_affine(x, weight, bias, residual, range_min, range_max, bits, upper, clip);
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& gradients) {
    const auto saved = ctx->get_saved_variables();
    auto& data = ctx->saved_data;
    const bool parameters = ctx->needs_input_grad(1) || ctx->needs_input_grad(2);
    const Optional residual = saved[3].defined() ? Optional(saved[3]) : std::nullopt;
    const bool of_residual = residual && ctx->needs_input_grad(3);
    auto [of_x, of_weight, of_bias, of_summand] = call_affine_backward(
        gradients[0], saved[0], saved[1], saved[2], residual, saved[4], saved[5], data["bits"].toInt(),
        data["upper"].toOptional<double>(), data["clip"].toBool(), parameters, of_residual);
    if (!parameters) of_weight = of_bias = Tensor();
    if (!of_residual) of_summand = Tensor();
    return {of_x, of_weight, of_bias, of_summand, {}, {}, {}, {}, {}};
  }
};

struct AffineReluFakeQuantizeBackward : torch::autograd::Function<AffineReluFakeQuantizeBackward> {
  static variable_list forward(AutogradContext* /*ctx*/, const Tensor& gradient, const Tensor& x, const Tensor& weight,
                               const Tensor& bias, const Optional& residual, const Tensor& range_min,
                               const Tensor& range_max, int64_t bits, Upper upper, bool clip, bool parameters,
                               bool of_residual) {
    at::AutoDispatchBelowADInplaceOrView below;
    const auto [of_x, of_weight, of_bias, of_summand] = call_affine_backward(
        gradient, x, weight, bias, residual, range_min, range_max, bits, upper, clip, parameters, of_residual);
    return {of_x, of_weight, of_bias, of_summand};
  }
  static variable_list backward(AutogradContext* /*ctx*/, const variable_list& /*gradients*/) {
    refuse_second_derivative("affine_relu_fake_quantize");
  }
};

Tensor relu_fake_quantize(const Tensor& x, const Tensor& range_min, const Tensor& range_max, int64_t bits, Axis axis,
                          Upper upper, bool clip) {
  if (!needs_node(x)) return call_relu(x, range_min, range_max, bits, axis, upper, clip);
  return ReluFakeQuantize::apply(x, range_min, range_max, bits, axis, upper, clip);
}

Tensor relu_fake_quantize_backward(const Tensor& gradient, const Tensor& x, const Tensor& range_min,
                                   const Tensor& range_max, int64_t bits, Axis axis, Upper upper, bool clip) {
  if (needs_node(gradient)) {
    return ReluFakeQuantizeBackward::apply(gradient, x, range_min, range_max, bits, axis, upper, clip);
  }
  at::AutoDispatchBelowADInplaceOrView below;
  return call_relu_backward(gradient, x, range_min, range_max, bits, axis, upper, clip);
}

Tensor affine_relu_fake_quantize(const Tensor& x, const Tensor& weight, const Tensor& bias, const Optional& residual,
                                 const Tensor& range_min, const Tensor& range_max, int64_t bits, Upper upper,
                                 bool clip) {
  if (needs_node(x) || needs_node(weight) || needs_node(bias) || needs_node(residual)) {
    return AffineReluFakeQuantize::apply(x, weight, bias, residual, range_min, range_max, bits, upper, clip);
  }
  return call_affine(x, weight, bias, residual, range_min, range_max, bits, upper, clip);
}

Gradients affine_relu_fake_quantize_backward(const Tensor& gradient, const Tensor& x, const Tensor& weight,
                                             const Tensor& bias, const Optional& residual, const Tensor& range_min,
                                             const Tensor& range_max, int64_t bits, Upper upper, bool clip,
                                             bool parameters, bool of_residual) {
  if (needs_node(gradient) || needs_node(x) || needs_node(weight) || needs_node(bias) || needs_node(residual)) {
    const variable_list result = AffineReluFakeQuantizeBackward::apply(
        gradient, x, weight, bias, residual, range_min, range_max, bits, upper, clip, parameters, of_residual);
    return {result[0], result[1], result[2], result[3]};
  }
  at::AutoDispatchBelowADInplaceOrView below;
  return call_affine_backward(gradient, x, weight, bias, residual, range_min, range_max, bits, upper, clip, parameters,
                              of_residual);
}

}  // namespace

TORCH_LIBRARY_IMPL(synq_fast, Autograd, m) {
  m.impl("relu_fake_quantize", &relu_fake_quantize);
  m.impl("relu_fake_quantize_backward", &relu_fake_quantize_backward);
  m.impl("affine_relu_fake_quantize", &affine_relu_fake_quantize);
  m.impl("affine_relu_fake_quantize_backward", &affine_relu_fake_quantize_backward);
}

}  // namespace synq
