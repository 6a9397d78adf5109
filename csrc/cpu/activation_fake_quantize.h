// CPU kernels of activation functions before fake quantization over one learned grid.
#pragma once

#include "activation_functions.h"
#include "cpu/dispatch.h"
#include "cpu/fake_quantize.h"

namespace synq::cpu {

struct ActivationJob : Job {
  Activation activation;
  bool minifloat;
};

struct ActivationFakeQuantizeKernels {
  void (*forward)(const ActivationJob& job, int64_t begin, int64_t end);
  // Writes the gradient of x for the flat indices [begin, end) and adds LearnedTerms to both sums.
  void (*backward)(const ActivationJob& job, int64_t begin, int64_t end, double* of_scale, double* of_zero);
};

SYNQ_DECLARE_TABLES(ActivationFakeQuantizeKernels, activation_fake_quantize_kernels);

}  // namespace synq::cpu
