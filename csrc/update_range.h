// Launch interface of the running range. Plain C++: kernels include no torch headers.
#pragma once

#include <stdint.h>

#include "dtype.h"

namespace synq {

struct UpdateRangeParams {
  const void* x;     // dtype, `elements` of them
  float* state_min;  // one element, changed in place
  float* state_max;  // one element, changed in place
  int64_t* step;     // one element, raised by one
  float* workspace;  // update_range_workspace_cuda(params) floats
  int64_t elements;  // positive
  float beta;
  float gain;  // 1 - beta
  DType dtype;
};

int64_t update_range_workspace_cuda(const UpdateRangeParams& params);
// Enqueues on `stream` (a cudaStream_t) of the current device, never synchronizes, returns the launch's cudaError_t.
int update_range_cuda(const UpdateRangeParams& params, void* stream);

}  // namespace synq
