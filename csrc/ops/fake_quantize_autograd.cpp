// The straight-through estimator. Written in C++ because on small tensors the autograd node is most of the call.
#include <tuple>

#include "ops/autograd.h"

namespace synq {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using Optional = std::optional<int64_t>;
using Triple = std::tuple<Tensor, Tensor, Tensor>;

Tensor call_forward(const Tensor& x, const Tensor& range_min, const Tensor& range_max, int64_t bits, Optional axis,
                    Optional groups, bool clip) {
  static const auto op =
      find_op<Tensor(const Tensor&, const Tensor&, const Tensor&, int64_t, Optional, Optional, bool)>(
          "synq_fast::fake_quantize");
  at::AutoDispatchBelowADInplaceOrView below;
  return op.call(x, range_min, range_max, bits, axis, groups, clip);
}

// Not below autograd: the gradient of the gradient records its own node.
Tensor call_backward(const Tensor& gradient, const Tensor& x, const Tensor& range_min, const Tensor& range_max,
                     int64_t bits, Optional axis, Optional groups) {
  static const auto op =
      find_op<Tensor(const Tensor&, const Tensor&, const Tensor&, const Tensor&, int64_t, Optional, Optional)>(
          "synq_fast::fake_quantize_backward");
  return op.call(gradient, x, range_min, range_max, bits, axis, groups);
}

Triple call_dynamic(const Tensor& x, int64_t bits, Optional axis, Optional groups, bool symmetric, bool clip) {
  static const auto op =
      find_op<Triple(const Tensor&, int64_t, Optional, Optional, bool, bool)>("synq_fast::fake_quantize_dynamic");
  at::AutoDispatchBelowADInplaceOrView below;
  return op.call(x, bits, axis, groups, symmetric, clip);
}

Triple call_codes(const Tensor& x, const Tensor& range_min, const Tensor& range_max, int64_t bits, Optional axis,
                  Optional groups) {
  static const auto op = find_op<Triple(const Tensor&, const Tensor&, const Tensor&, int64_t, Optional, Optional)>(
      "synq_fast::quantize_codes");
  at::AutoDispatchBelowADInplaceOrView below;
  return op.call(x, range_min, range_max, bits, axis, groups);
}

// Saves what the clipped gradient needs, and nothing for the identity.
void save(AutogradContext* ctx, const Tensor& x, const Tensor& range_min, const Tensor& range_max, int64_t bits,
          Optional axis, Optional groups) {
  ctx->save_for_backward({x, range_min, range_max});
  ctx->saved_data["bits"] = bits;
  ctx->saved_data["axis"] = axis;
  ctx->saved_data["groups"] = groups;
}

Tensor straight_through(AutogradContext* ctx, const Tensor& gradient) {
  const auto saved = ctx->get_saved_variables();
  if (saved.empty()) return gradient;
  return call_backward(gradient, saved[0], saved[1], saved[2], ctx->saved_data["bits"].toInt(),
                       ctx->saved_data["axis"].toOptional<int64_t>(), ctx->saved_data["groups"].toOptional<int64_t>());
}

struct FakeQuantize : torch::autograd::Function<FakeQuantize> {
  static constexpr bool is_traceable = true;

  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& range_min, const Tensor& range_max,
                        int64_t bits, Optional axis, Optional groups, bool clip) {
    if (clip) save(ctx, x, range_min, range_max, bits, axis, groups);
    return call_forward(x, range_min, range_max, bits, axis, groups, clip);
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& gradients) {
    return {straight_through(ctx, gradients[0]), {}, {}, {}, {}, {}, {}};
  }
};

struct FakeQuantizeDynamic : torch::autograd::Function<FakeQuantizeDynamic> {
  static constexpr bool is_traceable = true;

  static variable_list forward(AutogradContext* ctx, const Tensor& x, int64_t bits, Optional axis, Optional groups,
                               bool symmetric, bool clip) {
    auto [y, range_min, range_max] = call_dynamic(x, bits, axis, groups, symmetric, clip);
    ctx->mark_non_differentiable({range_min, range_max});
    if (clip) save(ctx, x, range_min, range_max, bits, axis, groups);
    return {y, range_min, range_max};
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& gradients) {
    return {straight_through(ctx, gradients[0]), {}, {}, {}, {}, {}};
  }
};

// The clipped gradient is linear in the incoming one with a symmetric mask, so it is its own derivative.
struct FakeQuantizeBackward : torch::autograd::Function<FakeQuantizeBackward> {
  static constexpr bool is_traceable = true;

  static Tensor forward(AutogradContext* ctx, const Tensor& gradient, const Tensor& x, const Tensor& range_min,
                        const Tensor& range_max, int64_t bits, Optional axis, Optional groups) {
    save(ctx, x, range_min, range_max, bits, axis, groups);
    at::AutoDispatchBelowADInplaceOrView below;
    return call_backward(gradient, x, range_min, range_max, bits, axis, groups);
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& gradients) {
    return {straight_through(ctx, gradients[0]), {}, {}, {}, {}, {}, {}};
  }
};

Tensor fake_quantize(const Tensor& x, const Tensor& range_min, const Tensor& range_max, int64_t bits, Optional axis,
                     Optional groups, bool clip) {
  if (!needs_node(x)) return call_forward(x, range_min, range_max, bits, axis, groups, clip);
  return FakeQuantize::apply(x, range_min, range_max, bits, axis, groups, clip);
}

Tensor fake_quantize_backward(const Tensor& gradient, const Tensor& x, const Tensor& range_min, const Tensor& range_max,
                              int64_t bits, Optional axis, Optional groups) {
  if (needs_node(gradient)) return FakeQuantizeBackward::apply(gradient, x, range_min, range_max, bits, axis, groups);
  at::AutoDispatchBelowADInplaceOrView below;
  return call_backward(gradient, x, range_min, range_max, bits, axis, groups);
}

Triple fake_quantize_dynamic(const Tensor& x, int64_t bits, Optional axis, Optional groups, bool symmetric, bool clip) {
  if (!needs_node(x)) return call_dynamic(x, bits, axis, groups, symmetric, clip);
  const variable_list result = FakeQuantizeDynamic::apply(x, bits, axis, groups, symmetric, clip);
  return {result[0], result[1], result[2]};
}

Triple quantize_codes(const Tensor& x, const Tensor& range_min, const Tensor& range_max, int64_t bits, Optional axis,
                      Optional groups) {
  return call_codes(x, range_min, range_max, bits, axis, groups);
}

}  // namespace

TORCH_LIBRARY_IMPL(synq_fast, Autograd, m) {
  m.impl("fake_quantize", &fake_quantize);
  m.impl("fake_quantize_backward", &fake_quantize_backward);
  m.impl("fake_quantize_dynamic", &fake_quantize_dynamic);
  m.impl("quantize_codes", &quantize_codes);
}

}  // namespace synq
