// cpu/half.h compiled for each instruction set, for the tests.
#pragma once

#include <stdint.h>

#include "cpu/dispatch.h"

namespace synq::cpu {

struct HalfKernels {
  void (*widen_float16)(const uint16_t* x, float* y, int64_t count);
  void (*widen_bfloat16)(const uint16_t* x, float* y, int64_t count);
  void (*narrow_float16)(const float* x, uint16_t* y, int64_t count);
  void (*narrow_bfloat16)(const float* x, uint16_t* y, int64_t count);
};

SYNQ_DECLARE_TABLES(HalfKernels, half_kernels);

}  // namespace synq::cpu
