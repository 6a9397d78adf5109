// The CUDA implementations behind synq_fast::distillation_loss and its relatives. Nothing here waits for the device.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "distillation_loss.h"
#include "ops/distillation_arguments.h"
#include "ops/tensors.h"

namespace synq {
namespace {

using at::Tensor;

void check_launch(int error) { C10_CUDA_CHECK(static_cast<cudaError_t>(error)); }

DistillationResults compute(const char* op, const Tensor& student_logits, const Tensor& teacher_logits,
                            const Tensor& labels, double temperature, double alpha, double threshold,
                            bool student_gradient, bool teacher_gradient) {
  const c10::cuda::CUDAGuard guard(student_logits.device());
  Logits logits = check_logits(op, student_logits, teacher_logits, labels, temperature);
  if (logits.student.scalar_type() != logits.teacher.scalar_type()) {
    logits.student = logits.student.to(at::kFloat);
    logits.teacher = logits.teacher.to(at::kFloat);
  }
  const auto floats = logits.student.options().dtype(at::kFloat);
  Tensor difficulty = at::empty({logits.batch}, floats);
  Tensor of_student = empty_gradients(student_gradient ? 2 : 0, logits);
  Tensor of_teacher = empty_gradients(teacher_gradient ? 1 : 0, logits);
  if (logits.batch == 0) return {at::zeros({}, floats), at::zeros({}, floats), difficulty, of_student, of_teacher};

  Tensor kl = at::empty({}, floats);
  Tensor ce = at::empty({}, floats);
  const Tensor losses = at::empty({2, logits.batch}, floats.dtype(at::kDouble));
  DistillationLossParams params{};
  params.student = logits.student.const_data_ptr();
  params.teacher = logits.teacher.const_data_ptr();
  params.labels = logits.labels.const_data_ptr<int64_t>();
  params.kl = kl.mutable_data_ptr<float>();
  params.ce = ce.mutable_data_ptr<float>();
  params.difficulty = difficulty.mutable_data_ptr<float>();
  if (student_gradient) {
    params.kl_gradient = of_student.mutable_data_ptr<float>();
    params.ce_gradient = params.kl_gradient + logits.batch * logits.classes;
  }
  if (teacher_gradient) params.teacher_gradient = of_teacher.mutable_data_ptr<float>();
  params.row_losses = losses.mutable_data_ptr<double>();
  params.batch = logits.batch;
  params.classes = logits.classes;
  params.temperature = static_cast<float>(temperature);
  params.alpha = static_cast<float>(alpha);
  params.threshold = static_cast<float>(threshold);
  params.dtype = check_dtype(op, "student_logits", logits.student);
  check_launch(distillation_loss_cuda(params, c10::cuda::getCurrentCUDAStream().stream()));
  return {kl, ce, difficulty, of_student, of_teacher};
}

std::tuple<Tensor, Tensor, Tensor> distillation_loss_cuda_op(const Tensor& student_logits, const Tensor& teacher_logits,
                                                             const Tensor& labels, double temperature, double alpha,
                                                             double threshold) {
  auto results =
      compute("distillation_loss", student_logits, teacher_logits, labels, temperature, alpha, threshold, false, false);
  return {std::get<0>(results), std::get<1>(results), std::get<2>(results)};
}

DistillationResults with_gradient_cuda_op(const Tensor& student_logits, const Tensor& teacher_logits,
                                          const Tensor& labels, double temperature, double alpha, double threshold,
                                          bool student, bool teacher) {
  return compute("distillation_loss_with_gradient", student_logits, teacher_logits, labels, temperature, alpha,
                 threshold, student, teacher);
}

Tensor backward_cuda_op(const std::optional<Tensor>& kl, const std::optional<Tensor>& ce, const Tensor& gradients,
                        const Tensor& logits) {
  const c10::cuda::CUDAGuard guard(logits.device());
  const GradientTerms terms = check_terms(kl, ce, gradients, logits);
  Tensor result = at::empty(logits.sizes(), logits.options());
  if (logits.numel() == 0) return result;
  DistillationGradientParams params{};
  if (terms.kl_scale.defined()) params.kl_scale = terms.kl_scale.const_data_ptr<float>();
  if (terms.ce_scale.defined()) params.ce_scale = terms.ce_scale.const_data_ptr<float>();
  params.kl_gradient = terms.kl;
  params.ce_gradient = terms.ce;
  params.result = result.mutable_data_ptr();
  params.elements = logits.numel();
  params.dtype = check_dtype("distillation_loss_backward", "logits", logits);
  check_launch(distillation_loss_backward_cuda(params, c10::cuda::getCurrentCUDAStream().stream()));
  return result;
}

}  // namespace

TORCH_LIBRARY_IMPL(synq_fast, CUDA, m) {
  m.impl("distillation_loss", &distillation_loss_cuda_op);
  m.impl("distillation_loss_with_gradient", &with_gradient_cuda_op);
  m.impl("distillation_loss_backward", &backward_cuda_op);
}

}  // namespace synq
