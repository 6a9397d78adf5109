#include "ops/statistics_arguments.h"

#include <ATen/ops/empty.h>
#include <c10/util/Exception.h>

#include "ops/tensors.h"

namespace synq {

StatisticsInput check_layer(const char* op, const at::Tensor& x) {
  const DType dtype = check_dtype(op, "x", x);
  TORCH_CHECK_VALUE(x.dim() >= 2, op, ": x must have shape (N, C, ...), got ", x.sizes());
  TORCH_CHECK_VALUE(x.numel() > 0, op, ": x is empty, with shape ", x.sizes(), ": it has no statistics");
  StatisticsInput layer{make_dense(x), {}, {}, 1, x.size(1), x.numel(), dtype};
  if (layer.channels > 1) {
    // In dense memory everything faster than the channels fills exactly one of their strides.
    layer.inner = layer.x.stride(1);
    layer.outer = x.numel() / (layer.channels * layer.inner);
  }
  return layer;
}

StatisticsInput check_layer(const char* op, const at::Tensor& x, const at::Tensor& running_mean,
                            const at::Tensor& running_var) {
  StatisticsInput layer = check_layer(op, x);
  const auto checked = [&](const char* name, const at::Tensor& value) {
    check_dtype(op, name, value);
    TORCH_CHECK_VALUE(value.dim() == 1 && value.size(0) == layer.channels, op, ": ", name, " must have shape (",
                      layer.channels, ",), got ", value.sizes());
    TORCH_CHECK_VALUE(value.device() == x.device(), op, ": ", name, " is on ", value.device(), " but x is on ",
                      x.device(), "; move both to one device");
    return value.to(at::kFloat).contiguous();
  };
  layer.running_mean = checked("running_mean", running_mean);
  layer.running_var = checked("running_var", running_var);
  return layer;
}

std::vector<StatisticsInput> check_layers(const char* op, at::TensorList inputs, at::TensorList running_means,
                                          at::TensorList running_vars, at::ArrayRef<double> weights) {
  const size_t count = inputs.size();
  TORCH_CHECK_VALUE(
      count > 0 && running_means.size() == count && running_vars.size() == count && weights.size() == count, op,
      ": inputs, running_means, running_vars and weights must have one entry per layer, got ", count, ", ",
      running_means.size(), ", ", running_vars.size(), " and ", weights.size());
  std::vector<StatisticsInput> layers;
  layers.reserve(count);
  for (size_t i = 0; i < count; ++i) {
    layers.push_back(check_layer(op, inputs[i], running_means[i], running_vars[i]));
    TORCH_CHECK_VALUE(inputs[i].device() == inputs[0].device(), op, ": layer ", i, " is on ", inputs[i].device(),
                      " but layer 0 is on ", inputs[0].device(), "; move all to one device");
  }
  return layers;
}

std::vector<StatisticsInput> check_layers(const char* op, at::TensorList inputs, at::ArrayRef<double> weights) {
  TORCH_CHECK_VALUE(!inputs.empty() && weights.size() == inputs.size(), op,
                    ": inputs and weights must have one entry per layer, got ", inputs.size(), " and ", weights.size());
  std::vector<StatisticsInput> layers;
  layers.reserve(inputs.size());
  for (const at::Tensor& x : inputs) layers.push_back(check_layer(op, x));
  return layers;
}

int64_t count_channels(const std::vector<StatisticsInput>& layers) {
  int64_t count = 0;
  for (const auto& layer : layers) count += layer.channels;
  return count;
}

at::Tensor empty_statistics(const at::Tensor& x, int64_t channels) {
  return at::empty({3, channels}, x.options().dtype(at::kDouble).memory_format(std::nullopt));
}

void check_statistics(const char* op, const at::Tensor& statistics, int64_t channels) {
  TORCH_CHECK_VALUE(statistics.scalar_type() == at::kDouble && statistics.is_contiguous() && statistics.dim() == 2 &&
                        statistics.size(0) == 3 && statistics.size(1) == channels,
                    op, ": statistics must be a contiguous float64 tensor (3, ", channels, "), got ",
                    statistics.scalar_type(), " ", statistics.sizes());
}

at::Tensor check_scale(const char* op, const std::optional<at::Tensor>& gradient, const at::Tensor& x) {
  if (!gradient || !gradient->defined()) return {};
  TORCH_CHECK_VALUE(gradient->numel() == 1 && gradient->device() == x.device(), op,
                    ": the gradient of a loss must hold one value on ", x.device(), ", got shape ", gradient->sizes(),
                    " on ", gradient->device());
  return gradient->to(at::kFloat).contiguous();
}

}  // namespace synq
