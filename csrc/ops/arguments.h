// Checks and layout shared by the CPU and the CUDA implementations of the fake quantization ops.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "fake_quantize.h"
#include "ops/tensors.h"

namespace synq {

struct Input {
  at::Tensor x;  // non-overlapping and dense
  int64_t outer;
  int64_t channels;
  int64_t inner;
  DType dtype;

  // Shape of ranges, scales and zero points: () for a whole tensor, (channels,) along an axis.
  std::vector<int64_t> range_shape;
};

// Checks x, bits and axis, and finds the (outer, channels, inner) view of x's memory; copies x only if it has gaps.
Input check_input(const char* op, const at::Tensor& x, int64_t bits, std::optional<int64_t> axis);

// Checks a range tensor against the input and returns it contiguous.
at::Tensor check_range(const char* op, const char* name, const at::Tensor& range, const Input& input);

// The gradient in the memory layout of x.
at::Tensor match_layout(const at::Tensor& gradient, const at::Tensor& x);

FakeQuantizeParams make_params(const Input& input, int64_t bits);

}  // namespace synq
