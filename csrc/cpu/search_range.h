// CPU kernels of the range search.
#pragma once

#include <stdint.h>

#include "cpu/dispatch.h"
#include "dtype.h"

namespace synq::cpu {

struct SearchRangeJob {
  const void* x;
  const float* weights;       // how often each element counts; null for once
  const int32_t* candidates;  // indices of the candidates to evaluate
  int32_t count;              // of candidates
  int32_t bits;
  float range_min;
  float range_max;
  float norm;
  float offset;  // power_offset() of csrc/candidate.h
  DType dtype;
};

struct HistogramJob {
  const void* x;
  float range_min;
  float bins_per_unit;
  int32_t bins;
  DType dtype;
};

struct SearchRangeKernels {
  // Writes each candidate's sum over the elements [begin, end) of 2^(norm log2 |error| + offset).
  void (*sum_errors)(const SearchRangeJob& job, int64_t begin, int64_t end, double* sums);
  // The same of (|error| 2^(offset / norm))^2.
  void (*sum_squares)(const SearchRangeJob& job, int64_t begin, int64_t end, double* sums);
  // Adds the elements [begin, end) to the counts of their bins; at most 2^31 elements.
  void (*count)(const HistogramJob& job, int64_t begin, int64_t end, uint32_t* counts);
};

SYNQ_DECLARE_TABLES(SearchRangeKernels, search_range_kernels);

}  // namespace synq::cpu
