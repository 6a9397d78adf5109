// Autograd of the class activation map ops. Written in C++ because on small tensors the autograd node is most of the
// call.
#include <tuple>

#include "cam.h"
#include "ops/autograd.h"

namespace synq {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using MaybeTensor = std::optional<Tensor>;
using Triple = std::tuple<Tensor, Tensor, Tensor>;

// The layout in which a gradient of these activations is wanted.
bool is_channels_last(const Tensor& activations) { return activations.dim() == 4 && activations.sym_stride(1) == 1; }

Triple call_map(const Tensor& activations, const Tensor& gradients, const MaybeTensor& score, int64_t kind,
                const c10::SymInt& height, const c10::SymInt& width, double clamp, double eps) {
  static const auto op = find_op<Triple(const Tensor&, const Tensor&, const MaybeTensor&, int64_t, c10::SymInt,
                                        c10::SymInt, double, double)>("synq_fast::grad_cam");
  at::AutoDispatchBelowADInplaceOrView below;
  return op.call(activations, gradients, score, kind, height, width, clamp, eps);
}

// Not below autograd: a gradient of the gradient must meet its error.
Tensor call_map_backward(const Tensor& gradient, const Tensor& weights, const Tensor& coarse, int64_t kind,
                         double clamp, double eps, bool channels_last, at::ScalarType dtype) {
  static const auto op =
      find_op<Tensor(const Tensor&, const Tensor&, const Tensor&, int64_t, double, double, bool, at::ScalarType)>(
          "synq_fast::grad_cam_backward");
  return op.call(gradient, weights, coarse, kind, clamp, eps, channels_last, dtype);
}

Triple call_loss(const Tensor& activations, const Tensor& gradients, const Tensor& target_map, double clamp, double eps,
                 bool with_gradient) {
  static const auto op = find_op<Triple(const Tensor&, const Tensor&, const Tensor&, double, double, bool)>(
      "synq_fast::cam_alignment_loss");
  at::AutoDispatchBelowADInplaceOrView below;
  return op.call(activations, gradients, target_map, clamp, eps, with_gradient);
}

Tensor call_loss_backward(const Tensor& gradient, const Tensor& weights, const Tensor& slope, bool channels_last,
                          at::ScalarType dtype) {
  static const auto op = find_op<Tensor(const Tensor&, const Tensor&, const Tensor&, bool, at::ScalarType)>(
      "synq_fast::cam_alignment_loss_backward");
  return op.call(gradient, weights, slope, channels_last, dtype);
}

at::ScalarType saved_type(AutogradContext* ctx) {
  return static_cast<at::ScalarType>(ctx->saved_data["dtype"].toInt());
}

void save_layout(AutogradContext* ctx, const Tensor& activations) {
  ctx->saved_data["channels_last"] = is_channels_last(activations);
  ctx->saved_data["dtype"] = static_cast<int64_t>(activations.scalar_type());
}

struct GradCam : torch::autograd::Function<GradCam> {
  static constexpr bool is_traceable = true;

  static variable_list forward(AutogradContext* ctx, const Tensor& activations, const Tensor& gradients,
                               const MaybeTensor& score, int64_t kind, const c10::SymInt& height,
                               const c10::SymInt& width, double clamp, double eps) {
    auto [map, weights, coarse] = call_map(activations, gradients, score, kind, height, width, clamp, eps);
    ctx->mark_non_differentiable({weights, coarse});
    ctx->save_for_backward({by_element(static_cast<CamKind>(kind)) ? gradients : weights, coarse});
    ctx->saved_data["kind"] = kind;
    ctx->saved_data["clamp"] = clamp;
    ctx->saved_data["eps"] = eps;
    save_layout(ctx, activations);
    return {map, weights, coarse};
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& gradients) {
    const auto saved = ctx->get_saved_variables();
    auto& data = ctx->saved_data;
    Tensor result = call_map_backward(gradients[0], saved[0], saved[1], data["kind"].toInt(), data["clamp"].toDouble(),
                                      data["eps"].toDouble(), data["channels_last"].toBool(), saved_type(ctx));
    return {result, {}, {}, {}, {}, {}, {}, {}};
  }
};

struct CamAlignmentLoss : torch::autograd::Function<CamAlignmentLoss> {
  static constexpr bool is_traceable = true;

