// CPU kernels of GELU before fake quantization over one learned grid.
#pragma once

#include "cpu/dispatch.h"
#include "cpu/fake_quantize.h"

namespace synq::cpu {

struct GeluFakeQuantizeKernels {
  void (*forward)(const Job& job, int64_t begin, int64_t end);
  // Writes the gradient of x for the flat indices [begin, end) and adds LearnedTerms to both sums.
  void (*backward)(const Job& job, int64_t begin, int64_t end, double* of_scale, double* of_zero);
};

SYNQ_DECLARE_TABLES(GeluFakeQuantizeKernels, gelu_fake_quantize_kernels);

}  // namespace synq::cpu
