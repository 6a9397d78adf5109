// Autograd of the channels' moments. x and the means are saved; backward reads x once more.
#include <tuple>

#include "ops/autograd.h"

namespace synq {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using Optional = std::optional<Tensor>;
using Pair = std::tuple<Tensor, Tensor>;

Pair call_moments(const Tensor& x) {
  static const auto op = find_op<Pair(const Tensor&)>("synq_fast::channel_moments");
  at::AutoDispatchBelowADInplaceOrView below;
  return op.call(x);
}

Tensor call_backward(const Optional& of_mean, const Optional& of_variance, const Tensor& x, const Tensor& mean) {
  static const auto op = find_op<Tensor(const Optional&, const Optional&, const Tensor&, const Tensor&)>(
      "synq_fast::channel_moments_backward");
  return op.call(of_mean, of_variance, x, mean);
}

Optional present(const Tensor& gradient) { return gradient.defined() ? Optional(gradient) : std::nullopt; }

struct Moments : torch::autograd::Function<Moments> {
  static constexpr bool is_traceable = true;

  static variable_list forward(AutogradContext* ctx, const Tensor& x) {
    const auto [mean, variance] = call_moments(x);
    ctx->set_materialize_grads(false);
    ctx->save_for_backward({x, mean});
    return {mean, variance};
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& incoming) {
    if (!incoming[0].defined() && !incoming[1].defined()) return {Tensor()};
    const auto saved = ctx->get_saved_variables();
    return {call_backward(present(incoming[0]), present(incoming[1]), saved[0], saved[1].detach())};
  }
};

struct MomentsBackward : torch::autograd::Function<MomentsBackward> {
  static Tensor forward(AutogradContext*, const Optional& of_mean, const Optional& of_variance, const Tensor& x,
                        const Tensor& mean) {
    at::AutoDispatchBelowADInplaceOrView below;
    return call_backward(of_mean, of_variance, x, mean);
  }
  static variable_list backward(AutogradContext*, const variable_list&) { refuse_second_derivative("channel_moments"); }
};

Pair channel_moments(const Tensor& x) {
  if (!needs_node(x)) return call_moments(x);
  const variable_list results = Moments::apply(x);
  return {results[0], results[1]};
}

Tensor channel_moments_backward(const Optional& of_mean, const Optional& of_variance, const Tensor& x,
                                const Tensor& mean) {
  if (needs_node(of_mean) || needs_node(of_variance) || needs_node(x)) {
    return MomentsBackward::apply(of_mean, of_variance, x, mean);
  }
  at::AutoDispatchBelowADInplaceOrView below;
  return call_backward(of_mean, of_variance, x, mean);
}

}  // namespace

TORCH_LIBRARY_IMPL(synq_fast, Autograd, m) {
  m.impl("channel_moments", &channel_moments);
  m.impl("channel_moments_backward", &channel_moments_backward);
}

}  // namespace synq
