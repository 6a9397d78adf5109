// The CUDA implementations behind synq_fast::channel_moments. Nothing here waits for the device.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <c10/cuda/CUDAGuard.h>
#include <torch/library.h>

#include <limits>
#include <tuple>

#include "channel_moments.h"
#include "ops/channel_moments_arguments.h"
#include "ops/launch.h"

namespace synq {
namespace {

using at::Tensor;
using Optional = std::optional<Tensor>;

ChannelMomentsParams make_params(const MomentsInput& input) {
  ChannelMomentsParams params{};
  params.x = input.x.const_data_ptr();
  params.samples = input.samples;
  params.channels = input.channels;
  params.positions = input.positions;
  params.dtype = input.dtype;
  params.innermost = input.innermost;
  return params;
}

std::tuple<Tensor, Tensor> moments_cuda(const Tensor& x) {
  const c10::cuda::CUDAGuard guard(x.device());
  const MomentsInput input = check_moments_input("channel_moments", x);
  const auto options = input.x.options().dtype(at::kFloat).memory_format(std::nullopt);
  Tensor mean = at::empty({input.samples, input.channels}, options);
  Tensor variance = at::empty_like(mean);
  if (x.numel() == 0) {
    constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
    return {mean.fill_(kNan), variance.fill_(kNan)};
  }
  ChannelMomentsParams params = make_params(input);
  params.mean = mean.mutable_data_ptr<float>();
  params.variance = variance.mutable_data_ptr<float>();
  const Tensor workspace = at::empty({channel_moments_workspace_cuda(params)}, options.dtype(at::kDouble));
  params.workspace = workspace.mutable_data_ptr<double>();
  launch(channel_moments_cuda, params);
  return {mean, variance};
}

Tensor moments_backward_cuda(const Optional& of_mean, const Optional& of_variance, const Tensor& x,
                             const Tensor& mean) {
  const char* op = "channel_moments_backward";
  const c10::cuda::CUDAGuard guard(x.device());
  const MomentsInput input = check_moments_input(op, x);
  const Tensor mean_gradient = check_moments_gradient(op, "of_mean", of_mean, input);
  const Tensor variance_gradient = check_moments_gradient(op, "of_variance", of_variance, input);
  const Tensor means = check_moments_gradient(op, "mean", mean, input);
  Tensor result = at::empty_like(x);
  if (x.numel() == 0) return result;
  if (!variance_gradient.defined()) return spread_gradient(mean_gradient, input, result);
  Tensor dense = input.x.strides() == result.strides() ? result : at::empty_like(input.x);
  ChannelMomentsParams params = make_params(input);
  if (mean_gradient.defined()) params.of_mean = mean_gradient.const_data_ptr<float>();
  params.of_variance = variance_gradient.const_data_ptr<float>();
  // Only read.
  params.mean = const_cast<float*>(means.const_data_ptr<float>());
  params.y = dense.mutable_data_ptr();
  launch(channel_moments_backward_cuda, params);
  return dense.is_same(result) ? result : result.copy_(dense);
}

}  // namespace

TORCH_LIBRARY_IMPL(synq_fast, CUDA, m) {
  m.impl("channel_moments", &moments_cuda);
  m.impl("channel_moments_backward", &moments_backward_cuda);
}

}  // namespace synq
