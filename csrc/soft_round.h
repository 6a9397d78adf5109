// Interfaces of the kernels of soft rounding.
#pragma once

#include <stdint.h>

#include "cpu/dispatch.h"
#include "layout.h"

namespace synq {

// Either incoming gradient may be null, for zero.
struct SoftRoundParams : Layout {
  const float* v;
  const int8_t* base;         // same layout as v
  const float* gradient;      // of w, same layout as v; backward only
  float* y;                   // same layout as v; forward: w; backward: the gradient of v
  const float* scale;         // (channels,)
  const float* zero_point;    // (channels,); CUDA: not rounded yet
  const float* exponent;      // one element
  const float* grad_penalty;  // one element; backward only
  float* penalty;             // one element; forward only
  float* grad_scale;          // (channels,); backward only
  double* workspace;          // soft_round_workspace_cuda(params) doubles; CUDA only
  int32_t bits;               // 2..8
};

// Launchers like those of fake_quantize.h. elements() is positive.
int64_t soft_round_workspace_cuda(const SoftRoundParams& params);
int soft_round_cuda(const SoftRoundParams& params, void* stream);
int soft_round_backward_cuda(const SoftRoundParams& params, void* stream);

namespace cpu {

// Both work on a half-open interval of the flat index.
struct SoftRoundKernels {
  // Writes w and adds the elements' part of the penalty to `penalty`.
  void (*forward)(const SoftRoundParams& params, int64_t begin, int64_t end, double* penalty);
  // Writes the gradient of v and adds those of the scales, which lack the factor -1 / scale^2, to `of_scale`.
  void (*backward)(const SoftRoundParams& params, int64_t begin, int64_t end, double* of_scale);
};

SYNQ_DECLARE_TABLES(SoftRoundKernels, soft_round_kernels);

}  // namespace cpu
}  // namespace synq
