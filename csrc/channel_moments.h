// Launch interface of the mean and the variance of every channel of every image.
#pragma once

#include <stdint.h>

#include "dtype.h"
#include "layout.h"

namespace synq {

struct ChannelMomentsParams : ImageLayout {
  const void* x;             // dtype
  float* mean;               // (samples, channels); written by the forward pass, read by the backward pass
  float* variance;           // like mean; forward only
  double* workspace;         // forward only: channel_moments_workspace_cuda(params) doubles
  const float* of_mean;      // (samples, channels): the gradient of mean, or null; backward only
  const float* of_variance;  // like of_mean
  void* y;                   // dtype, same layout as x: the gradient of x; backward only
  DType dtype;
};

// Launchers like those of fake_quantize.h. elements() is positive.
int64_t channel_moments_workspace_cuda(const ChannelMomentsParams& params);
int channel_moments_cuda(const ChannelMomentsParams& params, void* stream);
int channel_moments_backward_cuda(const ChannelMomentsParams& params, void* stream);

}  // namespace synq
