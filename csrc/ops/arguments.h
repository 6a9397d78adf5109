// Checks and layout shared by the CPU and the CUDA implementations of the fake quantization ops.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <vector>

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

  int64_t elements() const { return x.numel(); }
};

// Checks x, bits, axis and groups, and finds the (outer, channels, inner) view of x's memory; copies x only if it has
// gaps. With groups, `channels` counts these: a run of channels lies in memory like one larger channel.
Input check_input(const char* op, const at::Tensor& x, int64_t bits, std::optional<int64_t> axis,
                  std::optional<int64_t> groups = std::nullopt);

// The same with dimension 1 as the axis; raises ValueError where there is none.
Input check_channels(const char* op, const at::Tensor& x, int64_t bits);

// The same memory as one channel.
Input whole(const Input& input);

// Checks a range tensor against the input and returns it contiguous.
at::Tensor check_range(const char* op, const char* name, const at::Tensor& range, const Input& input);

// The gradient in the memory layout of x.
at::Tensor match_layout(const char* op, const at::Tensor& gradient, const at::Tensor& x);

// A summand of x in the memory layout of x; undefined where none was given. Raises unless shape, type and device are
// those of x.
at::Tensor check_residual(const char* op, const std::optional<at::Tensor>& residual, const at::Tensor& x);

// NaN for no upper bound; raises ValueError unless a bound is positive and finite.
float check_upper(const char* op, std::optional<double> upper);

FakeQuantizeParams make_params(const Input& input, int64_t bits);

}  // namespace synq
