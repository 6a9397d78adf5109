// CPU kernels of fake quantization to small floats.
#pragma once

#include "cpu/dispatch.h"
#include "cpu/fake_quantize.h"

namespace synq::cpu {

struct FakeQuantizeMinifloatKernels {
  void (*forward)(const Job& job, int64_t begin, int64_t end);
  void (*backward)(const Job& job, int64_t begin, int64_t end);
};

SYNQ_DECLARE_TABLES(FakeQuantizeMinifloatKernels, fake_quantize_minifloat_kernels);

}  // namespace synq::cpu
