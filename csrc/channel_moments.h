// Launch interface of the mean and the variance of every channel of every image.
#pragma once

#include <stdint.h>

#include "dtype.h"

namespace synq {

// Memory is (samples, channels, positions), or (samples, positions, channels) where channels are innermost.
struct ChannelMomentsParams {
  const void* x;             // dtype
  float* mean;               // (samples, channels); written by the forward pass, read by the backward pass
  float* variance;           // like mean; forward only
  double* workspace;         // forward only: channel_moments_workspace_cuda(params) doubles
  const float* of_mean;      // (samples, channels): the gradient of mean, or null; backward only
  const float* of_variance;  // like of_mean
  void* y;                   // dtype, same layout as x: the gradient of x; backward only
  int64_t samples;
  int64_t channels;
  int64_t positions;
  DType dtype;
  bool innermost;

  int64_t groups() const { return samples * channels; }
  int64_t elements() const { return groups() * positions; }
};

// Launchers like those of fake_quantize.h. elements() is positive.
int64_t channel_moments_workspace_cuda(const ChannelMomentsParams& params);
int channel_moments_cuda(const ChannelMomentsParams& params, void* stream);
int channel_moments_backward_cuda(const ChannelMomentsParams& params, void* stream);

}  // namespace synq
