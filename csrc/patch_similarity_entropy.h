// The density estimate that the CPU and the CUDA kernels share, and the CUDA launch interface. No torch headers.
#pragma once

#include <math.h>
#include <stdint.h>

#include "dtype.h"

#if defined(__CUDACC__)
#define SYNQ_HOST_DEVICE __host__ __device__
#else
#define SYNQ_HOST_DEVICE
#endif

namespace synq {

constexpr int64_t kMaximumPoints = 256;

// Gaussian kernels of one bandwidth at equally spaced points, and the entropy of the density that they estimate.
struct DensityEstimate {
  int64_t points;
  int64_t similarities;  // count * count, of one image
  double bandwidth;
  double eps;

  // kernel(d) = 2^(exponent() * d * d)
  SYNQ_HOST_DEVICE float exponent() const {
    return static_cast<float>(-0.5 * 1.4426950408889634 / bandwidth / bandwidth);
  }
  SYNQ_HOST_DEVICE float point(float low, float high, int64_t index) const {
    return static_cast<float>(low + (static_cast<double>(high) - low) * index / (points - 1));
  }
  // Weight of a point in the trapezoidal rule.
  SYNQ_HOST_DEVICE double width(float low, float high, int64_t index) const {
    const double spacing = (static_cast<double>(high) - low) / (points - 1);
    return index == 0 || index == points - 1 ? 0.5 * spacing : spacing;
  }
  SYNQ_HOST_DEVICE double normalizer() const { return 1.0 / (bandwidth * 2.5066282746310002 * similarities); }
  SYNQ_HOST_DEVICE double density(double kernel_sum) const { return kernel_sum * normalizer() + eps; }
  SYNQ_HOST_DEVICE static double entropy(double density) { return -density * log(density); }
  // The gradient in similarity s is the sum over the points x of slope * (s - x) * kernel(s - x). Twice, because the
  // unit token that s belongs to meets s as row and as column.
  SYNQ_HOST_DEVICE float slope(double density, double width) const {
    const double of_density = -(log(density) + 1.0) * width;
    return static_cast<float>(-2.0 * of_density * normalizer() / (bandwidth * bandwidth));
  }
};

}  // namespace synq
