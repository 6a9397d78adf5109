// The CPU implementations behind synq_fast::bn_statistics_loss and its relatives.
#include "cpu/bn_statistics_loss.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <c10/util/SmallVector.h>
#include <torch/library.h>

#include <tuple>
#include <vector>

#include "ops/parallel.h"
#include "ops/statistics_arguments.h"

namespace synq {
namespace {

using at::Tensor;
using Optional = std::optional<Tensor>;

const cpu::StatisticsKernels& kernels() {
  using namespace cpu;
  return SYNQ_SELECT(statistics_kernels);
}

struct Losses {
  double mean;
  double var;
};

// Rows of the statistics of one layer among those of all layers.
struct Rows {
  double* mean;
  double* mean_error;
  double* var_error;
};

Rows rows_of(double* statistics, int64_t first, int64_t total) {
  return {statistics + first, statistics + total + first, statistics + 2 * total + first};
}

// Puts the parts of each channel together, in their order, and compares with the running statistics.
Losses finish(const cpu::StatisticsJob& job, const StatisticsInput& layer, Rows rows) {
  const int64_t channels = layer.channels;
  double* deviation = rows.var_error;
  for (int64_t c = 0; c < channels; ++c) {
    rows.mean[c] = job.mean[c];
    deviation[c] = job.deviation[c];
  }
  double count = static_cast<double>(job.count[0]);
  for (int64_t split = 1; split < job.splits; ++split) {
    const double added = static_cast<double>(job.count[split]);
    const double share = added / (count + added);
    const double factor = count * share;
    const double* mean = job.mean + split * channels;
    for (int64_t c = 0; c < channels; ++c) {
      const double delta = mean[c] - rows.mean[c];
      rows.mean[c] += delta * share;
      deviation[c] += job.deviation[split * channels + c] + delta * delta * factor;
    }
    count += added;
  }
  const float* running_mean = layer.running_mean.const_data_ptr<float>();
  const float* running_var = layer.running_var.const_data_ptr<float>();
  Losses losses{0, 0};
  for (int64_t c = 0; c < channels; ++c) {
    rows.mean_error[c] = rows.mean[c] - static_cast<double>(running_mean[c]);
    rows.var_error[c] = deviation[c] / count - static_cast<double>(running_var[c]);
    losses.mean += rows.mean_error[c] * rows.mean_error[c];
    losses.var += rows.var_error[c] * rows.var_error[c];
  }
  return {losses.mean / static_cast<double>(channels), losses.var / static_cast<double>(channels)};
}

Losses compute(const StatisticsInput& layer, Rows rows) {
  cpu::StatisticsJob job{};
  job.x = layer.x.const_data_ptr();
  job.outer = layer.outer;
  job.channels = layer.channels;
  job.inner = layer.inner;
  job.dtype = layer.dtype;
  kernels().plan(job);
  std::vector<double> partial(2 * job.splits * job.channels);
  c10::SmallVector<int64_t, 64> count(job.splits);
  job.count = count.data();
  job.mean = partial.data();
  job.deviation = partial.data() + job.splits * job.channels;
  const int64_t items = job.splits * job.groups;
  for_each_part(items, layer.x.numel() / items, [&](int64_t begin, int64_t end) { kernels().reduce(job, begin, end); });
  return finish(job, layer, rows);
}

Tensor scalar(double value, const Tensor& x) {
  Tensor result = at::empty({}, x.options().dtype(at::kFloat).memory_format(std::nullopt));
  *result.mutable_data_ptr<float>() = static_cast<float>(value);
  return result;
}

std::tuple<Tensor, Tensor, Tensor> bn_statistics_loss_cpu(const Tensor& x, const Tensor& running_mean,
                                                          const Tensor& running_var) {
  const StatisticsInput layer = check_layer("bn_statistics_loss", x, running_mean, running_var);
  Tensor statistics = empty_statistics(x, layer.channels);
  const Losses losses = compute(layer, rows_of(statistics.mutable_data_ptr<double>(), 0, layer.channels));
  return {scalar(losses.mean, x), scalar(losses.var, x), statistics};
}

std::tuple<Tensor, Tensor> bn_statistics_losses_cpu(at::TensorList inputs, at::TensorList running_means,
                                                    at::TensorList running_vars, at::ArrayRef<double> weights) {
  const auto layers = check_layers("bn_statistics_losses", inputs, running_means, running_vars, weights);
  const int64_t total = count_channels(layers);
  Tensor statistics = empty_statistics(inputs[0], total);
  double loss = 0;
  int64_t first = 0;
  for (size_t i = 0; i < layers.size(); ++i) {
    const Losses losses = compute(layers[i], rows_of(statistics.mutable_data_ptr<double>(), first, total));
    loss += weights[i] * (losses.mean + losses.var);
    first += layers[i].channels;
  }
  return {scalar(loss, inputs[0]), statistics};
}

// `statistics` points at the layer's first value; its rows are `total` apart.
Tensor gradient_of(const StatisticsInput& layer, const double* statistics, int64_t total, double mean_scale,
                   double var_scale) {
  const int64_t channels = layer.channels;
  const bool narrow = layer.inner < cpu::kNarrow;
  const int64_t repeats = narrow ? cpu::folded(channels, layer.inner) : 1;
  const int64_t each = narrow ? layer.inner : 1;
  const int64_t length = repeats * channels * each;
  c10::SmallVector<float, 1024> values(3 * length);
  float* shift = values.data();
  float* slope = shift + length;
  float* offset = slope + length;
  const double per_channel = 2 / static_cast<double>(channels);
  const double count = static_cast<double>(layer.outer * layer.inner);
  for (int64_t c = 0; c < channels; ++c) {
    const double mean = statistics[c];
    const float near = static_cast<float>(mean);
    const double steep = var_scale * per_channel * statistics[2 * total + c] * 2 / count;
    const double flat =
        mean_scale * per_channel * statistics[total + c] / count - steep * (mean - static_cast<double>(near));
    for (int64_t i = c * each; i < (c + 1) * each; ++i) {
      shift[i] = near;
      slope[i] = static_cast<float>(steep);
      offset[i] = static_cast<float>(flat);
    }
  }
  for (int64_t i = channels * each; i < length; ++i) {
    shift[i] = shift[i - channels * each];
    slope[i] = slope[i - channels * each];
    offset[i] = offset[i - channels * each];
  }
  Tensor result = at::empty_like(layer.x);
  cpu::StatisticsGradientJob job{};
  job.x = layer.x.const_data_ptr();
  job.result = result.mutable_data_ptr();
  job.shift = shift;
  job.slope = slope;
  job.offset = offset;
  job.channels = channels;
  job.inner = layer.inner;
  job.dtype = layer.dtype;
  for_each_part(layer.x.numel(), 1, [&](int64_t begin, int64_t end) { kernels().gradient(job, begin, end); });
  return result;
}

double value_of(const Tensor& scale) {
  return scale.defined() ? static_cast<double>(*scale.const_data_ptr<float>()) : 0.0;
}

Tensor backward_cpu(const Optional& mean_loss, const Optional& var_loss, const Tensor& x, const Tensor& statistics) {
  const char* op = "bn_statistics_loss_backward";
  const StatisticsInput layer = check_layer(op, x);
  check_statistics(op, statistics, layer.channels);
  return gradient_of(layer, statistics.const_data_ptr<double>(), layer.channels,
                     value_of(check_scale(op, mean_loss, x)), value_of(check_scale(op, var_loss, x)));
}

std::vector<Tensor> losses_backward_cpu(const Tensor& loss, at::TensorList inputs, const Tensor& statistics,
                                        at::ArrayRef<double> weights) {
  const char* op = "bn_statistics_losses_backward";
  const auto layers = check_layers(op, inputs, weights);
  const int64_t total = count_channels(layers);
  check_statistics(op, statistics, total);
  const double scale = value_of(check_scale(op, loss, inputs[0]));
  const double* values = statistics.const_data_ptr<double>();
  std::vector<Tensor> results;
  results.reserve(layers.size());
  for (size_t i = 0; i < layers.size(); ++i) {
    results.push_back(gradient_of(layers[i], values, total, scale * weights[i], scale * weights[i]));
    values += layers[i].channels;
  }
  return results;
}

}  // namespace

TORCH_LIBRARY_IMPL(synq_fast, CPU, m) {
  m.impl("bn_statistics_loss", &bn_statistics_loss_cpu);
  m.impl("bn_statistics_loss_backward", &backward_cpu);
  m.impl("bn_statistics_losses", &bn_statistics_losses_cpu);
  m.impl("bn_statistics_losses_backward", &losses_backward_cpu);
}

}  // namespace synq
