// The filter is its own adjoint: backward is the op itself and saves no tensor.
#include "ops/autograd.h"

namespace synq {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using Text = std::string_view;

// Not below autograd when called for a gradient: the gradient of the gradient records its own node.
Tensor call(const Tensor& x, double cutoff, Text kind, int64_t order, Text method) {
  static const auto op = find_op<Tensor(const Tensor&, double, Text, int64_t, Text)>("synq_fast::low_pass");
  return op.call(x, cutoff, kind, order, method);
}

Tensor call_below(const Tensor& x, double cutoff, Text kind, int64_t order, Text method) {
  at::AutoDispatchBelowADInplaceOrView below;
  return call(x, cutoff, kind, order, method);
}

struct LowPass : torch::autograd::Function<LowPass> {
  static constexpr bool is_traceable = true;

  static Tensor forward(AutogradContext* ctx, const Tensor& x, double cutoff, std::string kind, int64_t order,
                        std::string method) {
    ctx->saved_data["cutoff"] = cutoff;
    ctx->saved_data["order"] = order;
    Tensor y = call_below(x, cutoff, kind, order, method);
    ctx->saved_data["kind"] = std::move(kind);
    ctx->saved_data["method"] = std::move(method);
    return y;
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& gradients) {
    return {call(gradients[0], ctx->saved_data["cutoff"].toDouble(), ctx->saved_data["kind"].toStringView(),
                 ctx->saved_data["order"].toInt(), ctx->saved_data["method"].toStringView()),
            {},
            {},
            {},
            {}};
  }
};

Tensor low_pass(const Tensor& x, double cutoff, Text kind, int64_t order, Text method) {
  if (!needs_node(x)) return call_below(x, cutoff, kind, order, method);
  return LowPass::apply(x, cutoff, std::string(kind), order, std::string(method));
}

}  // namespace

TORCH_LIBRARY_IMPL(synq_fast, Autograd, m) { m.impl("low_pass", &low_pass); }

}  // namespace synq
