// Launch interface of the low-pass kernels. Plain C++: kernels include no torch headers.
#pragma once

#include <stdint.h>

#include "dtype.h"

namespace synq {

// A circular filter with even taps along one side of n values.
struct LowPassAxis {
  int64_t n;
  // n = 2 h: (taps[d] + taps[d + h]) / 4 for d = 0..h, then (taps[d] - taps[d + h]) / 4. n odd: taps[d] / 2, d = 0..n.
  const float* table;  // in host memory; read before the launcher returns
};

constexpr int64_t low_pass_table_size(int64_t n) { return n % 2 == 0 ? n + 2 : n + 1; }

// Memory is (images, height, width, channels), channels fastest.
struct LowPassParams {
  const void* x;  // dtype
  void* y;        // dtype
  float* middle;  // as many values as x; y itself where dtype is float32
  int64_t images;
  int64_t channels;
  LowPassAxis height;
  LowPassAxis width;
  bool tf32;  // products of values rounded to 10 bits instead of float32's accuracy
  DType dtype;
};

// The longest side that the kernels take.
constexpr int64_t kLowPassLongestSide = 448;

// Enqueues on `stream` (a cudaStream_t) of the current device, never synchronizes, and returns the cudaError_t of the
// launch (0 is success). There is at least one value; pointers may be unaligned to vector width.
int low_pass_cuda(const LowPassParams& params, void* stream);

}  // namespace synq
