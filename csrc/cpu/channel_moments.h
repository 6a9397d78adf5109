// CPU kernels of the mean and the variance of every channel of every image.
#pragma once

#include <stdint.h>

#include "cpu/dispatch.h"
#include "dtype.h"

namespace synq::cpu {

// Memory is (samples, channels, positions), or (samples, positions, channels) where channels are innermost.
struct MomentsJob {
  const void* x;
  int64_t channels;
  int64_t positions;
  DType dtype;
  // Backward only: the gradient at an element is offset + (x - mean) * slope with those of its channel, (samples,
  // channels).
  const float* mean;
  const float* offset;
  const float* slope;
  void* y;
};

struct MomentsKernels {
  // The sum of x and of its squared distances from the mean, for the channels [begin, end) of all samples' channels.
  void (*runs)(const MomentsJob& job, int64_t begin, int64_t end, double* sums, double* deviations);
  // The same with channels innermost, for every channel of the positions [begin, end), at least one, of one sample.
  void (*columns)(const MomentsJob& job, int64_t sample, int64_t begin, int64_t end, double* sums, double* deviations);
  // The gradient of the elements [begin, end).
  void (*runs_backward)(const MomentsJob& job, int64_t begin, int64_t end);
  void (*columns_backward)(const MomentsJob& job, int64_t begin, int64_t end);
};

SYNQ_DECLARE_TABLES(MomentsKernels, channel_moments_kernels);

}  // namespace synq::cpu
