// Launch interface of the fake quantization kernels. Plain C++: kernels include no torch headers.
#pragma once

#include <stdint.h>

#include "dtype.h"
#include "layout.h"

namespace synq {

// The channels of the layout are those of the ranges.
struct FakeQuantizeParams : Layout {
  const void* x;           // dtype
  const void* gradient;    // dtype, same layout as x; backward only
  void* y;                 // forward, dynamic: dtype; backward: gradient of x, dtype; codes: int8 (bits <= 8) or int16
  const float* range_min;  // (channels,); not read by dynamic
  const float* range_max;  // (channels,); not read by dynamic
  float* out_min;          // (channels,); dynamic: range found; codes: scale; otherwise null
  float* out_max;          // (channels,); dynamic: range found; codes: zero point; otherwise null
  float* workspace;        // dynamic only: fake_quantize_dynamic_workspace_cuda(params) floats
  int32_t bits;            // 2..16
  DType dtype;
  bool symmetric;  // dynamic only: the range lies around zero
};

// Every launcher enqueues on `stream` (a cudaStream_t) of the current device, never synchronizes, and returns the
// cudaError_t of the launch (0 is success). Pointers may be unaligned to vector width. elements() may be 0 for codes
// (scale and zero point are still written) and is positive otherwise.
int fake_quantize_cuda(const FakeQuantizeParams& params, void* stream);
int fake_quantize_backward_cuda(const FakeQuantizeParams& params, void* stream);  // the clipped gradient
int64_t fake_quantize_dynamic_workspace_cuda(const FakeQuantizeParams& params);
int fake_quantize_dynamic_cuda(const FakeQuantizeParams& params, void* stream);
int quantize_codes_cuda(const FakeQuantizeParams& params, void* stream);  // NaN becomes code 0

}  // namespace synq
