// CPU kernels of the patch similarity entropy.
#pragma once

#include <stdint.h>

#include "../patch_similarity_entropy.h"
#include "cpu/dispatch.h"
#include "dtype.h"

namespace synq::cpu {

// Tokens are worked on in blocks of this many; a multiple of every vector length.
constexpr int64_t kTokenBlock = 16;

// Of the symmetric similarities only blocks on and above the diagonal are computed, and the kernel's slopes replace
// them. A kernel takes an interval of tasks; task t is one block of tokens of one image, and no two write to one place.
struct SimilarityJob {
  const void* tokens;  // (batch, count, channels), dtype
  float* unit;         // (batch, padded, width): normalised tokens, zero beyond count and channels
  float* transposed;   // (batch, channels, padded): the same, transposed
  float* inverse;      // (batch, padded): 1 / max(norm, 1e-8), negative where the norm is less
  float* similarity;   // (batch, padded, padded)
  float* gradient;     // (batch, count, channels)
  const float* grid;   // (points,)
  const float* slope;  // (batch, points): factor of (s - x) * kernel(s - x) in the gradient of the similarities
  float exponent;      // kernel(d) = 2^(exponent * d * d)
  int64_t count;
  int64_t channels;
  int64_t padded;  // count, up to a multiple of kTokenBlock
  int64_t width;   // channels, up to a multiple of kTokenBlock
  int64_t points;
  DType dtype;

  int64_t blocks() const { return padded / kTokenBlock; }
};

struct PatchSimilarityKernels {
  void (*normalize)(const SimilarityJob& job, int64_t begin, int64_t end);
  // Lowers minimum and raises maximum; a NaN stays.
  void (*similarities)(const SimilarityJob& job, int64_t begin, int64_t end, float* minimum, float* maximum);
  // sums (task, points): of the kernel at each point over the task's similarities and their mirror images.
  void (*densities)(const SimilarityJob& job, int64_t begin, int64_t end, double* sums);
  void (*slopes)(const SimilarityJob& job, int64_t begin, int64_t end);
  // scratch: kTokenBlock * width floats.
  void (*gradients)(const SimilarityJob& job, int64_t begin, int64_t end, float* scratch);
};

SYNQ_DECLARE_TABLES(PatchSimilarityKernels, patch_similarity_kernels);

}  // namespace synq::cpu
