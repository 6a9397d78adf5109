// Checks shared by the CPU and the CUDA implementations of the patch similarity entropy.
#pragma once

#include <ATen/core/Tensor.h>

#include "ops/tensors.h"
#include "patch_similarity_entropy.h"

namespace synq {

struct PatchTokens {
  at::Tensor tokens;  // contiguous
  DType dtype;
  DensityEstimate estimate;
};

inline PatchTokens check_patch_tokens(const char* op, const at::Tensor& tokens, int64_t points, double bandwidth,
                                      double eps) {
  const DType dtype = check_dtype(op, "tokens", tokens);
  TORCH_CHECK_VALUE(tokens.dim() == 3 && tokens.size(1) > 0 && tokens.size(2) > 0, op,
                    ": tokens must be (B, N, C) with N and C at least 1, got ", tokens.sizes());
  TORCH_CHECK_VALUE(points >= 2 && points <= kMaximumPoints, op, ": points must be from 2 to ", kMaximumPoints,
                    ", got ", points);
  TORCH_CHECK_VALUE(bandwidth > 0, op, ": bandwidth must be above 0, got ", bandwidth);
  TORCH_CHECK_VALUE(eps > 0, op, ": eps must be above 0, got ", eps);
  return {tokens.contiguous(), dtype, {points, tokens.size(1) * tokens.size(1), bandwidth, eps}};
}

}  // namespace synq
