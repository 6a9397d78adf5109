// Interfaces of the kernels of layer normalisation before fake quantization over one learned grid.
#pragma once

#include <stdint.h>

#include "cpu/dispatch.h"
#include "dtype.h"

namespace synq {

struct LayerNormFakeQuantizeParams {
  const void* x;            // dtype, rows of columns
  const void* gradient;     // dtype; backward only
  void* y;                  // dtype; forward: the result; backward: the gradient of x
  const float* weight;      // (columns,)
  const float* bias;        // (columns,)
  const float* scale;       // one element
  const float* zero_point;  // one element, not rounded
  float* grad_weight;       // (columns,); backward only
  float* grad_bias;         // (columns,); backward only
  float* grad_scale;        // one element; backward only
  float* grad_zero_point;   // one element; backward only
  float* workspace;         // backward only: layer_norm_fake_quantize_workspace_cuda(params) floats; CUDA only
  int64_t rows;
  int64_t columns;
  double gradient_scale;
  float eps;
  int32_t bits;  // 2..16
  DType dtype;
};

// Launchers like those of fake_quantize.h. rows and columns are positive.
int layer_norm_fake_quantize_cuda(const LayerNormFakeQuantizeParams& params, void* stream);
int64_t layer_norm_fake_quantize_workspace_cuda(const LayerNormFakeQuantizeParams& params);
int layer_norm_fake_quantize_backward_cuda(const LayerNormFakeQuantizeParams& params, void* stream);

namespace cpu {

// Both work on a half-open interval of the rows, with `workspace` for themselves.
struct LayerNormFakeQuantizeKernels {
  // A row of floats.
  void (*forward)(const LayerNormFakeQuantizeParams& params, int64_t begin, int64_t end, float* workspace);
  // Writes the gradient of x and adds to `sums` those of weight, of bias, and LearnedTerms of the scale and of the zero
  // point: 2 * columns + 2 of them. Five rows of floats.
  void (*backward)(const LayerNormFakeQuantizeParams& params, int64_t begin, int64_t end, float* workspace,
                   double* sums);
};

SYNQ_DECLARE_TABLES(LayerNormFakeQuantizeKernels, layer_norm_fake_quantize_kernels);

}  // namespace cpu
}  // namespace synq
