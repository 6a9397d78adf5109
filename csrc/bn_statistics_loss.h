// Launch interface of the BN-statistics loss kernels. Plain C++: kernels include no torch headers.
#pragma once

#include <stdint.h>

#include "dtype.h"
#include "layout.h"

namespace synq {

// One layer. Per channel, over n = outer * inner elements:
//   mean_loss = mean over channels of (mean - running_mean)^2, var_loss likewise with the biased variance.
struct BnLayer : Layout {
  const void* x;              // dtype
  const float* running_mean;  // (channels,)
  const float* running_var;   // (channels,)
  double* statistics;         // three rows of (channels,): mean, mean - running_mean, variance - running_var
  double weight;              // of the layer's losses
  DType dtype;
};

// The weighted losses of all layers.
struct BnStatisticsParams {
  const BnLayer* layers;  // in the memory of the host
  int64_t count;          // of layers
  int64_t row_stride;     // between the rows of statistics
  float* mean_loss;       // one value; or null
  float* var_loss;        // null together with mean_loss
  float* loss;            // one value, the sum of both; or null
  double* workspace;      // bn_statistics_workspace_cuda(params) doubles
};

// result = offset + slope * (x - mean) with per-channel coefficients of the two incoming gradients.
struct BnLayerGradient : Layout {
  const void* x;             // dtype
  void* result;              // dtype, same layout
  const double* statistics;  // as above
  double weight;
  DType dtype;
};

struct BnGradientParams {
  const BnLayerGradient* layers;  // in the memory of the host
  int64_t count;
  int64_t row_stride;
  const float* mean_scale;  // one value: the gradient of mean_loss; or null
  const float* var_scale;   // one value: the gradient of var_loss; or null
};

// All enqueue on `stream` (a cudaStream_t) of the current device, never synchronize, and return the cudaError_t of the
// launch (0 is success). Sizes are positive. Layers that are read in the same way share their launches.
int64_t bn_statistics_workspace_cuda(const BnStatisticsParams& params);
int bn_statistics_cuda(const BnStatisticsParams& params, void* stream);
int bn_statistics_backward_cuda(const BnGradientParams& params, void* stream);

}  // namespace synq
