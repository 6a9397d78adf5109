// The CPU implementations behind synq_fast::distillation_loss and its relatives.
#include "cpu/distillation_loss.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <vector>

#include "ops/distillation_arguments.h"
#include "ops/parallel.h"
#include "ops/tensors.h"

namespace synq {
namespace {

using at::Tensor;

// A class costs about as much as this many elements of a copy: four exponentials.
constexpr int64_t kWork = 8;

const cpu::DistillationKernels& kernels() {
  using namespace cpu;
  return SYNQ_SELECT(distillation_kernels);
}

void check_labels(const char* op, const Logits& logits) {
  const int64_t* labels = logits.labels.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < logits.batch; ++i) {
    TORCH_CHECK_VALUE(labels[i] >= 0 && labels[i] < logits.classes, op, ": labels must be in [0, ", logits.classes,
                      "), the number of classes, got ", labels[i], " at index ", i);
  }
}

DistillationResults compute(const char* op, const Tensor& student_logits, const Tensor& teacher_logits,
                            const Tensor& labels, double temperature, double alpha, double threshold,
                            bool student_gradient, bool teacher_gradient) {
  const Logits logits = check_logits(op, student_logits, teacher_logits, labels, temperature);
  check_labels(op, logits);
  const int64_t batch = logits.batch;
  const auto floats = logits.student.options().dtype(at::kFloat);
  Tensor kl = at::empty({}, floats);
  Tensor ce = at::empty({}, floats);
  Tensor difficulty = at::empty({batch}, floats);
  Tensor of_student;
  Tensor of_teacher;

  c10::SmallVector<double, 256> losses(2 * batch);
  const double count = static_cast<double>(std::max<int64_t>(batch, 1));
  cpu::DistillationJob job{};
  job.student = logits.student.const_data_ptr();
  job.teacher = logits.teacher.const_data_ptr();
  job.labels = logits.labels.const_data_ptr<int64_t>();
  job.kl = losses.data();
  job.ce = losses.data() + batch;
  job.difficulty = difficulty.mutable_data_ptr<float>();
  job.classes = logits.classes;
  job.inverse_temperature = static_cast<float>(1 / temperature);
  job.threshold = static_cast<float>(threshold);
  job.kl_scale = static_cast<float>(alpha * temperature / count);
  job.ce_scale = static_cast<float>(1 / count);
  job.student_dtype = check_dtype(op, "student_logits", logits.student);
  job.teacher_dtype = check_dtype(op, "teacher_logits", logits.teacher);
  if (student_gradient) {
    of_student = empty_gradients(2, logits);
    job.kl_gradient = of_student.mutable_data_ptr<float>();
    job.ce_gradient = job.kl_gradient + batch * logits.classes;
  }
  if (teacher_gradient) {
    of_teacher = empty_gradients(1, logits);
    job.teacher_gradient = of_teacher.mutable_data_ptr<float>();
  }
  for_each_part(batch, kWork * logits.classes, [&](int64_t begin, int64_t end) {
    c10::SmallVector<float, 3072> workspace(3 * logits.classes);
    kernels().rows(job, begin, end, workspace.data());
  });

  // In the order of the rows, whichever thread computed them.
  double kl_sum = 0;
  double ce_sum = 0;
  for (int64_t i = 0; i < batch; ++i) {
    kl_sum += job.kl[i];
    ce_sum += job.ce[i];
  }
  *kl.mutable_data_ptr<float>() = static_cast<float>(kl_sum * (alpha * temperature * temperature / count));
  *ce.mutable_data_ptr<float>() = static_cast<float>(ce_sum / count);
  return {kl, ce, difficulty, of_student, of_teacher};
}

std::tuple<Tensor, Tensor, Tensor> distillation_loss_cpu(const Tensor& student_logits, const Tensor& teacher_logits,
                                                         const Tensor& labels, double temperature, double alpha,
                                                         double threshold) {
  auto [kl, ce, difficulty, of_student, of_teacher] =
      compute("distillation_loss", student_logits, teacher_logits, labels, temperature, alpha, threshold, false, false);
  return {kl, ce, difficulty};
}

DistillationResults with_gradient_cpu(const Tensor& student_logits, const Tensor& teacher_logits, const Tensor& labels,
                                      double temperature, double alpha, double threshold, bool student, bool teacher) {
  DistillationResults results = compute("distillation_loss_with_gradient", student_logits, teacher_logits, labels,
                                        temperature, alpha, threshold, student, teacher);
  const auto nothing = [&] {
    return at::empty({0, student_logits.size(0), student_logits.size(1)}, student_logits.options().dtype(at::kFloat));
  };
  if (!student) std::get<3>(results) = nothing();
  if (!teacher) std::get<4>(results) = nothing();
  return results;
}

Tensor backward_cpu(const std::optional<Tensor>& kl, const std::optional<Tensor>& ce, const Tensor& gradients,
                    const Tensor& logits) {
  const GradientTerms terms = check_terms(kl, ce, gradients, logits);
  Tensor result = at::empty(logits.sizes(), logits.options());
  cpu::DistillationGradientJob job{};
  job.kl = terms.kl;
  job.ce = terms.ce;
  if (terms.kl_scale.defined()) job.kl_scale = *terms.kl_scale.const_data_ptr<float>();
  if (terms.ce_scale.defined()) job.ce_scale = *terms.ce_scale.const_data_ptr<float>();
  job.result = result.mutable_data_ptr();
  job.dtype = check_dtype("distillation_loss_backward", "logits", logits);
  for_each_part(logits.numel(), 1, [&](int64_t begin, int64_t end) { kernels().combine(job, begin, end); });
  return result;
}

}  // namespace

TORCH_LIBRARY_IMPL(synq_fast, CPU, m) {
  m.impl("distillation_loss", &distillation_loss_cpu);
  m.impl("distillation_loss_with_gradient", &with_gradient_cpu);
  m.impl("distillation_loss_backward", &backward_cpu);
}

}  // namespace synq
