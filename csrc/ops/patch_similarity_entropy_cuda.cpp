// The CUDA implementation behind synq_fast::patch_similarity_entropy: the kernels around cuBLAS's batched products.
// Nothing here waits for the device.
#include <ATen/Context.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/bmm.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <tuple>

#include "ops/patch_tokens.h"

namespace synq {
namespace {

using at::Tensor;

template <typename Launch>
void launch(Launch launcher, const PatchSimilarityParams& params) {
  C10_CUDA_CHECK(static_cast<cudaError_t>(launcher(params, c10::cuda::getCurrentCUDAStream().stream())));
}

// The gradient is undefined unless asked for.
std::tuple<Tensor, Tensor> evaluate(const char* op, const Tensor& tokens, int64_t points, double bandwidth, double eps,
                                    bool with_gradient) {
  const c10::cuda::CUDAGuard guard(tokens.device());
  // Kernels are narrower than TF32 is precise.
  const at::NoTF32Guard full_precision;
  const PatchTokens input = check_patch_tokens(op, tokens, points, bandwidth, eps);
  const auto floats = tokens.options().dtype(at::kFloat).memory_format(std::nullopt);
  const auto sizes = tokens.sizes();
  Tensor entropy = at::empty({sizes[0]}, floats);
  Tensor gradient;
  if (sizes[0] == 0) {
    if (with_gradient) gradient = at::empty(sizes, floats);
    return {entropy, gradient};
  }
  PatchSimilarityParams params{};
  params.tokens = input.tokens.const_data_ptr();
  params.batch = sizes[0];
  params.count = sizes[1];
  params.channels = sizes[2];
  params.estimate = input.estimate;
  params.dtype = input.dtype;

  Tensor unit = at::empty(sizes, floats);
  Tensor inverse = at::empty({sizes[0], sizes[1]}, floats);
  params.unit = unit.mutable_data_ptr<float>();
  params.inverse = inverse.mutable_data_ptr<float>();
  launch(patch_similarity_normalize_cuda, params);

  Tensor similarity = at::bmm(unit, unit.transpose(1, 2));
  Tensor extrema = at::empty({2, sizes[0] * params.splits()}, floats);
  Tensor range = at::empty({2 + points}, floats);
  Tensor sums = at::empty({sizes[0], params.splits(), points}, floats.dtype(at::kDouble));
  Tensor slope;
  params.similarity = similarity.mutable_data_ptr<float>();
  params.extrema = extrema.mutable_data_ptr<float>();
  params.range = range.mutable_data_ptr<float>();
  params.sums = sums.mutable_data_ptr<double>();
  params.entropy = entropy.mutable_data_ptr<float>();
  if (with_gradient) {
    slope = at::empty({sizes[0], points}, floats);
    params.slope = slope.mutable_data_ptr<float>();
  }
  launch(patch_similarity_entropy_cuda, params);
  if (!with_gradient) return {entropy, gradient};

  launch(patch_similarity_slopes_cuda, params);
  gradient = at::bmm(similarity, unit);
  params.gradient = gradient.mutable_data_ptr<float>();
  launch(patch_similarity_project_cuda, params);
  return {entropy, gradient};
}

Tensor patch_similarity_entropy_cuda_op(const Tensor& tokens, int64_t points, double bandwidth, double eps) {
  return std::get<0>(evaluate("patch_similarity_entropy", tokens, points, bandwidth, eps, false));
}

std::tuple<Tensor, Tensor> patch_similarity_entropy_with_gradient_cuda_op(const Tensor& tokens, int64_t points,
                                                                          double bandwidth, double eps) {
  return evaluate("patch_similarity_entropy_with_gradient", tokens, points, bandwidth, eps, true);
}

}  // namespace

TORCH_LIBRARY_IMPL(synq_fast, CUDA, m) {
  m.impl("patch_similarity_entropy", &patch_similarity_entropy_cuda_op);
  m.impl("patch_similarity_entropy_with_gradient", &patch_similarity_entropy_with_gradient_cuda_op);
}

}  // namespace synq
