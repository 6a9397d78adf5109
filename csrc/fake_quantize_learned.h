// Launch interface of fake quantization over a learned grid.
#pragma once

#include <stdint.h>

#include "dtype.h"
#include "layout.h"

namespace synq {

struct FakeQuantizeLearnedParams : Layout {
  const void* x;            // dtype
  const void* gradient;     // dtype, same layout as x; backward only
  void* y;                  // dtype; forward: the result; backward: the gradient of x
  const float* scale;       // (channels,)
  const float* zero_point;  // (channels,), not rounded
  float* grad_scale;        // (channels,); backward only
  float* grad_zero_point;   // (channels,); backward only
  double* workspace;        // backward only: fake_quantize_learned_workspace_cuda(params) doubles
  const int64_t* seed;      // (1,); dropped only
  int64_t offset;           // see philox.h; dropped only
  double gradient_scale;
  uint32_t threshold;  // dropped only
  int32_t bits;        // 2..16
  DType dtype;
};

// Launchers like those of fake_quantize.h. elements() is positive.
int fake_quantize_learned_cuda(const FakeQuantizeLearnedParams& params, void* stream);
int64_t fake_quantize_learned_workspace_cuda(const FakeQuantizeLearnedParams& params);
int fake_quantize_learned_backward_cuda(const FakeQuantizeLearnedParams& params, void* stream);

// The same where elements are left as they are by chance.
int fake_quantize_learned_dropped_cuda(const FakeQuantizeLearnedParams& params, void* stream);
int fake_quantize_learned_dropped_backward_cuda(const FakeQuantizeLearnedParams& params, void* stream);

}  // namespace synq
