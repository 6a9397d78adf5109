// synq_fast::grad_cam, which is the whole family of maps, and its gradient.
#include <ATen/ops/empty.h>

#include <tuple>

#include "ops/cam_maps.h"

namespace synq {
namespace {

using at::Tensor;
using Score = std::optional<Tensor>;

// The score of each image of Grad-CAM++, contiguous float32.
Tensor check_score(const char* op, const Score& score, CamKind kind, const CamInput& input) {
  require(score.has_value() == (kind == CamKind::kGradCamPlusPlus), op, "score");
  if (!score) return {};
  require_type(score->scalar_type() == at::kFloat, op, "score");
  require(score->dim() == 1 && score->size(0) == input.samples && score->device() == input.activations.device(), op,
          "score");
  return score->contiguous();
}

template <Device device>
std::tuple<Tensor, Tensor, Tensor> forward(const Tensor& activations, const Tensor& gradients, const Score& score,
                                           int64_t kind, int64_t height, int64_t width, double clamp, double eps) {
  const char* op = "grad_cam";
  const Guard<device> guard(activations);
  const CamInput input(op, activations, gradients);
  const CamSettings settings(op, kind, clamp, eps);
  require(height > 0 && width > 0, op, "size");
  const Tensor scores = check_score(op, score, settings.kind, input);
  const auto options = activations.options().dtype(at::kFloat);
  Tensor map = at::empty({input.samples, 1, height, width}, options);
  Tensor weights = at::empty({input.samples, by_element(settings.kind) ? 0 : input.channels}, options);
  Tensor coarse = at::empty({input.samples, 1, input.height, input.width}, options);
  if (map.numel() == 0) return {map, weights, coarse};
  if constexpr (device == Device::kCPU) {
    cpu::CoarseJob job = make_coarse_job(input, settings, weights, coarse);
    c10::SmallVector<float, 64> factors;
    if (scores.defined()) {
      const float* values = scores.const_data_ptr<float>();
      for (int64_t i = 0; i < input.samples; ++i) factors.push_back(score_factor(values[i]));
      job.factor = factors.data();
    }
    Resizing resizing(coarse, height, width, settings.eps);
    resizing.job.map = map.mutable_data_ptr<float>();
    for_each_image(input.samples, input.image_elements() + height * width, resizing.job,
                   [&](int64_t image, float* scratch) {
                     coarse_kernels().coarse(job, image);
                     map_kernels().map(resizing.job, image, scratch);
                   });
  } else {
    Tensor stretches = make_stretches(coarse);
    CoarseParams params = make_coarse_params(op, input, settings, height, width, weights, coarse, stretches);
    if (scores.defined()) params.score = scores.const_data_ptr<float>();
    coarse_on_gpu<device>(params, coarse);
    MapParams resizing = make_map_params(coarse, stretches, height, width, settings.eps);
    resizing.map = map.mutable_data_ptr<float>();
    launch(cam_map_cuda, resizing);
  }
  return {map, weights, coarse};
}

template <Device device>
Tensor backward(const Tensor& gradient, const Tensor& weights, const Tensor& coarse, int64_t kind, double clamp,
                double eps, bool channels_last, at::ScalarType dtype) {
  const char* op = "grad_cam_backward";
  const Guard<device> guard(coarse);
  const CamSettings settings(op, kind, clamp, eps);
  const Tensor incoming = check_map(op, "grad", gradient, coarse.size(0), coarse);
  require_type(incoming.scalar_type() == at::kFloat, op, "grad");
  Spread spread(op, weights, coarse, settings, channels_last, dtype);
  if (spread.result.numel() == 0) return spread.result;
  const int64_t height = incoming.size(2);
  const int64_t width = incoming.size(3);
  const Tensor small = coarse.contiguous();
  Tensor slope = at::empty(small.sizes(), small.options());
  if constexpr (device == Device::kCPU) {
    Resizing resizing(small, height, width, settings.eps);
    resizing.job.other = incoming.const_data_ptr();
    resizing.job.dtype = DType::kFloat32;
    resizing.job.slope = slope.mutable_data_ptr<float>();
    for_each_image(small.size(0), height * width, resizing.job,
                   [&](int64_t image, float* scratch) { map_kernels().backward(resizing.job, image, scratch); });
    spread_on_cpu(spread, slope.const_data_ptr<float>());
  } else {
    Tensor stretches = make_stretches(small);
    check_size(op, "grad", height * width);
    check_size(op, "grad", 2 * small.size(2) * width);
    MapParams params = make_map_params(small, stretches, height, width, settings.eps);
    const Tensor workspace = at::empty({cam_workspace_cuda(params)}, small.options());
    params.other = incoming.const_data_ptr();
    params.workspace = workspace.mutable_data_ptr<float>();
    params.slope = slope.mutable_data_ptr<float>();
    launch(cam_stretch_cuda, params);
    launch(cam_map_backward_cuda, params);
    spread_on_gpu<device>(op, spread, slope, nullptr);
  }
  return spread.result;
}

template <Device device>
void register_ops(torch::Library& library) {
  library.impl("grad_cam", &forward<device>);
  library.impl("grad_cam_backward", &backward<device>);
}

SYNQ_REGISTER(register_ops)

}  // namespace
}  // namespace synq
