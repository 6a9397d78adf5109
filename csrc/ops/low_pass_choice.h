// Which method is the faster one. Measured with benchmarks/measure_low_pass.py; see there.
#pragma once

#include <algorithm>
#include <cstdint>

#include "low_pass.h"

namespace synq {

// The longest side for which dense products beat transforms. The two were timed on sides from 16 to 1536, powers of two
// (which suit transforms best) and primes alike: Gaussian products, two passes over an image, won on all of them, 1.8
// times at 1536; the other kinds, four products, won up to 1024 (1.2 times) and lost at 1536.
constexpr int64_t kLongestSeparableCpu = 1536;
constexpr int64_t kLongestMaskedCpu = 1024;

inline bool prefers_matrix_cpu(bool separable, int64_t height, int64_t width) {
  return std::max(height, width) <= (separable ? kLongestSeparableCpu : kLongestMaskedCpu);
}

// Not timed on a GPU yet. Products take about 3 n / 4 multiplications for each value and pass the image through the
// cache twice; the transforms' passes are many more, so products go first wherever the kernel takes the sides.
inline bool prefers_matrix_cuda(bool separable, int64_t height, int64_t width) {
  return separable && std::max(height, width) <= kLowPassLongestSide;
}

}  // namespace synq
