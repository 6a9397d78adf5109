// CPU kernels of the loss on batch-normalisation statistics.
#pragma once

#include <stdint.h>

#include "cpu/dispatch.h"
#include "dtype.h"

namespace synq::cpu {

// Below this inner size memory is read row by row, each row holding every channel: the channels' pieces are too short
// to be walked one by one.
constexpr int64_t kNarrow = 16;
// A row holds at most this many elements where channels allow it; short ones are read several at a time.
constexpr int64_t kRowElements = 256;

// How many samples of (channels, inner) are read as one row.
inline int64_t folded(int64_t channels, int64_t inner) {
  const int64_t columns = channels * inner;
  return columns < kRowElements ? kRowElements / columns : 1;
}

// Memory is (outer, channels, inner). The work is cut into `splits` parts of the elements of each channel and `groups`
// groups of channels; an item is (split, group), group fastest. Both numbers come from plan() and depend on the shape
// alone, so no result depends on the number of threads.
struct StatisticsJob {
  const void* x;
  int64_t* count;     // (splits,): elements per channel in the part
  double* mean;       // (splits, channels)
  double* deviation;  // (splits, channels): sum of squared differences from that mean
  int64_t outer;
  int64_t channels;
  int64_t inner;
  int64_t splits;
  int64_t groups;
  DType dtype;
};

// result = (x - shift) * slope + offset. With inner >= kNarrow the coefficients are (channels,); otherwise they are
// repeated for each element of a row of folded(channels, inner) * channels * inner.
struct StatisticsGradientJob {
  const void* x;
  void* result;
  const float* shift;
  const float* slope;
  const float* offset;
  int64_t channels;
  int64_t inner;
  DType dtype;
};

struct StatisticsKernels {
  void (*plan)(StatisticsJob& job);  // sets splits and groups
  void (*reduce)(const StatisticsJob& job, int64_t begin, int64_t end);
  void (*gradient)(const StatisticsGradientJob& job, int64_t begin, int64_t end);
};

SYNQ_DECLARE_TABLES(StatisticsKernels, statistics_kernels);

}  // namespace synq::cpu
