// synq_fast::cam_alignment_loss and its gradient.
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <tuple>

#include "ops/cam_maps.h"

namespace synq {
namespace {

using at::Tensor;

template <Device device>
std::tuple<Tensor, Tensor, Tensor> forward(const Tensor& activations, const Tensor& gradients, const Tensor& target_map,
                                           double clamp, double eps, bool with_gradient) {
  const char* op = "cam_alignment_loss";
  const Guard<device> guard(activations);
  const CamInput input(op, activations, gradients);
  const CamSettings settings(op, static_cast<int64_t>(CamKind::kGradCam), clamp, eps);
  const Tensor target = check_map(op, "target_map", target_map, input.samples, activations);
  const int64_t height = target.size(2);
  const int64_t width = target.size(3);
  const auto options = activations.options().dtype(at::kFloat);
  Tensor weights = at::empty({input.samples, input.channels}, options);
  Tensor slope = at::empty({with_gradient ? input.samples : 0, 1, input.height, input.width}, options);
  if (input.samples == 0) return {at::zeros({}, options), weights, slope};
  Tensor loss = at::empty({}, options);
  Tensor coarse = at::empty({input.samples, 1, input.height, input.width}, options);
  if constexpr (device == Device::kCPU) {
    const cpu::CoarseJob job = make_coarse_job(input, settings, weights, coarse);
    Resizing resizing(coarse, height, width, settings.eps);
    resizing.job.other = target.const_data_ptr();
    resizing.job.dtype = check_dtype(op, "target_map", target);
    resizing.job.factor = 1.0 / static_cast<double>(target.numel());
    if (with_gradient) resizing.job.slope = slope.mutable_data_ptr<float>();
    c10::SmallVector<double, 64> losses(input.samples);
    for_each_image(input.samples, input.image_elements() + height * width, resizing.job,
                   [&](int64_t image, float* scratch) {
                     coarse_kernels().coarse(job, image);
                     losses[image] = map_kernels().loss(resizing.job, image, scratch);
                   });
    double sum = 0.0;
    for (const double value : losses) sum += value;
    *loss.mutable_data_ptr<float>() = static_cast<float>(sum);
  } else {
    Tensor stretches = make_stretches(coarse);
    coarse_on_gpu<device>(make_coarse_params(op, input, settings, height, width, weights, coarse, stretches), coarse);
    MapParams params = make_map_params(coarse, stretches, height, width, settings.eps);
    const Tensor workspace = at::empty({cam_workspace_cuda(params)}, options);
    params.other = target.const_data_ptr();
    params.dtype = check_dtype(op, "target_map", target);
    params.workspace = workspace.mutable_data_ptr<float>();
    params.loss = loss.mutable_data_ptr<float>();
    if (with_gradient) params.slope = slope.mutable_data_ptr<float>();
    launch(cam_loss_cuda, params);
  }
  return {loss, weights, slope};
}

template <Device device>
Tensor backward(const Tensor& gradient, const Tensor& weights, const Tensor& slope, bool channels_last,
                at::ScalarType dtype) {
  const char* op = "cam_alignment_loss_backward";
  const Guard<device> guard(slope);
  require(gradient.numel() == 1, op, "grad");
  const CamSettings settings(op, static_cast<int64_t>(CamKind::kGradCam), 0.0, 0.0);
  Spread spread(op, weights, slope, settings, channels_last, dtype);
  if (spread.result.numel() == 0) return spread.result;
  const Tensor dense = slope.contiguous();
  if constexpr (device == Device::kCPU) {
    const float factor = gradient.item<float>();
    const float* slopes = dense.const_data_ptr<float>();
    c10::SmallVector<float, 4096> scaled(slopes, slopes + dense.numel());
    for (float& value : scaled) value *= factor;
    spread_on_cpu(spread, scaled.data());
  } else {
    // Read on the device: the host would have to wait for it.
    const Tensor factor = gradient.to(at::kFloat);
    spread_on_gpu<device>(op, spread, dense, factor.template const_data_ptr<float>());
  }
  return spread.result;
}

template <Device device>
void register_ops(torch::Library& library) {
  library.impl("cam_alignment_loss", &forward<device>);
  library.impl("cam_alignment_loss_backward", &backward<device>);
}

SYNQ_REGISTER(register_ops)

}  // namespace
}  // namespace synq
