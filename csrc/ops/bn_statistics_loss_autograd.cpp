// Autograd of the losses on batch-normalisation statistics. The inputs and their statistics are saved; backward reads
// the inputs once more.
#include <tuple>
#include <vector>

#include "ops/autograd.h"

namespace synq {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using Optional = std::optional<Tensor>;
using Triple = std::tuple<Tensor, Tensor, Tensor>;
using Weights = at::ArrayRef<double>;

Triple call_loss(const Tensor& x, const Tensor& running_mean, const Tensor& running_var) {
  static const auto op = find_op<Triple(const Tensor&, const Tensor&, const Tensor&)>("synq_fast::bn_statistics_loss");
  at::AutoDispatchBelowADInplaceOrView below;
  return op.call(x, running_mean, running_var);
}

Tensor call_backward(const Optional& mean_loss, const Optional& var_loss, const Tensor& x, const Tensor& statistics) {
  static const auto op = find_op<Tensor(const Optional&, const Optional&, const Tensor&, const Tensor&)>(
      "synq_fast::bn_statistics_loss_backward");
  return op.call(mean_loss, var_loss, x, statistics);
}

std::tuple<Tensor, Tensor> call_losses(at::TensorList inputs, at::TensorList running_means, at::TensorList running_vars,
                                       Weights weights) {
  static const auto op = find_op<std::tuple<Tensor, Tensor>(at::TensorList, at::TensorList, at::TensorList, Weights)>(
      "synq_fast::bn_statistics_losses");
  at::AutoDispatchBelowADInplaceOrView below;
  return op.call(inputs, running_means, running_vars, weights);
}

std::vector<Tensor> call_losses_backward(const Tensor& loss, at::TensorList inputs, const Tensor& statistics,
                                         Weights weights) {
  static const auto op = find_op<std::vector<Tensor>(const Tensor&, at::TensorList, const Tensor&, Weights)>(
      "synq_fast::bn_statistics_losses_backward");
  return op.call(loss, inputs, statistics, weights);
}

bool any_needs_node(at::TensorList tensors) {
  for (const Tensor& tensor : tensors) {
    if (needs_node(tensor)) return true;
  }
  return false;
}

Optional present(const Tensor& gradient) { return gradient.defined() ? Optional(gradient) : std::nullopt; }

struct StatisticsLoss : torch::autograd::Function<StatisticsLoss> {
  static constexpr bool is_traceable = true;

  static variable_list forward(AutogradContext* ctx, const Tensor& x, const Tensor& running_mean,
                               const Tensor& running_var) {
    auto [mean_loss, var_loss, statistics] = call_loss(x, running_mean, running_var);
    ctx->mark_non_differentiable({statistics});
    ctx->set_materialize_grads(false);
    ctx->save_for_backward({x, statistics});
    return {mean_loss, var_loss, statistics};
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& incoming) {
    if (!incoming[0].defined() && !incoming[1].defined()) return {{}, {}, {}};
    const auto saved = ctx->get_saved_variables();
    return {call_backward(present(incoming[0]), present(incoming[1]), saved[0], saved[1]), {}, {}};
  }
};

struct StatisticsLosses : torch::autograd::Function<StatisticsLosses> {
  static constexpr bool is_traceable = true;

  static variable_list forward(AutogradContext* ctx, at::TensorList inputs, at::TensorList running_means,
                               at::TensorList running_vars, Weights weights) {
    auto [loss, statistics] = call_losses(inputs, running_means, running_vars, weights);
    ctx->mark_non_differentiable({statistics});
    ctx->set_materialize_grads(false);
    variable_list saved(inputs.begin(), inputs.end());
    saved.push_back(statistics);
    ctx->save_for_backward(std::move(saved));
    ctx->saved_data["weights"] = weights.vec();
    return {loss, statistics};
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& incoming) {
    variable_list saved = ctx->get_saved_variables();
    const Tensor statistics = saved.back();
    saved.pop_back();
    variable_list result;
    if (incoming[0].defined()) {
      result = call_losses_backward(incoming[0], saved, statistics, ctx->saved_data["weights"].toDoubleVector());
    }
    // The inputs, two running statistics for each, the weights.
    result.resize(3 * saved.size() + 1);
    return result;
  }
};

// The gradient of x depends on x through the statistics too, which the backward kernels do not follow.
struct StatisticsLossBackward : torch::autograd::Function<StatisticsLossBackward> {
  static Tensor forward(AutogradContext*, const Optional& mean_loss, const Optional& var_loss, const Tensor& x,
                        const Tensor& statistics) {
    at::AutoDispatchBelowADInplaceOrView below;
    return call_backward(mean_loss, var_loss, x, statistics);
  }
  static variable_list backward(AutogradContext*, const variable_list&) {
    refuse_second_derivative("bn_statistics_loss");
  }
};

struct StatisticsLossesBackward : torch::autograd::Function<StatisticsLossesBackward> {
  static variable_list forward(AutogradContext*, const Tensor& loss, at::TensorList inputs, const Tensor& statistics,
                               Weights weights) {
    at::AutoDispatchBelowADInplaceOrView below;
    return call_losses_backward(loss, inputs, statistics, weights);
  }
  static variable_list backward(AutogradContext*, const variable_list&) {
    refuse_second_derivative("bn_statistics_losses");
  }
};

Triple bn_statistics_loss(const Tensor& x, const Tensor& running_mean, const Tensor& running_var) {
  if (!needs_node(x)) return call_loss(x, running_mean, running_var);
  const variable_list results = StatisticsLoss::apply(x, running_mean, running_var);
  return {results[0], results[1], results[2]};
}

Tensor bn_statistics_loss_backward(const Optional& mean_loss, const Optional& var_loss, const Tensor& x,
                                   const Tensor& statistics) {
  const auto needs = [](const Optional& value) { return value && value->defined() && needs_node(*value); };
  if (needs(mean_loss) || needs(var_loss) || needs_node(x)) {
    return StatisticsLossBackward::apply(mean_loss, var_loss, x, statistics);
  }
  at::AutoDispatchBelowADInplaceOrView below;
  return call_backward(mean_loss, var_loss, x, statistics);
}

std::tuple<Tensor, Tensor> bn_statistics_losses(at::TensorList inputs, at::TensorList running_means,
                                                at::TensorList running_vars, Weights weights) {
  if (!any_needs_node(inputs)) return call_losses(inputs, running_means, running_vars, weights);
  const variable_list results = StatisticsLosses::apply(inputs, running_means, running_vars, weights);
  return {results[0], results[1]};
}

std::vector<Tensor> bn_statistics_losses_backward(const Tensor& loss, at::TensorList inputs, const Tensor& statistics,
                                                  Weights weights) {
  if (needs_node(loss) || any_needs_node(inputs)) {
    return StatisticsLossesBackward::apply(loss, inputs, statistics, weights);
  }
  at::AutoDispatchBelowADInplaceOrView below;
  return call_losses_backward(loss, inputs, statistics, weights);
}

}  // namespace

TORCH_LIBRARY_IMPL(synq_fast, Autograd, m) {
  m.impl("bn_statistics_loss", &bn_statistics_loss);
  m.impl("bn_statistics_loss_backward", &bn_statistics_loss_backward);
  m.impl("bn_statistics_losses", &bn_statistics_losses);
  m.impl("bn_statistics_losses_backward", &bn_statistics_losses_backward);
}

}  // namespace synq
