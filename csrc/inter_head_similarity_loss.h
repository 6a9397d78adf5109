// Interfaces of the inter-head similarity's kernels.
#pragma once

#include <stdint.h>

#include "cpu/dispatch.h"
#include "dtype.h"
#include "layout.h"

namespace synq {

constexpr int64_t kMaximumHeads = 64;
constexpr float kLuminanceOffset = 1e-4f;
constexpr float kContrastOffset = 9e-4f;
constexpr float kLeastRange = 1e-8f;

// Logits (batch, heads, queries, keys). Of a query's heads, rows scaled to 0..1, with means m, variances v and
// covariances c: S = A B / (C D) with A = 2 m_h m_g + C1, B = 2 c + C2, C = m_h^2 + m_g^2 + C1, D = v_h + v_g + C2.
struct InterHeadSimilarityParams {
  const void* logits;     // dtype
  float* value;           // one value; CUDA's forward only
  double* workspace;      // (batch * queries,): the sums of 1 - S^2 over a query's pairs; CUDA's forward only
  const float* gradient;  // one value, the loss's gradient; backward only
  void* result;           // the logits' gradient; backward only
  int64_t batch;
  int64_t heads;
  int64_t queries;
  int64_t keys;
  HeadStrides strides;
  HeadStrides result_strides;
  DType dtype;

  SYNQ_INLINE_EVERYWHERE int64_t items() const { return batch * queries; }
  SYNQ_INLINE_EVERYWHERE double pairs() const {
    return static_cast<double>(items()) * static_cast<double>(heads * heads);
  }
};

// Launchers like those of fake_quantize.h. There is at least one element.
int inter_head_similarity_loss_cuda(const InterHeadSimilarityParams& params, void* stream);
int inter_head_similarity_loss_backward_cuda(const InterHeadSimilarityParams& params, void* stream);

namespace cpu {

struct InterHeadSimilarityKernels {
  // Floats of scratch that a call needs.
  int64_t (*scratch)(const InterHeadSimilarityParams& params);
  // Writes the sum of 1 - S^2 of each of the queries [begin, end) of all batches to terms[query - begin].
  void (*forward)(const InterHeadSimilarityParams& params, int64_t begin, int64_t end, double* terms, float* scratch);
  // The gradient of the logits of the queries [begin, end).
  void (*backward)(const InterHeadSimilarityParams& params, int64_t begin, int64_t end, float* scratch);
};

SYNQ_DECLARE_TABLES(InterHeadSimilarityKernels, inter_head_similarity_kernels);

}  // namespace cpu
}  // namespace synq
