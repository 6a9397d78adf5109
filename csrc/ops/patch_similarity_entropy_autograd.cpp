// Autograd of the patch similarity entropy. An entropy is one number per image, so its gradient is found together with
// it, while the similarities are at hand; backward only weights it.
#include <ATen/ops/mul.h>

#include <tuple>

#include "ops/autograd.h"

namespace synq {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using Pair = std::tuple<Tensor, Tensor>;

Tensor call_alone(const Tensor& tokens, int64_t points, double bandwidth, double eps) {
  static const auto op = find_op<Tensor(const Tensor&, int64_t, double, double)>("synq_fast::patch_similarity_entropy");
  at::AutoDispatchBelowADInplaceOrView below;
  return op.call(tokens, points, bandwidth, eps);
}

Pair call_with_gradient(const Tensor& tokens, int64_t points, double bandwidth, double eps) {
  static const auto op =
      find_op<Pair(const Tensor&, int64_t, double, double)>("synq_fast::patch_similarity_entropy_with_gradient");
  at::AutoDispatchBelowADInplaceOrView below;
  return op.call(tokens, points, bandwidth, eps);
}

struct PatchSimilarityEntropy : torch::autograd::Function<PatchSimilarityEntropy> {
  static constexpr bool is_traceable = true;

  static variable_list forward(AutogradContext* ctx, const Tensor& tokens, int64_t points, double bandwidth,
                               double eps) {
    auto [entropy, gradient] = call_with_gradient(tokens, points, bandwidth, eps);
    ctx->mark_non_differentiable({gradient});
    ctx->save_for_backward({gradient});
    ctx->saved_data["dtype"] = tokens.scalar_type();
    return {entropy, gradient};
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& weights) {
    if (at::GradMode::is_enabled()) refuse_second_derivative("patch_similarity_entropy");
    const Tensor gradient = ctx->get_saved_variables()[0];
    const Tensor weighted = at::mul(gradient, weights[0].unsqueeze(-1).unsqueeze(-1));
    return {weighted.to(ctx->saved_data["dtype"].toScalarType()), {}, {}, {}};
  }
};

Tensor patch_similarity_entropy(const Tensor& tokens, int64_t points, double bandwidth, double eps) {
  if (!needs_node(tokens)) return call_alone(tokens, points, bandwidth, eps);
  return PatchSimilarityEntropy::apply(tokens, points, bandwidth, eps)[0];
}

Pair patch_similarity_entropy_with_gradient(const Tensor& tokens, int64_t points, double bandwidth, double eps) {
  if (!needs_node(tokens)) return call_with_gradient(tokens, points, bandwidth, eps);
  const variable_list result = PatchSimilarityEntropy::apply(tokens, points, bandwidth, eps);
  return {result[0], result[1]};
}

}  // namespace

TORCH_LIBRARY_IMPL(synq_fast, Autograd, m) {
  m.impl("patch_similarity_entropy", &patch_similarity_entropy);
  m.impl("patch_similarity_entropy_with_gradient", &patch_similarity_entropy_with_gradient);
}

}  // namespace synq
