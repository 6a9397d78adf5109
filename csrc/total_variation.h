// Interfaces of the total variation's kernels.
#pragma once

#include <stdint.h>

#include "cpu/dispatch.h"
#include "dtype.h"
#include "layout.h"

namespace synq {

// The planes are divided into equal groups, one for each value: the images, or one for all.
struct TotalVariationParams : PlaneLayout {
  const void* x;          // dtype
  float* norms;           // (groups, 4): of the differences to the right, down, and along both diagonals
  float* value;           // (groups,), the sums of the norms; forward only
  double* workspace;      // total_variation_workspace_cuda(params) doubles; CUDA's forward only
  const float* gradient;  // (groups,): the gradients of the values; CUDA's backward only
  const float* factors;   // (groups, 4): the gradients over the norms, 0 where these are; the CPU's backward only
  void* y;                // dtype, same layout as x: the gradient of x; backward only
  int64_t groups;
  DType dtype;
};

// Launchers like those of fake_quantize.h. There is at least one element.
int64_t total_variation_workspace_cuda(const TotalVariationParams& params);
int total_variation_cuda(const TotalVariationParams& params, void* stream);
int total_variation_backward_cuda(const TotalVariationParams& params, void* stream);

namespace cpu {

struct TotalVariationKernels {
  // Writes the four sums of squares of each of the rows [begin, end) of all planes to sums[4 * (row - begin)].
  // `scratch` has room for two rows.
  void (*sums)(const TotalVariationParams& params, int64_t begin, int64_t end, double* sums, float* scratch);
  // The gradient of rows [begin, end). `scratch` has room for four rows.
  void (*backward)(const TotalVariationParams& params, int64_t begin, int64_t end, float* scratch);
};

SYNQ_DECLARE_TABLES(TotalVariationKernels, total_variation_kernels);

}  // namespace cpu
}  // namespace synq
