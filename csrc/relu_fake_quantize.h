// Launch interface of ReLU and fake quantization in one pass, alone and after a per-channel affine map.
#pragma once

#include <stdint.h>

#include "dtype.h"
#include "layout.h"

namespace synq {

// The channels of the layout are those of the range, or, with an affine map, those of the map, and the range is one for
// all.
struct ReluFakeQuantizeParams : Layout {
  const void* x;           // dtype
  const void* gradient;    // dtype, same layout as x; backward only
  const void* residual;    // dtype, same layout as x; null: none; with an affine map only
  void* y;                 // dtype; forward: the result; backward: the gradient of x
  void* grad_residual;     // dtype, same layout as x; null: not wanted; backward only
  const float* weight;     // (channels,) with an affine map, else null
  const float* bias;       // (channels,) with an affine map, else null
  const float* range_min;  // (channels,), or one value with an affine map
  const float* range_max;  // like range_min
  float* grad_weight;      // (channels,); null: sums are not wanted
  float* grad_bias;        // (channels,); null: sums are not wanted
  double* workspace;       // with sums: affine_relu_fake_quantize_workspace_cuda(params) doubles
  float upper;             // NaN: no upper bound
  int32_t bits;            // 2..16
  DType dtype;
  bool clip;  // backward only: the quantizer's gradient is clipped
};

// Launchers like those of fake_quantize.h. elements() is positive.
int relu_fake_quantize_cuda(const ReluFakeQuantizeParams& params, void* stream);
int relu_fake_quantize_backward_cuda(const ReluFakeQuantizeParams& params, void* stream);
int affine_relu_fake_quantize_cuda(const ReluFakeQuantizeParams& params, void* stream);
int64_t affine_relu_fake_quantize_workspace_cuda(const ReluFakeQuantizeParams& params);
int affine_relu_fake_quantize_backward_cuda(const ReluFakeQuantizeParams& params, void* stream);

}  // namespace synq
