// CPU kernels of the distillation losses.
#pragma once

#include <stdint.h>

#include "cpu/dispatch.h"
#include "dtype.h"

namespace synq::cpu {

// Row-major (rows, classes) logits; labels are in range. Each row is computed on its own, so any split over threads
// gives the same result.
struct DistillationJob {
  const void* student;
  const void* teacher;
  const int64_t* labels;
  double* kl;               // (rows,): KL(p || q)
  double* ce;               // (rows,): cross-entropy, zero for hard samples
  float* difficulty;        // (rows,)
  float* kl_gradient;       // (rows, classes) or null
  float* ce_gradient;       // null together with kl_gradient
  float* teacher_gradient;  // (rows, classes) or null
  int64_t classes;
  float inverse_temperature;
  float threshold;
  float kl_scale;  // of the gradients of the divergence
  float ce_scale;  // of the gradient of the cross-entropy
  DType student_dtype;
  DType teacher_dtype;
};

// result = kl_scale * kl + ce_scale * ce; a null gradient leaves its term out, not both may be null.
struct DistillationGradientJob {
  const float* kl;
  const float* ce;
  void* result;
  float kl_scale;
  float ce_scale;
  DType dtype;
};

struct DistillationKernels {
  // `workspace` holds 3 * classes floats.
  void (*rows)(const DistillationJob& job, int64_t begin, int64_t end, float* workspace);
  void (*combine)(const DistillationGradientJob& job, int64_t begin, int64_t end);
};

SYNQ_DECLARE_TABLES(DistillationKernels, distillation_kernels);

}  // namespace synq::cpu
