// CPU kernels of the fake quantization family.
#pragma once

#include <stdint.h>

#include "cpu/dispatch.h"
#include "dtype.h"

namespace synq::cpu {

// Memory is that of csrc/layout.h. Kernels work on a
// half-open interval of the flat index, so that any split over threads gives the same result.
struct Job {
  const void* x;
  const void* gradient;  // backward only
  void* y;
  const float* scale;
  const float* zero_point;
  int64_t channels;
  int64_t inner;
  int32_t bits;
  DType dtype;
};

struct FakeQuantizeKernels {
  void (*fake_quantize)(const Job& job, int64_t begin, int64_t end);
  void (*fake_quantize_backward)(const Job& job, int64_t begin, int64_t end);
  void (*quantize_codes)(const Job& job, int64_t begin, int64_t end);
};

SYNQ_DECLARE_TABLES(FakeQuantizeKernels, fake_quantize_kernels);

}  // namespace synq::cpu
