// The CUDA implementations behind synq_fast::bn_statistics_loss and its relatives. Nothing here waits for the device.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <tuple>
#include <vector>

#include "bn_statistics_loss.h"
#include "ops/statistics_arguments.h"

namespace synq {
namespace {

using at::Tensor;
using Optional = std::optional<Tensor>;

void check_launch(int error) { C10_CUDA_CHECK(static_cast<cudaError_t>(error)); }

void* stream() { return c10::cuda::getCurrentCUDAStream().stream(); }

at::TensorOptions floats_like(const Tensor& x) { return x.options().dtype(at::kFloat).memory_format(std::nullopt); }

// Fills what `params` points at; `statistics` points at the layer's first value, its rows `row_stride` apart.
void compute(const StatisticsInput& layer, BnStatisticsParams params, double* statistics, int64_t row_stride) {
  params.x = layer.x.const_data_ptr();
  params.running_mean = layer.running_mean.const_data_ptr<float>();
  params.running_var = layer.running_var.const_data_ptr<float>();
  params.statistics = statistics;
  params.row_stride = row_stride;
  params.outer = layer.outer;
  params.channels = layer.channels;
  params.inner = layer.inner;
  params.dtype = layer.dtype;
  const Tensor workspace = at::empty({bn_statistics_workspace_cuda(params)}, floats_like(layer.x));
  params.workspace = workspace.mutable_data_ptr<float>();
  check_launch(bn_statistics_cuda(params, stream()));
}

std::tuple<Tensor, Tensor, Tensor> bn_statistics_loss_cuda_op(const Tensor& x, const Tensor& running_mean,
                                                              const Tensor& running_var) {
  const c10::cuda::CUDAGuard guard(x.device());
  const StatisticsInput layer = check_layer("bn_statistics_loss", x, running_mean, running_var);
  Tensor mean_loss = at::empty({}, floats_like(x));
  Tensor var_loss = at::empty({}, floats_like(x));
  Tensor statistics = empty_statistics(x, layer.channels);
  BnStatisticsParams params{};
  params.mean_loss = mean_loss.mutable_data_ptr<float>();
  params.var_loss = var_loss.mutable_data_ptr<float>();
  compute(layer, params, statistics.mutable_data_ptr<double>(), layer.channels);
  return {mean_loss, var_loss, statistics};
}

std::tuple<Tensor, Tensor> bn_statistics_losses_cuda_op(at::TensorList inputs, at::TensorList running_means,
                                                        at::TensorList running_vars, at::ArrayRef<double> weights) {
  const auto layers = check_layers("bn_statistics_losses", inputs, running_means, running_vars, weights);
  const c10::cuda::CUDAGuard guard(inputs[0].device());
  const int64_t total = count_channels(layers);
  const auto count = static_cast<int64_t>(layers.size());
  Tensor loss = at::empty({}, floats_like(inputs[0]));
  Tensor statistics = empty_statistics(inputs[0], total);
  const Tensor weighted = at::empty({count}, statistics.options());
  double* values = statistics.mutable_data_ptr<double>();
  for (int64_t i = 0; i < count; ++i) {
    BnStatisticsParams params{};
    params.weighted = weighted.mutable_data_ptr<double>() + i;
    params.weight = weights[i];
    compute(layers[i], params, values, total);
    values += layers[i].channels;
  }
  check_launch(
      bn_statistics_total_cuda(weighted.const_data_ptr<double>(), count, loss.mutable_data_ptr<float>(), stream()));
  return {loss, statistics};
}

Tensor gradient_of(const StatisticsInput& layer, const double* statistics, int64_t row_stride, const Tensor& mean_scale,
                   const Tensor& var_scale, double weight) {
  Tensor result = at::empty_like(layer.x);
  BnGradientParams params{};
  params.x = layer.x.const_data_ptr();
  params.result = result.mutable_data_ptr();
  params.statistics = statistics;
  params.row_stride = row_stride;
  if (mean_scale.defined()) params.mean_scale = mean_scale.const_data_ptr<float>();
  if (var_scale.defined()) params.var_scale = var_scale.const_data_ptr<float>();
  params.weight = static_cast<float>(weight);
  params.outer = layer.outer;
  params.channels = layer.channels;
  params.inner = layer.inner;
  params.dtype = layer.dtype;
  check_launch(bn_statistics_backward_cuda(params, stream()));
  return result;
}

Tensor backward_cuda_op(const Optional& mean_loss, const Optional& var_loss, const Tensor& x,
                        const Tensor& statistics) {
  const char* op = "bn_statistics_loss_backward";
  const c10::cuda::CUDAGuard guard(x.device());
  const StatisticsInput layer = check_layer(op, x);
  check_statistics(op, statistics, layer.channels);
  return gradient_of(layer, statistics.const_data_ptr<double>(), layer.channels, check_scale(op, mean_loss, x),
                     check_scale(op, var_loss, x), 1.0);
}

std::vector<Tensor> losses_backward_cuda_op(const Tensor& loss, at::TensorList inputs, const Tensor& statistics,
                                            at::ArrayRef<double> weights) {
  const char* op = "bn_statistics_losses_backward";
  const auto layers = check_layers(op, inputs, weights);
  const c10::cuda::CUDAGuard guard(inputs[0].device());
  const int64_t total = count_channels(layers);
  check_statistics(op, statistics, total);
  const Tensor scale = check_scale(op, loss, inputs[0]);
  const double* values = statistics.const_data_ptr<double>();
  std::vector<Tensor> results;
  results.reserve(layers.size());
  for (size_t i = 0; i < layers.size(); ++i) {
    results.push_back(gradient_of(layers[i], values, total, scale, scale, weights[i]));
    values += layers[i].channels;
  }
  return results;
}

}  // namespace

TORCH_LIBRARY_IMPL(synq_fast, CUDA, m) {
  m.impl("bn_statistics_loss", &bn_statistics_loss_cuda_op);
  m.impl("bn_statistics_loss_backward", &backward_cuda_op);
  m.impl("bn_statistics_losses", &bn_statistics_losses_cuda_op);
  m.impl("bn_statistics_losses_backward", &losses_backward_cuda_op);
}

}  // namespace synq
