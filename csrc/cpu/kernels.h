// CPU kernels: one source, compiled once per instruction set, chosen at run time.
#pragma once

#include <stdint.h>

#include "fake_quantize.h"

namespace synq::cpu {

// Memory is read as (outer, channels, inner) like FakeQuantizeParams. Kernels work on a half-open interval of the flat
// index, so that any split over threads gives the same result.
struct Job {
  const void* x;
  const void* gradient;
  void* y;
  const float* scale;
  const float* zero_point;
  int64_t channels;
  int64_t inner;
  int32_t bits;
  DType dtype;
};

struct Kernels {
  const char* name;
  void (*fake_quantize)(const Job& job, int64_t begin, int64_t end);
  void (*fake_quantize_backward)(const Job& job, int64_t begin, int64_t end);
  void (*quantize_codes)(const Job& job, int64_t begin, int64_t end);
  // Lowers minimum[channel] and raises maximum[channel]; a NaN stays.
  void (*find_range)(const Job& job, int64_t begin, int64_t end, float* minimum, float* maximum);
};

extern const Kernels kDefaultKernels;
#if defined(SYNQ_X86)
extern const Kernels kAvx2Kernels;
extern const Kernels kAvx512Kernels;
#endif

}  // namespace synq::cpu
