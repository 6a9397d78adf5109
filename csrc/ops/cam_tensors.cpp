#include "ops/cam_tensors.h"

#include <ATen/ops/empty.h>
#include <c10/util/Exception.h>

namespace synq {
namespace {

// Whether the images of `x` are dense with the given strides; what has one element may have any stride.
bool has_strides(const at::Tensor& x, int64_t channel, int64_t row, int64_t column) {
  return (x.size(1) == 1 || x.stride(1) == channel) && (x.size(2) == 1 || x.stride(2) == row) &&
         (x.size(3) == 1 || x.stride(3) == column);
}

bool is_contiguous(const at::Tensor& x) { return has_strides(x, x.size(2) * x.size(3), x.size(3), 1); }

bool is_channels_last(const at::Tensor& x) { return has_strides(x, 1, x.size(1) * x.size(3), x.size(1)); }

}  // namespace

CamInput check_cam(const char* op, const at::Tensor& activations, const at::Tensor& gradients) {
  const DType dtype = check_dtype(op, "activations", activations);
  TORCH_CHECK_TYPE(gradients.scalar_type() == activations.scalar_type(), op,
                   ": gradients must have the type of activations, ", activations.scalar_type(), ", got ",
                   gradients.scalar_type());
  TORCH_CHECK_VALUE(activations.dim() == 4, op, ": activations must have shape (B, C, h, w), got ",
                    activations.sizes());
  TORCH_CHECK_VALUE(gradients.sizes() == activations.sizes(), op, ": gradients must have the shape of activations, ",
                    activations.sizes(), ", got ", gradients.sizes());
  TORCH_CHECK_VALUE(gradients.device() == activations.device(), op, ": gradients is on ", gradients.device(),
                    " but activations is on ", activations.device(), "; move both to one device");
  TORCH_CHECK_VALUE(activations.size(0) == 0 || activations.numel() > 0, op, ": activations is empty, with shape ",
                    activations.sizes(), ": there is nothing to map");
  CamInput input{
      activations, gradients, activations.size(0), activations.size(1), activations.size(2), activations.size(3),
      false,       dtype};
  if (is_contiguous(activations) && is_contiguous(gradients)) return input;
  input.channels_last = is_channels_last(activations);
  if (input.channels_last) {
    if (!is_channels_last(gradients)) input.gradients = gradients.contiguous(at::MemoryFormat::ChannelsLast);
    return input;
  }
  if (!is_contiguous(activations)) input.activations = activations.contiguous();
  if (!is_contiguous(gradients)) input.gradients = gradients.contiguous();
  return input;
}

CamKind check_kind(const char* op, int64_t kind) {
  TORCH_CHECK_VALUE(kind >= 0 && kind <= static_cast<int64_t>(CamKind::kHiResCam), op, ": kind must be from 0 to ",
                    static_cast<int64_t>(CamKind::kHiResCam), ", got ", kind);
  return static_cast<CamKind>(kind);
}

at::Tensor check_score(const char* op, const std::optional<at::Tensor>& score, CamKind kind, const CamInput& input) {
  TORCH_CHECK_VALUE(score.has_value() == (kind == CamKind::kGradCamPlusPlus), op,
                    ": score belongs to Grad-CAM++, and only there");
  if (!score) return {};
  TORCH_CHECK_TYPE(score->scalar_type() == at::kFloat, op, ": score must be float32, got ", score->scalar_type());
  TORCH_CHECK_VALUE(score->dim() == 1 && score->size(0) == input.images, op, ": score must have shape (", input.images,
                    ",), got ", score->sizes());
  TORCH_CHECK_VALUE(score->device() == input.activations.device(), op, ": score is on ", score->device(),
                    " but activations is on ", input.activations.device());
  return score->contiguous();
}

at::Tensor check_map(const char* op, const char* name, const at::Tensor& map, int64_t images,
                     const at::Tensor& beside) {
  check_dtype(op, name, map);
  TORCH_CHECK_VALUE(map.dim() == 4 && map.size(0) == images && map.size(1) == 1, op, ": ", name, " must have shape (",
                    images, ", 1, H, W), got ", map.sizes());
  TORCH_CHECK_VALUE(images == 0 || map.numel() > 0, op, ": ", name, " has no pixel, with shape ", map.sizes());
  TORCH_CHECK_VALUE(map.device() == beside.device(), op, ": ", name, " is on ", map.device(), " but the rest is on ",
                    beside.device(), "; move all to one device");
  return map.contiguous();
}

Spread make_spread(const char* op, const at::Tensor& weights, const at::Tensor& coarse, CamKind kind,
                   bool channels_last, at::ScalarType dtype) {
  TORCH_CHECK_VALUE(coarse.dim() == 4 && coarse.size(1) == 1 && coarse.scalar_type() == at::kFloat, op,
                    ": the coarse map must be float32 of shape (B, 1, h, w), got ", coarse.scalar_type(), " ",
                    coarse.sizes());
  const bool elements = by_element(kind);
  TORCH_CHECK_VALUE(weights.dim() == (elements ? 4 : 2) && weights.size(0) == coarse.size(0) &&
                        (!elements || (weights.size(2) == coarse.size(2) && weights.size(3) == coarse.size(3))),
                    op, ": weights of shape ", weights.sizes(), " do not fit a coarse map of ", coarse.sizes());
  TORCH_CHECK_TYPE(weights.scalar_type() == (elements ? dtype : at::kFloat), op, ": weights must be ",
                   elements ? dtype : at::kFloat, ", got ", weights.scalar_type());
  const auto format = channels_last ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous;
  Spread spread;
  spread.weights = elements ? weights.contiguous(format) : weights.contiguous();
  spread.result = at::empty({coarse.size(0), weights.size(1), coarse.size(2), coarse.size(3)},
                            coarse.options().dtype(dtype), format);
  spread.dtype = check_dtype(op, "dtype", spread.result);
  return spread;
}

}  // namespace synq
