// Checks shared by the CPU and the CUDA implementations of the losses on batch-normalisation statistics.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <vector>

#include "dtype.h"

namespace synq {

// One layer: x in memory as (outer, channels, inner).
struct StatisticsInput {
  at::Tensor x;             // non-overlapping and dense
  at::Tensor running_mean;  // contiguous float32 (channels,)
  at::Tensor running_var;
  int64_t outer;
  int64_t channels;
  int64_t inner;
  DType dtype;
};

StatisticsInput check_layer(const char* op, const at::Tensor& x, const at::Tensor& running_mean,
                            const at::Tensor& running_var);

// x alone, for the backward pass.
StatisticsInput check_layer(const char* op, const at::Tensor& x);

std::vector<StatisticsInput> check_layers(const char* op, at::TensorList inputs, at::TensorList running_means,
                                          at::TensorList running_vars, at::ArrayRef<double> weights);

// The inputs alone, for the backward pass.
std::vector<StatisticsInput> check_layers(const char* op, at::TensorList inputs, at::ArrayRef<double> weights);

int64_t count_channels(const std::vector<StatisticsInput>& layers);

// Per channel of all layers in turn: mean, its difference from the running mean, that of the variance; float64.
at::Tensor empty_statistics(const at::Tensor& x, int64_t channels);

// Raises unless `statistics` is (3, channels) as above.
void check_statistics(const char* op, const at::Tensor& statistics, int64_t channels);

// An incoming gradient as one float32 value on the device of x, or undefined.
at::Tensor check_scale(const char* op, const std::optional<at::Tensor>& gradient, const at::Tensor& x);

}  // namespace synq
