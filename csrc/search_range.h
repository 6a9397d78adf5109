// Launch interface of the range search. Plain C++: kernels include no torch headers.
#pragma once

#include <stdint.h>

#include "dtype.h"
#include "layout.h"

namespace synq {

constexpr int kMaximumCandidates = 100;
// Beyond, float32 cannot hold the powers of a tensor's small and large errors.
constexpr double kMaximumNorm = 16.0;

struct SearchRangeParams : Layout {
  const void* x;       // dtype; elements() is positive
  float* range_min;    // (channels,)
  float* range_max;    // (channels,)
  double* workspace;   // search_range_workspace_cuda(params) doubles
  int32_t candidates;  // 1..kMaximumCandidates
  int32_t bits;        // 2..16
  float norm;          // above 0, at most kMaximumNorm
  DType dtype;
};

int64_t search_range_workspace_cuda(const SearchRangeParams& params);
// Enqueues on `stream` (a cudaStream_t) of the current device, never synchronizes, returns the launch's cudaError_t.
int search_range_cuda(const SearchRangeParams& params, void* stream);

}  // namespace synq
