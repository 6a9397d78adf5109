// CPU kernels that find ranges, and quantize what they have just read.
#pragma once

#include <stdint.h>

#include "cpu/dispatch.h"
#include "dtype.h"

namespace synq::cpu {

// Memory and types as in Job.
struct DynamicJob {
  const void* x;
  void* y;
  float* minimum;     // (channels,)
  float* maximum;     // (channels,)
  float* scale;       // (channels,), scratch
  float* zero_point;  // (channels,), scratch
  int64_t outer;
  int64_t channels;
  int64_t inner;
  int32_t bits;
  DType dtype;
  bool symmetric;
};

struct FakeQuantizeDynamicKernels {
  // Lowers minimum[channel] and raises maximum[channel] by the flat indices [begin, end); a NaN stays.
  void (*find_range)(const DynamicJob& job, int64_t begin, int64_t end, float* minimum, float* maximum);
  // Finds the ranges of the channels [first, last) and quantizes them while they are in cache. Writes minimum and
  // maximum.
  void (*quantize_channels)(const DynamicJob& job, int64_t first, int64_t last);
};

SYNQ_DECLARE_TABLES(FakeQuantizeDynamicKernels, fake_quantize_dynamic_kernels);

}  // namespace synq::cpu
