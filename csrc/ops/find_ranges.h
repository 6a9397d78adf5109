// Exact extrema on the CPU, over torch's threads.
#pragma once

#include "cpu/fake_quantize.h"

namespace synq {

// Writes the least and the greatest of `count` > 0 elements of each of job.channels channels; NaN where there is one.
void find_ranges(const cpu::Job& job, int64_t count, float* minimum, float* maximum);

}  // namespace synq
