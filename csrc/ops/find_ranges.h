// Exact extrema on the CPU, over torch's threads.
#pragma once

#include "cpu/fake_quantize_dynamic.h"

namespace synq {

// Writes the least and the greatest of `count` > 0 elements of each of job.channels channels; NaN where there is one.
void find_ranges(const cpu::DynamicJob& job, int64_t count, float* minimum, float* maximum);

// The same of all elements together.
inline void find_range(const void* x, int64_t count, DType dtype, float* minimum, float* maximum) {
  cpu::DynamicJob job{};
  job.x = x;
  job.channels = 1;
  job.inner = count;
  job.dtype = dtype;
  find_ranges(job, count, minimum, maximum);
}

// Lowers and raises bounds by others; a NaN stays.
void include_ranges(const float* low, const float* high, int64_t count, float* minimum, float* maximum);

}  // namespace synq
