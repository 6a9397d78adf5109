// The CUDA implementations behind synq_fast::grad_cam and synq_fast::cam_alignment_loss: allocation, device guard,
// current stream. Nothing here waits for the device, so every op can be captured in a CUDA graph.
#include "grad_cam.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <limits>
#include <tuple>

#include "ops/cam_tensors.h"

namespace synq {
namespace {

using at::Tensor;
using MaybeTensor = std::optional<Tensor>;
using Triple = std::tuple<Tensor, Tensor, Tensor>;

template <typename Params>
void launch(int (*launcher)(const Params&, void*), const Params& params) {
  C10_CUDA_CHECK(static_cast<cudaError_t>(launcher(params, c10::cuda::getCurrentCUDAStream().stream())));
}

// Kernels count within an image in 32 bits.
void check_size(const char* op, int64_t elements) {
  TORCH_CHECK_VALUE(elements < std::numeric_limits<int32_t>::max() / 2, op, ": ", elements,
                    " elements in one image are more than the CUDA kernels take");
}

Tensor make_stretches(const Tensor& coarse) {
  const int64_t bytes = coarse.size(0) * static_cast<int64_t>(sizeof(Stretch));
  return at::empty({bytes}, coarse.options().dtype(at::kByte));
}

CoarseParams make_coarse_params(const char* op, const CamInput& input, CamKind kind, double clamp, double eps,
                                int64_t height, int64_t width, Tensor& weights, Tensor& coarse, Tensor& stretches) {
  check_size(op, input.image_elements());
  check_size(op, height * width);
  check_size(op, 2 * input.height * width);
  CoarseParams params{};
  params.activations = input.activations.const_data_ptr();
  params.gradients = input.gradients.const_data_ptr();
  params.weights = weights.mutable_data_ptr<float>();
  params.coarse = coarse.mutable_data_ptr<float>();
  params.stretches = static_cast<Stretch*>(stretches.mutable_data_ptr());
  params.activation_stride = input.activation_stride();
  params.gradient_stride = input.gradient_stride();
  params.images = input.images;
  params.channels = input.channels;
  params.height = input.height;
  params.width = input.width;
  params.map_height = height;
  params.map_width = width;
  params.channels_last = input.channels_last ? 1 : 0;
  params.kind = kind;
  params.clamp = static_cast<float>(clamp);
  params.eps = static_cast<float>(eps);
  params.dtype = input.dtype;
  return params;
}

MapParams make_map_params(const Tensor& coarse, Tensor& stretches, int64_t height, int64_t width, double eps) {
  MapParams params{};
  params.coarse = coarse.const_data_ptr<float>();
  params.stretches = static_cast<Stretch*>(stretches.mutable_data_ptr());
  params.images = coarse.size(0);
  params.height = coarse.size(2);
  params.width = coarse.size(3);
  params.map_height = height;
  params.map_width = width;
  params.eps = static_cast<float>(eps);
  params.dtype = DType::kFloat32;
  return params;
}

Triple grad_cam_cuda(const Tensor& activations, const Tensor& gradients, const MaybeTensor& score, int64_t kind_number,
                     int64_t height, int64_t width, double clamp, double eps) {
  const char* op = "grad_cam";
  const c10::cuda::CUDAGuard guard(activations.device());
  const CamInput input = check_cam(op, activations, gradients);
  const CamKind kind = check_kind(op, kind_number);
  const Tensor scores = check_score(op, score, kind, input);
  const auto options = activations.options().dtype(at::kFloat);
  Tensor map = at::empty({input.images, 1, height, width}, options);
  Tensor weights = at::empty({input.images, by_element(kind) ? 0 : input.channels}, options);
  Tensor coarse = at::empty({input.images, 1, input.height, input.width}, options);
  if (map.numel() == 0) return {map, weights, coarse};
  Tensor stretches = make_stretches(coarse);
  CoarseParams params = make_coarse_params(op, input, kind, clamp, eps, height, width, weights, coarse, stretches);
  if (scores.defined()) params.score = scores.const_data_ptr<float>();
  launch(cam_coarse_cuda, params);
  MapParams resizing = make_map_params(coarse, stretches, height, width, eps);
  resizing.map = map.mutable_data_ptr<float>();
  launch(cam_map_cuda, resizing);
  return {map, weights, coarse};
}

Tensor spread_cuda(Spread spread, const Tensor& slope, const float* factor, CamKind kind, double clamp,
                   bool channels_last) {
  SpreadParams params{};
  params.weights = spread.weights.const_data_ptr();
  params.slope = slope.const_data_ptr<float>();
  params.factor = factor;
  params.result = spread.result.mutable_data_ptr();
  params.images = spread.result.size(0);
  params.channels = spread.result.size(1);
  params.positions = spread.result.size(2) * spread.result.size(3);
  params.channels_last = channels_last ? 1 : 0;
  params.kind = kind;
  params.clamp = static_cast<float>(clamp);
  params.dtype = spread.dtype;
  if (spread.result.numel() == 0) return spread.result;
  check_size("grad_cam_backward", params.channels * params.positions);
  launch(cam_spread_cuda, params);
  return spread.result;
}

Tensor grad_cam_backward_cuda(const Tensor& gradient, const Tensor& weights, const Tensor& coarse, int64_t kind_number,
                              double clamp, double eps, bool channels_last, at::ScalarType dtype) {
  const char* op = "grad_cam_backward";
  const c10::cuda::CUDAGuard guard(coarse.device());
  const CamKind kind = check_kind(op, kind_number);
  const Tensor incoming = check_map(op, "grad", gradient, coarse.size(0), coarse);
  TORCH_CHECK_TYPE(incoming.scalar_type() == at::kFloat, op, ": grad must be float32, got ", incoming.scalar_type());
  Spread spread = make_spread(op, weights, coarse, kind, channels_last, dtype);
  if (spread.result.numel() == 0) return spread.result;
  const Tensor small = coarse.contiguous();
  Tensor slope = at::empty(small.sizes(), small.options());
  Tensor stretches = make_stretches(small);
  check_size(op, incoming.size(2) * incoming.size(3));
  check_size(op, 2 * small.size(2) * incoming.size(3));
  MapParams params = make_map_params(small, stretches, incoming.size(2), incoming.size(3), eps);
  const Tensor workspace = at::empty({cam_workspace_cuda(params)}, small.options());
  params.other = incoming.const_data_ptr();
  params.workspace = workspace.mutable_data_ptr<float>();
  params.slope = slope.mutable_data_ptr<float>();
  launch(cam_stretch_cuda, params);
  launch(cam_map_backward_cuda, params);
  return spread_cuda(std::move(spread), slope, nullptr, kind, clamp, channels_last);
}

Triple cam_alignment_loss_cuda(const Tensor& activations, const Tensor& gradients, const Tensor& target_map,
                               double clamp, double eps, bool with_gradient) {
  const char* op = "cam_alignment_loss";
  const c10::cuda::CUDAGuard guard(activations.device());
  const CamInput input = check_cam(op, activations, gradients);
  const Tensor target = check_map(op, "target_map", target_map, input.images, activations);
  const auto options = activations.options().dtype(at::kFloat);
  Tensor weights = at::empty({input.images, input.channels}, options);
  Tensor slope = at::empty({with_gradient ? input.images : 0, 1, input.height, input.width}, options);
  if (input.images == 0) return {at::zeros({}, options), weights, slope};
  Tensor loss = at::empty({}, options);
  Tensor coarse = at::empty({input.images, 1, input.height, input.width}, options);
  Tensor stretches = make_stretches(coarse);
  launch(cam_coarse_cuda, make_coarse_params(op, input, CamKind::kGradCam, clamp, eps, target.size(2), target.size(3),
                                             weights, coarse, stretches));
  MapParams params = make_map_params(coarse, stretches, target.size(2), target.size(3), eps);
  const Tensor workspace = at::empty({cam_workspace_cuda(params)}, options);
  params.other = target.const_data_ptr();
  params.dtype = check_dtype(op, "target_map", target);
  params.workspace = workspace.mutable_data_ptr<float>();
  params.loss = loss.mutable_data_ptr<float>();
  if (with_gradient) params.slope = slope.mutable_data_ptr<float>();
  launch(cam_loss_cuda, params);
  return {loss, weights, slope};
}

Tensor cam_alignment_loss_backward_cuda(const Tensor& gradient, const Tensor& weights, const Tensor& slope,
                                        bool channels_last, at::ScalarType dtype) {
  const char* op = "cam_alignment_loss_backward";
  const c10::cuda::CUDAGuard guard(slope.device());
  TORCH_CHECK_VALUE(gradient.numel() == 1, op, ": grad must hold one value, got shape ", gradient.sizes());
  Spread spread = make_spread(op, weights, slope, CamKind::kGradCam, channels_last, dtype);
  const Tensor dense = slope.contiguous();
  // Read on the device: the host would have to wait for it.
  const Tensor factor = gradient.to(at::kFloat);
  return spread_cuda(std::move(spread), dense, factor.const_data_ptr<float>(), CamKind::kGradCam, 0.0, channels_last);
}

}  // namespace

TORCH_LIBRARY_IMPL(synq_fast, CUDA, m) {
  m.impl("grad_cam", &grad_cam_cuda);
  m.impl("grad_cam_backward", &grad_cam_backward_cuda);
  m.impl("cam_alignment_loss", &cam_alignment_loss_cuda);
  m.impl("cam_alignment_loss_backward", &cam_alignment_loss_backward_cuda);
}

}  // namespace synq
