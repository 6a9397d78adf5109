// Launch interface of the distillation loss kernels. Plain C++: kernels include no torch headers.
#pragma once

#include <stdint.h>

#include "dtype.h"

namespace synq {

// Row-major (batch, classes) logits of one type. With p = softmax(teacher / T) and q = softmax(student / T):
//   kl = alpha T^2 / batch * sum KL(p || q), difficulty = 1 - softmax(teacher)[label],
//   ce = sum(CE(student, label) where difficulty < threshold) / batch.
struct DistillationLossParams {
  const void* student;      // dtype
  const void* teacher;      // dtype
  const int64_t* labels;    // (batch,); one outside [0, classes) makes the row's difficulty and the cross-entropy NaN
  float* kl;                // one value
  float* ce;                // one value
  float* difficulty;        // (batch,)
  float* kl_gradient;       // (batch, classes), d kl / d student; or null
  float* ce_gradient;       // (batch, classes), d ce / d student; null together with kl_gradient
  float* teacher_gradient;  // (batch, classes), d kl / d teacher; or null
  double* row_losses;       // workspace: 2 * batch
  int64_t batch;
  int64_t classes;
  float temperature;
  float alpha;
  float threshold;
  DType dtype;
};

// result = kl_scale * kl_gradient + ce_scale * ce_gradient; a null scale leaves its term out.
struct DistillationGradientParams {
  const float* kl_scale;  // one value, or null
  const float* ce_scale;  // one value, or null
  const float* kl_gradient;
  const float* ce_gradient;
  void* result;  // dtype
  int64_t elements;
  DType dtype;
};

// Both enqueue on `stream` (a cudaStream_t) of the current device, never synchronize, and return the cudaError_t of the
// launch (0 is success). batch, classes and elements are positive.
int distillation_loss_cuda(const DistillationLossParams& params, void* stream);
int distillation_loss_backward_cuda(const DistillationGradientParams& params, void* stream);

}  // namespace synq
