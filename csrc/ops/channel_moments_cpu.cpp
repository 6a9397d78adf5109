// The CPU implementations behind synq_fast::channel_moments.
#include "cpu/channel_moments.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <algorithm>
#include <limits>
#include <tuple>
#include <vector>

#include "centred_sums.h"
#include "ops/channel_moments_arguments.h"
#include "ops/parallel.h"

namespace synq {
namespace {

using at::Tensor;
using Optional = std::optional<Tensor>;

const cpu::MomentsKernels& kernels() {
  using namespace cpu;
  return SYNQ_SELECT(channel_moments_kernels);
}

cpu::MomentsJob make_job(const MomentsInput& input) {
  cpu::MomentsJob job{};
  job.x = input.x.const_data_ptr();
  job.channels = input.channels;
  job.positions = input.positions;
  job.dtype = input.dtype;
  return job;
}

// Sums of every channel of every sample, and of its squared distances from the mean.
struct Sums {
  std::vector<double> values;
  std::vector<double> deviations;
};

// Samples are cut into parts where they are few; the cuts depend on the sizes alone.
void add_columns(const cpu::MomentsJob& job, const MomentsInput& input, Sums& sums) {
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

std::tuple<Tensor, Tensor> moments_cpu(const Tensor& x) {
  const MomentsInput input = check_moments_input("channel_moments", x);
  const auto options = input.x.options().dtype(at::kFloat).memory_format(std::nullopt);
  Tensor mean = at::empty({input.samples, input.channels}, options);
  Tensor variance = at::empty_like(mean);
  const int64_t groups = input.groups();
  Sums sums{std::vector<double>(groups), std::vector<double>(groups)};
  if (input.x.numel() > 0) {
    const cpu::MomentsJob job = make_job(input);
    if (input.innermost) {
      add_columns(job, input, sums);
    } else {
      for_each_part(groups, input.positions, [&](int64_t begin, int64_t end) {
        kernels().runs(job, begin, end, sums.values.data(), sums.deviations.data());
      });
    }
  }
  float* means = mean.mutable_data_ptr<float>();
  float* variances = variance.mutable_data_ptr<float>();
  const double count = static_cast<double>(input.positions);
  for (int64_t i = 0; i < groups; ++i) {
    means[i] = static_cast<float>(sums.values[i] / count);
    variances[i] = static_cast<float>(sums.deviations[i] / count);
  }
  return {mean, variance};
}

Tensor moments_backward_cpu(const Optional& of_mean, const Optional& of_variance, const Tensor& x, const Tensor& mean) {
  const char* op = "channel_moments_backward";
  const MomentsInput input = check_moments_input(op, x);
  const Tensor mean_gradient = check_moments_gradient(op, "of_mean", of_mean, input);
  const Tensor variance_gradient = check_moments_gradient(op, "of_variance", of_variance, input);
  const Tensor means = check_moments_gradient(op, "mean", mean, input);
  Tensor result = at::empty_like(x);
  if (x.numel() == 0) return result;
  // An infinite x times a slope of zero would be NaN.
  if (!variance_gradient.defined()) return spread_gradient(mean_gradient, input, result);
  std::vector<float> factors(2 * input.groups());
  float* offset = factors.data();
  float* slope = offset + input.groups();
  const float count = static_cast<float>(input.positions);
  const auto scaled = [&](const Tensor& gradient, float factor, float* target) {
    if (!gradient.defined()) return;
    const float* source = gradient.const_data_ptr<float>();
    for (int64_t i = 0; i < input.groups(); ++i) target[i] = source[i] * factor / count;
  };
  scaled(mean_gradient, 1.0f, offset);
  scaled(variance_gradient, 2.0f, slope);
  cpu::MomentsJob job = make_job(input);
  job.mean = means.const_data_ptr<float>();
  job.offset = offset;
  job.slope = slope;
  Tensor dense = input.x.strides() == result.strides() ? result : at::empty_like(input.x);
  job.y = dense.mutable_data_ptr();
  const auto kernel = input.innermost ? kernels().columns_backward : kernels().runs_backward;
  for_each_part(x.numel(), 1, [&](int64_t begin, int64_t end) { kernel(job, begin, end); });
  return dense.is_same(result) ? result : result.copy_(dense);
}

}  // namespace

TORCH_LIBRARY_IMPL(synq_fast, CPU, m) {
  m.impl("channel_moments", &moments_cpu);
  m.impl("channel_moments_backward", &moments_backward_cpu);
}

}  // namespace synq
