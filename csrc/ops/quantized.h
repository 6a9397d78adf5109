// Checks and layout of what the fake quantization ops read.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <vector>

#include "layout.h"
#include "ops/tensors.h"

namespace synq {

// A tensor around the axis of its ranges. Copied only if it has gaps.
struct Input : Layout {
  at::Tensor x;  // non-overlapping and dense
  DType dtype;

  // Shape of ranges, scales and zero points: () for a whole tensor, (channels,) along an axis.
  std::vector<int64_t> range_shape;
};

Input check_input(const char* op, const at::Tensor& x, int64_t bits, std::optional<int64_t> axis,
                  std::optional<int64_t> groups = std::nullopt);

// The same with dimension 1 as the axis.
Input check_channels(const char* op, const at::Tensor& x, int64_t bits);

// The same memory as one channel.
Input whole(const Input& input);

// Checks a range tensor against the input and returns it contiguous.
at::Tensor check_range(const char* op, const char* name, const at::Tensor& range, const Input& input);

// Both bounds; holds them for as long as kernels need their pointers.
struct Ranges {
  at::Tensor minimum;
  at::Tensor maximum;

  Ranges(const char* op, const at::Tensor& range_min, const at::Tensor& range_max, const Input& input)
      : minimum(check_range(op, "range_min", range_min, input)),
        maximum(check_range(op, "range_max", range_max, input)) {}

  const float* low() const { return minimum.const_data_ptr<float>(); }
  const float* high() const { return maximum.const_data_ptr<float>(); }
};

// Parameters of a CUDA launch that are the same for the whole family.
template <typename Params>
Params make_params(const Input& input, int64_t bits) {
  Params params{};
  static_cast<Layout&>(params) = input;
  params.x = input.x.const_data_ptr();
  params.bits = static_cast<int32_t>(bits);
  params.dtype = input.dtype;
  return params;
}

template <typename Params>
Params make_params(const Input& input, const Ranges& ranges, int64_t bits) {
  auto params = make_params<Params>(input, bits);
  params.range_min = ranges.low();
  params.range_max = ranges.high();
  return params;
}

}  // namespace synq
