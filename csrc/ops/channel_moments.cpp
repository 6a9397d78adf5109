// synq_fast::channel_moments and its gradient.
#include "channel_moments.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include <algorithm>
#include <limits>
#include <tuple>
#include <vector>

#include "centred_sums.h"
#include "cpu/channel_moments.h"
#include "ops/device.h"
#include "ops/parallel.h"
#include "ops/tensors.h"

namespace synq {
namespace {

using at::Tensor;
using Optional = std::optional<Tensor>;

const cpu::MomentsKernels& kernels() {
  using namespace cpu;
  return SYNQ_SELECT(channel_moments_kernels);
}

// Copied only if its memory has neither form of the layout.
struct Input : ImageLayout {
  Tensor x;
  DType dtype;

  Input(const char* op, const Tensor& given) : ImageLayout{}, x(given), dtype(check_dtype(op, "x", given)) {
    require(x.dim() >= 2, op, "x");
    samples = x.size(0);
    channels = x.size(1);
    positions = 1;
    for (int64_t i = 2; i < x.dim(); ++i) positions *= x.size(i);
    x = make_dense(x);
    if (x.numel() == 0) return;
    const bool by_sample = samples == 1 || x.stride(0) == channels * positions;
    const bool by_channel = channels == 1 || x.stride(1) == positions;
    innermost = by_sample && !by_channel && x.stride(1) == 1;
    if (!by_sample || !(by_channel || innermost)) x = x.contiguous();
  }

  cpu::MomentsJob job() const {
    cpu::MomentsJob result{};
    result.x = x.const_data_ptr();
    result.channels = channels;
    result.positions = positions;
    result.dtype = dtype;
    return result;
  }

  ChannelMomentsParams params() const {
    ChannelMomentsParams result{};
    static_cast<ImageLayout&>(result) = *this;
    result.x = x.const_data_ptr();
    result.dtype = dtype;
    return result;
  }
};

// An incoming gradient, or the means, as contiguous float32, or undefined.
Tensor check_gradient(const char* op, const char* name, const Optional& gradient, const Input& input) {
  if (!gradient || !gradient->defined()) return {};
  require(gradient->scalar_type() == at::kFloat && gradient->dim() == 2 && gradient->size(0) == input.samples &&
              gradient->size(1) == input.channels && gradient->device() == input.x.device(),
          op, name);
  return gradient->contiguous();
}

// Writes the gradient of x through the means alone.
Tensor spread_gradient(const Tensor& of_mean, const Input& input, Tensor& result) {
  if (!of_mean.defined()) return result.zero_();
  std::vector<int64_t> shape(static_cast<size_t>(result.dim()), 1);
  shape[0] = input.samples;
  shape[1] = input.channels;
  return result.copy_(of_mean.div(static_cast<double>(input.positions)).view(shape).expand(result.sizes()));
}

// Sums of every channel of every sample, and of its squared distances from the mean.
struct Sums {
  std::vector<double> values;
  std::vector<double> deviations;
};

// Samples are cut into parts where they are few; the cuts depend on the sizes alone.
void add_columns(const cpu::MomentsJob& job, const ImageLayout& input, Sums& sums) {
  constexpr int64_t kItems = 16;
  constexpr int64_t kLeastPositions = 8;
  const int64_t channels = input.channels;
  const int64_t positions = input.positions;
  const int64_t wanted = (kItems + input.samples - 1) / input.samples;
  const int64_t useful = std::min(positions * channels / kGrain, positions / kLeastPositions);
  const int64_t parts = std::max<int64_t>(1, std::min(wanted, useful));
  const auto cut = [&](int64_t part) { return part * positions / parts; };
  std::vector<double> others(2 * (parts - 1) * input.groups());
  const auto of_part = [&](int64_t sample, int64_t part) {
    return others.data() + 2 * ((part - 1) * input.samples + sample) * channels;
  };
  for_each_part(input.samples * parts, positions * channels / parts, [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item) {
      const int64_t sample = item / parts;
      const int64_t part = item % parts;
      double* values = part == 0 ? sums.values.data() + sample * channels : of_part(sample, part);
      double* deviations = part == 0 ? sums.deviations.data() + sample * channels : values + channels;
      kernels().columns(job, sample, cut(part), cut(part + 1), values, deviations);
    }
  });
  for (int64_t part = 1; part < parts; ++part) {
    for (int64_t sample = 0; sample < input.samples; ++sample) {
      const double* added = of_part(sample, part);
      const double before = static_cast<double>(cut(part));
      const double count = static_cast<double>(cut(part + 1) - cut(part));
      for (int64_t c = 0; c < channels; ++c) {
        double& sum = sums.values[sample * channels + c];
        double& deviation = sums.deviations[sample * channels + c];
        const auto merged = merge<double>({before, sum, deviation}, {count, added[c], added[channels + c]});
        sum = merged.sum;
        deviation = merged.deviation;
      }
    }
  }
}

void compute(const Input& input, float* means, float* variances) {
  const int64_t groups = input.groups();
  Sums sums{std::vector<double>(groups), std::vector<double>(groups)};
  const cpu::MomentsJob job = input.job();
  if (input.innermost) {
    add_columns(job, input, sums);
  } else {
    for_each_part(groups, input.positions, [&](int64_t begin, int64_t end) {
      kernels().runs(job, begin, end, sums.values.data(), sums.deviations.data());
    });
  }
  const double count = static_cast<double>(input.positions);
  for (int64_t i = 0; i < groups; ++i) {
    means[i] = static_cast<float>(sums.values[i] / count);
    variances[i] = static_cast<float>(sums.deviations[i] / count);
  }
}

template <Device device>
std::tuple<Tensor, Tensor> forward(const Tensor& x) {
  const Guard<device> guard(x);
  const Input input("channel_moments", x);
  const auto floats = floats_like(input.x);
  Tensor mean = at::empty({input.samples, input.channels}, floats);
  Tensor variance = at::empty_like(mean);
  if (x.numel() == 0) {
    constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
    return {mean.fill_(kNan), variance.fill_(kNan)};
  }
  float* means = mean.mutable_data_ptr<float>();
  float* variances = variance.mutable_data_ptr<float>();
  if constexpr (device == Device::kCPU) {
    compute(input, means, variances);
  } else {
    ChannelMomentsParams params = input.params();
    params.mean = means;
    params.variance = variances;
    const Tensor workspace = at::empty({channel_moments_workspace_cuda(params)}, floats.dtype(at::kDouble));
    params.workspace = workspace.mutable_data_ptr<double>();
    launch(channel_moments_cuda, params);
  }
  return {mean, variance};
}

// Offset and slope of every channel of every image on the CPU: the gradients over the number of positions.
struct Factors {
  std::vector<float> values;
  float* offset;
  float* slope;

