#include "ops/distillation_arguments.h"

#include <ATen/ops/empty.h>
#include <c10/util/Exception.h>

#include "ops/tensors.h"

namespace synq {

Logits check_logits(const char* op, const at::Tensor& student, const at::Tensor& teacher, const at::Tensor& labels,
                    double temperature) {
  check_dtype(op, "student_logits", student);
  check_dtype(op, "teacher_logits", teacher);
  TORCH_CHECK_VALUE(student.dim() == 2 && student.size(1) > 0, op,
                    ": student_logits must have shape (B, C) with at least one class, got ", student.sizes());
  TORCH_CHECK_VALUE(teacher.sizes() == student.sizes(), op, ": teacher_logits must have the shape of student_logits, ",
                    student.sizes(), ", got ", teacher.sizes());
  TORCH_CHECK_TYPE(labels.scalar_type() == at::kLong, op, ": labels must be int64 class indices, got ",
                   labels.scalar_type());
  TORCH_CHECK_VALUE(labels.dim() == 1 && labels.size(0) == student.size(0), op, ": labels must have shape (",
                    student.size(0), ",), got ", labels.sizes());
  TORCH_CHECK_VALUE(teacher.device() == student.device() && labels.device() == student.device(), op,
                    ": student_logits is on ", student.device(), ", teacher_logits on ", teacher.device(),
                    " and labels on ", labels.device(), "; move all to one device");
  TORCH_CHECK_VALUE(temperature > 0, op, ": temperature must be above 0, got ", temperature);
  return {student.contiguous(), teacher.contiguous(), labels.contiguous(), student.size(0), student.size(1)};
}

at::Tensor empty_gradients(int64_t count, const Logits& logits) {
  return at::empty({count, logits.batch, logits.classes}, logits.student.options().dtype(at::kFloat));
}

GradientTerms check_terms(const std::optional<at::Tensor>& kl, const std::optional<at::Tensor>& ce,
                          const at::Tensor& gradients, const at::Tensor& logits) {
  const char* op = "distillation_loss_backward";
  check_dtype(op, "logits", logits);
  TORCH_CHECK_TYPE(gradients.scalar_type() == at::kFloat, op, ": gradients must be float32, got ",
                   gradients.scalar_type());
  TORCH_CHECK_VALUE(logits.dim() == 2 && gradients.dim() == 3 && gradients.size(0) >= 1 &&
                        gradients.sizes().slice(1) == logits.sizes(),
                    op, ": gradients must have shape (terms, B, C) with (B, C) = ", logits.sizes(), ", got ",
                    gradients.sizes());
  GradientTerms terms{{}, {}, gradients.contiguous(), nullptr, nullptr};
  const auto scale = [&](const char* name, const at::Tensor& value) {
    TORCH_CHECK_VALUE(value.numel() == 1 && value.device() == logits.device(), op, ": the gradient of ", name,
                      " must hold one value on ", logits.device(), ", got shape ", value.sizes(), " on ",
                      value.device());
    return value.to(at::kFloat).contiguous();
  };
  const float* first = terms.gradients.const_data_ptr<float>();
  if (kl && kl->defined()) {
    terms.kl_scale = scale("kl", *kl);
    terms.kl = first;
  }
  if (ce && ce->defined()) {
    TORCH_CHECK_VALUE(gradients.size(0) == 2, op, ": the cross-entropy has no gradient among ", gradients.sizes());
    terms.ce_scale = scale("ce", *ce);
    terms.ce = first + logits.numel();
  }
  TORCH_CHECK_VALUE(terms.kl_scale.defined() || terms.ce_scale.defined(), op, ": neither kl nor ce has a gradient");
  return terms;
}

}  // namespace synq
