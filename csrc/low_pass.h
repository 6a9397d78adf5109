// Launch interface of the low-pass kernels. Plain C++: kernels include no torch headers.
#pragma once

#include <stdint.h>

#include "dtype.h"

namespace synq {

// A circular filter with even taps along one side of n values, and the memory for its matrix.
struct LowPassMatrixParams {
  int64_t n;
  // n = 2 h: (taps[d] + taps[d + h]) / 4 for d = 0..h, then (taps[d] - taps[d + h]) / 4. n odd: taps[d] / 2, d = 0..n.
  const float* table;  // in host memory; read before the launcher returns
  float* matrix;       // low_pass_matrix_size(n) values, aligned to 16 bytes
};

constexpr int64_t low_pass_table_size(int64_t n) { return n % 2 == 0 ? n + 2 : n + 1; }

int64_t low_pass_matrix_size(int64_t n);

// Writes the matrix of a side as the product wants it; see below for what is returned.
int low_pass_matrix_cuda(const LowPassMatrixParams& params, void* stream);

struct LowPassAxis {
  int64_t n;
  const float* matrix;  // by low_pass_matrix_cuda
};

// Memory is (images, height, width, channels), channels fastest.
struct LowPassParams {
  const void* x;     // dtype
  void* y;           // dtype
  float* workspace;  // low_pass_workspace_cuda(params) values
  int64_t images;
  int64_t channels;
  LowPassAxis height;
  LowPassAxis width;
  bool tf32;  // products of values rounded to 10 bits instead of float32's accuracy
  DType dtype;
};

// The longest side that the kernels take.
constexpr int64_t kLowPassLongestSide = 448;

// What lies between the two passes over a chunk of images; 0 where dtype is float32, which keeps it in y.
int64_t low_pass_workspace_cuda(const LowPassParams& params);

// Enqueues on `stream` (a cudaStream_t) of the current device, never synchronizes, and returns the cudaError_t of the
// launch (0 is success). There is at least one value; images may be unaligned to vector width.
int low_pass_cuda(const LowPassParams& params, void* stream);

}  // namespace synq
