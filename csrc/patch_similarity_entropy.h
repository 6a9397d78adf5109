// The density estimate that the CPU and the CUDA kernels share, and the CUDA launch interface. No torch headers.
#pragma once

#include <math.h>
#include <stdint.h>

#include "dtype.h"

#if defined(__CUDACC__)
#define SYNQ_ANYWHERE __host__ __device__
#else
#define SYNQ_ANYWHERE
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
  SYNQ_ANYWHERE float exponent() const { return static_cast<float>(-0.5 * 1.4426950408889634 / bandwidth / bandwidth); }
  SYNQ_ANYWHERE float point(float low, float high, int64_t index) const {
    return static_cast<float>(low + (static_cast<double>(high) - low) * index / (points - 1));
  }
  // Weight of a point in the trapezoidal rule.
  SYNQ_ANYWHERE double width(float low, float high, int64_t index) const {
    const double spacing = (static_cast<double>(high) - low) / (points - 1);
    return index == 0 || index == points - 1 ? 0.5 * spacing : spacing;
  }
  SYNQ_ANYWHERE double normalizer() const { return 1.0 / (bandwidth * 2.5066282746310002 * similarities); }
  SYNQ_ANYWHERE double density(double kernel_sum) const { return kernel_sum * normalizer() + eps; }
  SYNQ_ANYWHERE static double entropy(double density) { return -density * log(density); }
  // The gradient in similarity s is the sum over the points x of slope * (s - x) * kernel(s - x). Twice, because the
  // unit token that s belongs to meets s as row and as column.
  SYNQ_ANYWHERE float slope(double density, double width) const {
    const double of_density = -(log(density) + 1.0) * width;
    return static_cast<float>(-2.0 * of_density * normalizer() / (bandwidth * bandwidth));
  }
};

// On a GPU similarities are worked on in blocks of this many; `sums` holds one sum for each block and point.
constexpr int64_t kSimilarityBlock = 2048;
// And found in tiles of this many rows and columns, those on and below the diagonal.
constexpr int64_t kSimilarityTile = 64;

struct PatchSimilarityParams {
  const void* tokens;  // (batch, count, channels), dtype
  float* unit;         // (batch, count, channels): normalised tokens
  float* inverse;      // (batch, count): 1 / max(norm, 1e-8), negative where the norm is less
  float* similarity;   // (batch, count, count)
  float* extrema;      // (2, batch * tiles())
  float* range;        // least and greatest similarity, then the points
  double* sums;        // (batch, splits(), points)
  float* entropy;      // (batch,)
  float* slope;        // (batch, points); null where no gradient is wanted
  float* gradient;     // (batch, count, channels): in the unit tokens, then in the tokens
  int64_t batch;
  int64_t count;
  int64_t channels;
  DensityEstimate estimate;
  DType dtype;

  int64_t splits() const { return (count * count + kSimilarityBlock - 1) / kSimilarityBlock; }
  int64_t tiles() const {
    const int64_t side = (count + kSimilarityTile - 1) / kSimilarityTile;
    return side * (side + 1) / 2;
  }
};

// As in fake_quantize.h: enqueued on `stream`, never waiting, returning the launch's cudaError_t. The batch is not
// empty. One after the other.
int patch_similarity_entropy_cuda(const PatchSimilarityParams& params, void* stream);  // and slope
// The gradient of the sum of entropies; overwrites the similarities.
int patch_similarity_gradient_cuda(const PatchSimilarityParams& params, void* stream);

}  // namespace synq
