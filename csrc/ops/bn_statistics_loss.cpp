// synq_fast::bn_statistics_loss, the losses of a whole network, and their gradients.
#include "bn_statistics_loss.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <c10/util/SmallVector.h>

#include <tuple>
#include <vector>

#include "cpu/bn_statistics_loss.h"
#include "ops/device.h"
#include "ops/parallel.h"
#include "ops/tensors.h"

namespace synq {
namespace {

using at::Tensor;
using Optional = std::optional<Tensor>;
using Weights = at::ArrayRef<double>;

const cpu::StatisticsKernels& kernels() {
  using namespace cpu;
  return SYNQ_SELECT(statistics_kernels);
}

// One layer. Copied only if it has gaps.
struct Layer : Layout {
  Tensor x;
  DType dtype;
  Tensor running_mean;  // contiguous float32 (channels,); forward only
  Tensor running_var;

  Layer(const char* op, const Tensor& given) : x(given), dtype(check_dtype(op, "x", given)) {
    require(x.dim() >= 2 && x.numel() > 0, op, "x");
    x = make_dense(x);
    static_cast<Layout&>(*this) = layout_around(x.numel(), x.size(1), x.stride(1), x.size(1));
  }

  Layer(const char* op, const Tensor& x, const Tensor& mean, const Tensor& var) : Layer(op, x) {
    running_mean = check(op, "running_mean", mean);
    running_var = check(op, "running_var", var);
  }

