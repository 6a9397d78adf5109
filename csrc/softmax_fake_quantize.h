// Interfaces of the kernels of softmax before fake quantization over one scale.
#pragma once

#include <stdint.h>

#include "cpu/dispatch.h"
#include "dtype.h"

namespace synq {

struct SoftmaxFakeQuantizeParams {
  const void* x;         // dtype, rows of columns
  const void* gradient;  // dtype; backward only
  void* y;               // dtype; forward: the result; backward: the gradient of x
  const float* scale;    // one element
  float* grad_scale;     // one element; backward only
  double* workspace;     // backward only: softmax_fake_quantize_workspace_cuda(params) doubles; CUDA only
  int64_t rows;
  int64_t columns;
  double gradient_scale;
  float alpha;
  int32_t bits;  // 2..16
  int32_t log2;  // whether levels are powers of two
  DType dtype;
};

// Launchers like those of fake_quantize.h. rows and columns are positive.
int softmax_fake_quantize_cuda(const SoftmaxFakeQuantizeParams& params, void* stream);
int64_t softmax_fake_quantize_workspace_cuda(const SoftmaxFakeQuantizeParams& params);
int softmax_fake_quantize_backward_cuda(const SoftmaxFakeQuantizeParams& params, void* stream);

namespace cpu {

// Both work on a half-open interval of the rows, with `workspace` for themselves.
struct SoftmaxFakeQuantizeKernels {
  // Two rows of floats.
  void (*forward)(const SoftmaxFakeQuantizeParams& params, int64_t begin, int64_t end, float* workspace);
  // Writes the gradient of x and adds the terms of the scale. Three rows of floats.
  void (*backward)(const SoftmaxFakeQuantizeParams& params, int64_t begin, int64_t end, float* workspace,
                   double* of_scale);
};

SYNQ_DECLARE_TABLES(SoftmaxFakeQuantizeKernels, softmax_fake_quantize_kernels);

}  // namespace cpu
}  // namespace synq
