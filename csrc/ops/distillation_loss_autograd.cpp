// Autograd of the distillation losses. The forward pass has computed the gradients of both terms already; backward
// scales and adds them.
#include <tuple>

#include "ops/autograd.h"
#include "ops/distillation_arguments.h"

namespace synq {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using Optional = std::optional<Tensor>;
using Triple = std::tuple<Tensor, Tensor, Tensor>;

DistillationResults call_with_gradient(const Tensor& student, const Tensor& teacher, const Tensor& labels,
                                       double temperature, double alpha, double threshold, bool of_student,
                                       bool of_teacher) {
  static const auto op =
      find_op<DistillationResults(const Tensor&, const Tensor&, const Tensor&, double, double, double, bool, bool)>(
          "synq_fast::distillation_loss_with_gradient");
  at::AutoDispatchBelowADInplaceOrView below;
  return op.call(student, teacher, labels, temperature, alpha, threshold, of_student, of_teacher);
}

Tensor call_backward(const Optional& kl, const Optional& ce, const Tensor& gradients, const Tensor& logits) {
  static const auto op = find_op<Tensor(const Optional&, const Optional&, const Tensor&, const Tensor&)>(
      "synq_fast::distillation_loss_backward");
  return op.call(kl, ce, gradients, logits);
}

struct DistillationLoss : torch::autograd::Function<DistillationLoss> {
  static constexpr bool is_traceable = true;

  static variable_list forward(AutogradContext* ctx, const Tensor& student, const Tensor& teacher, const Tensor& labels,
                               double temperature, double alpha, double threshold, bool of_student, bool of_teacher) {
    auto [kl, ce, difficulty, student_gradients, teacher_gradient] =
        call_with_gradient(student, teacher, labels, temperature, alpha, threshold, of_student, of_teacher);
    ctx->mark_non_differentiable({difficulty, student_gradients, teacher_gradient});
    ctx->set_materialize_grads(false);
    ctx->save_for_backward({student, teacher, student_gradients, teacher_gradient});
    return {kl, ce, difficulty, student_gradients, teacher_gradient};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& incoming) {
    const auto saved = ctx->get_saved_variables();
    const Optional kl = incoming[0].defined() ? Optional(incoming[0]) : std::nullopt;
    const Optional ce = incoming[1].defined() ? Optional(incoming[1]) : std::nullopt;
    variable_list result(8);
    if (ctx->needs_input_grad(0) && saved[2].size(0) > 0 && (kl || ce)) {
      result[0] = call_backward(kl, ce, saved[2], saved[0]);
    }
    if (ctx->needs_input_grad(1) && saved[3].size(0) > 0 && kl) {
      result[1] = call_backward(kl, std::nullopt, saved[3], saved[1]);
    }
    return result;
  }
};

// The gradients were computed as numbers: their own derivative in the logits is not known.
struct DistillationLossBackward : torch::autograd::Function<DistillationLossBackward> {
  static Tensor forward(AutogradContext* ctx, const Optional& kl, const Optional& ce, const Tensor& gradients,
                        const Tensor& logits) {
    at::AutoDispatchBelowADInplaceOrView below;
    return call_backward(kl, ce, gradients, logits);
  }
  static variable_list backward(AutogradContext*, const variable_list&) {
    refuse_second_derivative("distillation_loss");
  }
};

DistillationResults with_gradient(const Tensor& student, const Tensor& teacher, const Tensor& labels,
                                  double temperature, double alpha, double threshold, bool of_student,
                                  bool of_teacher) {
  if (!needs_node(student) && !needs_node(teacher)) {
    return call_with_gradient(student, teacher, labels, temperature, alpha, threshold, of_student, of_teacher);
  }
  const variable_list results =
      DistillationLoss::apply(student, teacher, labels, temperature, alpha, threshold, of_student, of_teacher);
  return {results[0], results[1], results[2], results[3], results[4]};
}

Triple distillation_loss(const Tensor& student, const Tensor& teacher, const Tensor& labels, double temperature,
                         double alpha, double threshold) {
  const bool of_student = needs_node(student);
  const bool of_teacher = needs_node(teacher);
  if (of_student || of_teacher) {
    auto results = with_gradient(student, teacher, labels, temperature, alpha, threshold, of_student, of_teacher);
    return {std::get<0>(results), std::get<1>(results), std::get<2>(results)};
  }
  static const auto op = find_op<Triple(const Tensor&, const Tensor&, const Tensor&, double, double, double)>(
      "synq_fast::distillation_loss");
  at::AutoDispatchBelowADInplaceOrView below;
  return op.call(student, teacher, labels, temperature, alpha, threshold);
}

Tensor backward(const Optional& kl, const Optional& ce, const Tensor& gradients, const Tensor& logits) {
  const auto needs = [](const Optional& value) { return value && value->defined() && needs_node(*value); };
  if (needs(kl) || needs(ce) || needs_node(logits)) {
    return DistillationLossBackward::apply(kl, ce, gradients, logits);
  }
  at::AutoDispatchBelowADInplaceOrView below;
  return call_backward(kl, ce, gradients, logits);
}

}  // namespace

TORCH_LIBRARY_IMPL(synq_fast, Autograd, m) {
  m.impl("distillation_loss", &distillation_loss);
  m.impl("distillation_loss_with_gradient", &with_gradient);
  m.impl("distillation_loss_backward", &backward);
}

}  // namespace synq