  Tensor check(const char* op, const char* name, const Tensor& value) const {
    check_dtype(op, name, value);
    require(value.dim() == 1 && value.size(0) == x.size(1) && value.device() == x.device(), op, name);
    return value.to(at::kFloat).contiguous();
  }
};

int64_t count_channels(const std::vector<Layer>& layers) {
  int64_t count = 0;
  for (const Layer& layer : layers) count += layer.x.size(1);
  return count;
}

// Per channel of all layers in turn: mean, its difference from the running mean, that of the variance.
Tensor empty_statistics(const Tensor& x, int64_t channels) {
  return at::empty({3, channels}, floats_like(x).dtype(at::kDouble));
}

const double* check_statistics(const char* op, const Tensor& statistics, int64_t channels) {
  require(statistics.scalar_type() == at::kDouble && statistics.is_contiguous() && statistics.dim() == 2 &&
              statistics.size(0) == 3 && statistics.size(1) == channels,
          op, "statistics");
  return statistics.const_data_ptr<double>();
}

// An incoming gradient as one float32 value on the device of x, or undefined.
Tensor check_scale(const char* op, const char* name, const Optional& gradient, const Tensor& x) {
  if (!gradient || !gradient->defined()) return {};
  require(gradient->numel() == 1 && gradient->device() == x.device(), op, name);
  return gradient->to(at::kFloat).contiguous();
}

const float* pointer(const Tensor& scale) { return scale.defined() ? scale.const_data_ptr<float>() : nullptr; }

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
Losses finish(const cpu::StatisticsJob& job, const Layer& layer, Rows rows) {
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

Losses compute_on_cpu(const Layer& layer, Rows rows) {
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

// `statistics` points at the layer's first value; its rows are `total` apart.
Tensor gradient_on_cpu(const Layer& layer, const double* statistics, int64_t total, double mean_scale,
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

using Layers = at::ArrayRef<Layer>;

// Fills what `params` points at; the rows of `statistics` hold the layers' channels in turn.
template <Device device>
void compute_on_gpu(Layers layers, Weights weights, BnStatisticsParams params, const Tensor& statistics) {
  c10::SmallVector<BnLayer, 32> described;
  double* values = statistics.mutable_data_ptr<double>();
  for (size_t i = 0; i < layers.size(); ++i) {
    const Layer& layer = layers[i];
    BnLayer& one = described.emplace_back();
    static_cast<Layout&>(one) = layer;
    one.x = layer.x.const_data_ptr();
    one.running_mean = layer.running_mean.const_data_ptr<float>();
    one.running_var = layer.running_var.const_data_ptr<float>();
    one.statistics = values;
    one.weight = weights[i];
    one.dtype = layer.dtype;
    values += layer.channels;
  }
  params.layers = described.data();
  params.count = static_cast<int64_t>(layers.size());
  params.row_stride = statistics.size(1);
  const Tensor workspace = at::empty({bn_statistics_workspace_cuda(params)}, statistics.options());
  params.workspace = workspace.mutable_data_ptr<double>();
  launch(bn_statistics_cuda, params);
}

// The scales are one value each, or undefined; the rows of `statistics` are `row_stride` apart.
template <Device device>
std::vector<Tensor> gradients(Layers layers, const double* statistics, int64_t row_stride, const Tensor& mean_scale,
                              const Tensor& var_scale, Weights weights) {
  std::vector<Tensor> results;
  results.reserve(layers.size());
  c10::SmallVector<BnLayerGradient, 32> described;
  for (size_t i = 0; i < layers.size(); ++i) {
    const Layer& layer = layers[i];
    if constexpr (device == Device::kCPU) {
      results.push_back(gradient_on_cpu(layer, statistics, row_stride, value_of(mean_scale) * weights[i],
                                        value_of(var_scale) * weights[i]));
    } else {
      results.push_back(at::empty_like(layer.x));
      BnLayerGradient& one = described.emplace_back();
      static_cast<Layout&>(one) = layer;
      one.x = layer.x.const_data_ptr();
      one.result = results.back().mutable_data_ptr();
      one.statistics = statistics;
      one.weight = weights[i];
      one.dtype = layer.dtype;
    }
    statistics += layer.channels;
  }
  if constexpr (device != Device::kCPU) {
    BnGradientParams params{};
    params.layers = described.data();
    params.count = static_cast<int64_t>(layers.size());
    params.row_stride = row_stride;
    params.mean_scale = pointer(mean_scale);
    params.var_scale = pointer(var_scale);
    launch(bn_statistics_backward_cuda, params);
  }
  return results;
}

template <Device device>
std::tuple<Tensor, Tensor, Tensor> loss(const Tensor& x, const Tensor& running_mean, const Tensor& running_var) {
  const Guard<device> guard(x);
  const Layer layer("bn_statistics_loss", x, running_mean, running_var);
  const int64_t channels = x.size(1);
  Tensor mean_loss = at::empty({}, floats_like(x));
  Tensor var_loss = at::empty({}, floats_like(x));
  Tensor statistics = empty_statistics(x, channels);
  if constexpr (device == Device::kCPU) {
    const Losses losses = compute_on_cpu(layer, rows_of(statistics.mutable_data_ptr<double>(), 0, channels));
    *mean_loss.mutable_data_ptr<float>() = static_cast<float>(losses.mean);
    *var_loss.mutable_data_ptr<float>() = static_cast<float>(losses.var);
  } else {
    BnStatisticsParams params{};
    params.mean_loss = mean_loss.mutable_data_ptr<float>();
    params.var_loss = var_loss.mutable_data_ptr<float>();
    compute_on_gpu<device>(layer, 1.0, params, statistics);
  }
  return {mean_loss, var_loss, statistics};
}

template <Device device>
Tensor loss_backward(const Optional& mean_loss, const Optional& var_loss, const Tensor& x, const Tensor& statistics) {
  const char* op = "bn_statistics_loss_backward";
  const Guard<device> guard(x);
  const Layer layer(op, x);
  const int64_t channels = x.size(1);
  return gradients<device>(layer, check_statistics(op, statistics, channels), channels,
                           check_scale(op, "mean_loss", mean_loss, x), check_scale(op, "var_loss", var_loss, x), 1.0)
      .front();
}

template <Device device>
std::tuple<Tensor, Tensor> losses(at::TensorList inputs, at::TensorList running_means, at::TensorList running_vars,
                                  Weights weights) {
  const char* op = "bn_statistics_losses";
  const size_t count = inputs.size();
  require(count > 0, op, "inputs");
  require(running_means.size() == count, op, "running_means");
  require(running_vars.size() == count, op, "running_vars");
  require(weights.size() == count, op, "weights");
  const Guard<device> guard(inputs[0]);
  std::vector<Layer> layers;
  layers.reserve(count);
  for (size_t i = 0; i < count; ++i) {
    require(inputs[i].device() == inputs[0].device(), op, "inputs");
    layers.emplace_back(op, inputs[i], running_means[i], running_vars[i]);
  }
  const int64_t total = count_channels(layers);
  Tensor loss = at::empty({}, floats_like(inputs[0]));
  Tensor statistics = empty_statistics(inputs[0], total);
  if constexpr (device == Device::kCPU) {
    double* values = statistics.mutable_data_ptr<double>();
    double sum = 0;
    int64_t first = 0;
    for (size_t i = 0; i < count; ++i) {
      const Losses losses = compute_on_cpu(layers[i], rows_of(values, first, total));
      sum += weights[i] * (losses.mean + losses.var);
      first += inputs[i].size(1);
    }
    *loss.mutable_data_ptr<float>() = static_cast<float>(sum);
  } else {
    BnStatisticsParams params{};
    params.loss = loss.mutable_data_ptr<float>();
    compute_on_gpu<device>(layers, weights, params, statistics);
  }
  return {loss, statistics};
}

template <Device device>
std::vector<Tensor> losses_backward(const Tensor& loss, at::TensorList inputs, const Tensor& statistics,
                                    Weights weights) {
  const char* op = "bn_statistics_losses_backward";
  require(!inputs.empty() && weights.size() == inputs.size(), op, "inputs");
  const Guard<device> guard(inputs[0]);
  std::vector<Layer> layers;
  layers.reserve(inputs.size());
  for (const Tensor& x : inputs) layers.emplace_back(op, x);
  const int64_t total = count_channels(layers);
  const double* values = check_statistics(op, statistics, total);
  const Tensor scale = check_scale(op, "loss", loss, inputs[0]);
  return gradients<device>(layers, values, total, scale, scale, weights);
}

template <Device device>
void register_ops(torch::Library& library) {
  library.impl("bn_statistics_loss", &loss<device>);
  library.impl("bn_statistics_loss_backward", &loss_backward<device>);
  library.impl("bn_statistics_losses", &losses<device>);
  library.impl("bn_statistics_losses_backward", &losses_backward<device>);
}

SYNQ_REGISTER(register_ops)

}  // namespace
}  // namespace synq
