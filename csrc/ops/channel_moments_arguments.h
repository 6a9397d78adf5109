// Checks and layout shared by the CPU and the CUDA implementations of the channels' moments.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <optional>
#include <vector>

#include "ops/tensors.h"

namespace synq {

// x as (samples, channels, positions), or (samples, positions, channels) where channels are innermost. Copied only if
// its memory is neither.
struct MomentsInput {
  at::Tensor x;
  int64_t samples;
  int64_t channels;
  int64_t positions;
  bool innermost;
  DType dtype;

  int64_t groups() const { return samples * channels; }
};

inline MomentsInput check_moments_input(const char* op, const at::Tensor& x) {
  const DType dtype = check_dtype(op, "x", x);
  TORCH_CHECK_VALUE(x.dim() >= 2, op, ": x must have shape (B, C, ...), got ", x.sizes());
  int64_t positions = 1;
  for (int64_t i = 2; i < x.dim(); ++i) positions *= x.size(i);
  MomentsInput input{make_dense(x), x.size(0), x.size(1), positions, false, dtype};
  if (x.numel() == 0) return input;
  const bool by_sample = input.samples == 1 || input.x.stride(0) == input.channels * positions;
  const bool by_channel = input.channels == 1 || input.x.stride(1) == positions;
  input.innermost = by_sample && !by_channel && input.x.stride(1) == 1;
  if (!by_sample || !(by_channel || input.innermost)) input.x = input.x.contiguous();
  return input;
}

// An incoming gradient, or the means, as contiguous float32, or undefined.
inline at::Tensor check_moments_gradient(const char* op, const char* name, const std::optional<at::Tensor>& gradient,
                                         const MomentsInput& input) {
  if (!gradient || !gradient->defined()) return {};
  TORCH_CHECK_VALUE(
      gradient->scalar_type() == at::kFloat && gradient->dim() == 2 && gradient->size(0) == input.samples &&
          gradient->size(1) == input.channels && gradient->device() == input.x.device(),
      op, ": ", name, " must be a float32 tensor (", input.samples, ", ", input.channels, ") on ", input.x.device(),
      ", got ", gradient->scalar_type(), " ", gradient->sizes(), " on ", gradient->device());
  return gradient->contiguous();
}

// Writes the gradient of x through the means alone.
inline at::Tensor spread_gradient(const at::Tensor& of_mean, const MomentsInput& input, at::Tensor& result) {
  if (!of_mean.defined()) return result.zero_();
  std::vector<int64_t> shape(static_cast<size_t>(result.dim()), 1);
  shape[0] = input.samples;
  shape[1] = input.channels;
  return result.copy_(of_mean.div(static_cast<double>(input.positions)).view(shape).expand(result.sizes()));
}

}  // namespace synq
