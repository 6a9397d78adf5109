// CPU kernel of the range search.
#pragma once

#include <stdint.h>

#include "cpu/dispatch.h"
#include "dtype.h"

namespace synq::cpu {

struct SearchRangeJob {
  const void* x;
  float range_min;
  float range_max;
  float norm;
  float offset;  // power_offset() of csrc/candidate.h
  int32_t candidates;
  int32_t bits;
  DType dtype;
};

struct SearchRangeKernels {
  // Writes each candidate's sum over the elements [begin, end) of 2^(norm log2 |error| + offset).
  void (*sum_errors)(const SearchRangeJob& job, int64_t begin, int64_t end, double* sums);
};

SYNQ_DECLARE_TABLES(SearchRangeKernels, search_range_kernels);

}  // namespace synq::cpu