  Factors(const Tensor& of_mean, const Tensor& of_variance, const Input& input)
      : values(2 * input.groups()), offset(values.data()), slope(offset + input.groups()) {
    const float count = static_cast<float>(input.positions);
    const auto scale = [&](const Tensor& gradient, float factor, float* target) {
      if (!gradient.defined()) return;
      const float* source = gradient.const_data_ptr<float>();
      for (int64_t i = 0; i < input.groups(); ++i) target[i] = source[i] * factor / count;
    };
    scale(of_mean, 1.0f, offset);
    scale(of_variance, 2.0f, slope);
  }
};

template <Device device>
Tensor backward(const Optional& of_mean, const Optional& of_variance, const Tensor& x, const Tensor& mean) {
  const char* op = "channel_moments_backward";
  const Guard<device> guard(x);
  const Input input(op, x);
  const Tensor mean_gradient = check_gradient(op, "of_mean", of_mean, input);
  const Tensor variance_gradient = check_gradient(op, "of_variance", of_variance, input);
  const Tensor means = check_gradient(op, "mean", mean, input);
  Tensor result = at::empty_like(x);
  if (x.numel() == 0) return result;
  // An infinite x times a slope of zero would be NaN.
  if (!variance_gradient.defined()) return spread_gradient(mean_gradient, input, result);
  Tensor dense = input.x.strides() == result.strides() ? result : at::empty_like(input.x);
  if constexpr (device == Device::kCPU) {
    const Factors factors(mean_gradient, variance_gradient, input);
    cpu::MomentsJob job = input.job();
    job.mean = means.const_data_ptr<float>();
    job.offset = factors.offset;
    job.slope = factors.slope;
    job.y = dense.mutable_data_ptr();
    const auto kernel = input.innermost ? kernels().columns_backward : kernels().runs_backward;
    for_each_part(x.numel(), 1, [&](int64_t begin, int64_t end) { kernel(job, begin, end); });
  } else {
    ChannelMomentsParams params = input.params();
    if (mean_gradient.defined()) params.of_mean = mean_gradient.const_data_ptr<float>();
    params.of_variance = variance_gradient.const_data_ptr<float>();
    // Only read.
    params.mean = const_cast<float*>(means.const_data_ptr<float>());
    params.y = dense.mutable_data_ptr();
    launch(channel_moments_backward_cuda, params);
  }
  return dense.is_same(result) ? result : result.copy_(dense);
}

template <Device device>
void register_ops(torch::Library& library) {
  library.impl("channel_moments", &forward<device>);
  library.impl("channel_moments_backward", &backward<device>);
}

SYNQ_REGISTER(register_ops)

}  // namespace
}  // namespace synq