  static variable_list forward(AutogradContext* ctx, const Tensor& activations, const Tensor& gradients,
                               const Tensor& target_map, double clamp, double eps) {
    auto [loss, weights, slope] = call_loss(activations, gradients, target_map, clamp, eps, true);
    ctx->mark_non_differentiable({weights, slope});
    ctx->save_for_backward({weights, slope});
    save_layout(ctx, activations);
    return {loss, weights, slope};
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& gradients) {
    const auto saved = ctx->get_saved_variables();
    Tensor result = call_loss_backward(gradients[0], saved[0], saved[1], ctx->saved_data["channels_last"].toBool(),
                                       saved_type(ctx));
    return {result, {}, {}, {}, {}};
  }
};

struct GradCamBackward : torch::autograd::Function<GradCamBackward> {
  static constexpr bool is_traceable = true;

  static Tensor forward(AutogradContext* ctx, const Tensor& gradient, const Tensor& weights, const Tensor& coarse,
                        int64_t kind, double clamp, double eps, bool channels_last, at::ScalarType dtype) {
    at::AutoDispatchBelowADInplaceOrView below;
    return call_map_backward(gradient, weights, coarse, kind, clamp, eps, channels_last, dtype);
  }
  static variable_list backward(AutogradContext*, const variable_list&) {
    refuse_second_derivative("a class activation map");
  }
};

struct CamAlignmentLossBackward : torch::autograd::Function<CamAlignmentLossBackward> {
  static constexpr bool is_traceable = true;

  static Tensor forward(AutogradContext* ctx, const Tensor& gradient, const Tensor& weights, const Tensor& slope,
                        bool channels_last, at::ScalarType dtype) {
    at::AutoDispatchBelowADInplaceOrView below;
    return call_loss_backward(gradient, weights, slope, channels_last, dtype);
  }
  static variable_list backward(AutogradContext*, const variable_list&) {
    refuse_second_derivative("cam_alignment_loss");
  }
};

Triple grad_cam(const Tensor& activations, const Tensor& gradients, const MaybeTensor& score, int64_t kind,
                c10::SymInt height, c10::SymInt width, double clamp, double eps) {
  if (!needs_node(activations)) return call_map(activations, gradients, score, kind, height, width, clamp, eps);
  const variable_list result = GradCam::apply(activations, gradients, score, kind, height, width, clamp, eps);
  return {result[0], result[1], result[2]};
}

Tensor grad_cam_backward(const Tensor& gradient, const Tensor& weights, const Tensor& coarse, int64_t kind,
                         double clamp, double eps, bool channels_last, at::ScalarType dtype) {
  if (needs_node(gradient)) {
    return GradCamBackward::apply(gradient, weights, coarse, kind, clamp, eps, channels_last, dtype);
  }
  at::AutoDispatchBelowADInplaceOrView below;
  return call_map_backward(gradient, weights, coarse, kind, clamp, eps, channels_last, dtype);
}

// Without a gradient to come, the pass for it is left out.
Triple cam_alignment_loss(const Tensor& activations, const Tensor& gradients, const Tensor& target_map, double clamp,
                          double eps, bool with_gradient) {
  if (!needs_node(activations) || !with_gradient) {
    return call_loss(activations, gradients, target_map, clamp, eps, with_gradient);
  }
  const variable_list result = CamAlignmentLoss::apply(activations, gradients, target_map, clamp, eps);
  return {result[0], result[1], result[2]};
}

Tensor cam_alignment_loss_backward(const Tensor& gradient, const Tensor& weights, const Tensor& slope,
                                   bool channels_last, at::ScalarType dtype) {
  if (needs_node(gradient)) return CamAlignmentLossBackward::apply(gradient, weights, slope, channels_last, dtype);
  at::AutoDispatchBelowADInplaceOrView below;
  return call_loss_backward(gradient, weights, slope, channels_last, dtype);
}

}  // namespace

TORCH_LIBRARY_IMPL(synq_fast, Autograd, m) {
  m.impl("grad_cam", &grad_cam);
  m.impl("grad_cam_backward", &grad_cam_backward);
  m.impl("cam_alignment_loss", &cam_alignment_loss);
  m.impl("cam_alignment_loss_backward", &cam_alignment_loss_backward);
}

}  // namespace synq
