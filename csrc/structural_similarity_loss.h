// Interfaces of the structural similarity's kernels.
#pragma once

#include <stdint.h>

#include "cpu/dispatch.h"
#include "dtype.h"
#include "layout.h"

namespace synq {

// Added to numerator and denominator of the similarity.
constexpr float kStructureOffset = 9e-4f;

// Matrices (positions, channels), one for each head of each of the batch. `statistics` holds for each of them, in rows
// of `channels`: the teacher's means, the student's, the similarities S, and the slopes k, with which the gradient at a
// position of weight w is w k (S (q - mean of q) - (t - mean of t)).
struct StructuralSimilarityParams {
  const void* teacher;
  const void* student;
  const float* weight;    // null for equal weights
  float* statistics;      // (batch * heads, 4, channels)
  float* value;           // one value; CUDA's forward only
  double* workspace;      // structural_similarity_workspace_cuda(params) doubles; CUDA's forward only
  const float* gradient;  // one value, the loss's gradient; backward only
  void* result;           // the student's gradient; backward only
  int64_t batch;
  int64_t heads;
  int64_t positions;
  int64_t channels;
  HeadStrides teacher_strides;
  HeadStrides student_strides;
  HeadStrides result_strides;
  HeadStrides weight_strides;  // of single elements
  DType dtype;

  SYNQ_INLINE_EVERYWHERE int64_t matrices() const { return batch * heads; }
  SYNQ_INLINE_EVERYWHERE int64_t similarities() const { return matrices() * channels; }
};

// Launchers like those of fake_quantize.h. There is at least one element.
int64_t structural_similarity_workspace_cuda(const StructuralSimilarityParams& params);
int structural_similarity_loss_cuda(const StructuralSimilarityParams& params, void* stream);
int structural_similarity_loss_backward_cuda(const StructuralSimilarityParams& params, void* stream);

namespace cpu {

// Channels that are handled together.
constexpr int64_t kChannelTile = 16;

struct StructuralSimilarityKernels {
  // Writes the statistics of the tiles [begin, end) of all matrices' channels, and of each tile the sum of its
  // similarities to sums[tile - begin].
  void (*statistics)(const StructuralSimilarityParams& params, int64_t begin, int64_t end, double* sums);
  // The gradient of the positions [begin, end) of all matrices.
  void (*backward)(const StructuralSimilarityParams& params, int64_t begin, int64_t end);
};

SYNQ_DECLARE_TABLES(StructuralSimilarityKernels, structural_similarity_kernels);

}  // namespace cpu
}  // namespace synq
