// Checks shared by the CPU and the CUDA implementations of the distillation losses.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <tuple>

namespace synq {

struct Logits {
  at::Tensor student;  // contiguous (batch, classes)
  at::Tensor teacher;
  at::Tensor labels;
  int64_t batch;
  int64_t classes;
};

Logits check_logits(const char* op, const at::Tensor& student, const at::Tensor& teacher, const at::Tensor& labels,
                    double temperature);

// kl, ce, difficulty, gradients of (kl, ce) in the student's logits (2, B, C), gradient of kl in the teacher's
// (1, B, C); gradients that were not asked for have no row: (0, B, C).
using DistillationResults = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

at::Tensor empty_gradients(int64_t count, const Logits& logits);

// The terms of the combined gradient: a factor, undefined for a loss that was not used, and what it multiplies.
struct GradientTerms {
  at::Tensor kl_scale;
  at::Tensor ce_scale;
  at::Tensor gradients;  // contiguous (1 or 2, B, C), which holds what follows
  const float* kl;
  const float* ce;
};

GradientTerms check_terms(const std::optional<at::Tensor>& kl, const std::optional<at::Tensor>& ce,
                          const at::Tensor& gradients, const at::Tensor& logits);

}  // namespace synq
