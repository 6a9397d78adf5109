// CPU kernels of fake quantization over a logarithmic grid.
#pragma once

#include "cpu/dispatch.h"
#include "cpu/fake_quantize.h"

namespace synq::cpu {

struct FakeQuantizeLogKernels {
  // The job has no zero points.
  void (*forward)(const Job& job, int64_t begin, int64_t end);
  // Writes the gradient of x for the flat indices [begin, end) and adds the gradients of the scales.
  void (*backward)(const Job& job, int64_t begin, int64_t end, double* of_scale);
};

SYNQ_DECLARE_TABLES(FakeQuantizeLogKernels, fake_quantize_log_kernels);

}  // namespace synq::cpu
