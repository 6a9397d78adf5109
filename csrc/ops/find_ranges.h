// Exact extrema on the CPU, over torch's threads.
#pragma once

#include "cpu/fake_quantize_dynamic.h"

namespace synq {

// Writes the least and the greatest of `count` > 0 elements of each of job.channels channels; NaN where there is one.
void find_ranges(const cpu::DynamicJob& job, int64_t count, float* minimum, float* maximum);

// Lowers and raises bounds by others; a NaN stays.
void include_ranges(const float* low, const float* high, int64_t count, float* minimum, float* maximum);

}  // namespace synq
