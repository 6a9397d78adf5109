#include "ops/arguments.h"

#include <ATen/ops/empty_like.h>
#include <c10/util/Exception.h>

#include <limits>

namespace synq {

Input check_input(const char* op, const at::Tensor& x, int64_t bits, std::optional<int64_t> axis,
                  std::optional<int64_t> groups) {
  TORCH_CHECK_VALUE(bits >= 2 && bits <= 16, op, ": bits must be from 2 to 16, got ", bits);
  const DType dtype = check_dtype(op, "x", x);
  Input input{make_dense(x), 1, 1, x.numel(), dtype, {}};
  if (!axis) {
    TORCH_CHECK_VALUE(!groups, op, ": groups needs axis, the dimension whose channels are grouped");
    return input;
  }

  const int64_t rank = x.dim();
  TORCH_CHECK_INDEX(*axis >= -rank && *axis < rank, op, ": axis ", *axis, " is out of range for a tensor with ", rank,
                    " dimensions");
  const int64_t dimension = *axis < 0 ? *axis + rank : *axis;
  const int64_t channels = x.size(dimension);
  TORCH_CHECK_VALUE(!groups || (*groups >= 1 && channels % *groups == 0), op,
                    ": groups must be positive and divide the ", channels, " channels of axis ", *axis, ", got ",
                    groups.value_or(0));
  input.channels = groups.value_or(channels);
  input.range_shape = {input.channels};
  if (x.numel() == 0) {
    input.outer = 0;
    input.inner = 1;
  } else if (input.channels > 1) {
    // In dense memory everything faster than the axis fills exactly one of its strides.
    input.inner = channels / input.channels * input.x.stride(dimension);
    input.outer = x.numel() / (input.channels * input.inner);
  }
  return input;
}

Input check_channels(const char* op, const at::Tensor& x, int64_t bits) {
  TORCH_CHECK_VALUE(x.dim() >= 2, op, ": x must have a channel dimension 1, got shape ", x.sizes());
  return check_input(op, x, bits, 1);
}

Input whole(const Input& input) { return {input.x, 1, 1, input.elements(), input.dtype, {}}; }

at::Tensor check_range(const char* op, const char* name, const at::Tensor& range, const Input& input) {
  TORCH_CHECK_TYPE(range.scalar_type() == at::kFloat, op, ": ", name, " must be float32, got ", range.scalar_type());
  TORCH_CHECK_VALUE(range.device() == input.x.device(), op, ": ", name, " is on ", range.device(), " but x is on ",
                    input.x.device(), "; move it with .to(x.device)");
  if (input.range_shape.empty()) {
    TORCH_CHECK_VALUE(range.numel() == 1, op, ": ", name, " must hold one value without axis, got shape ",
                      range.sizes());
  } else {
    TORCH_CHECK_VALUE(range.dim() == 1 && range.numel() == input.channels, op, ": ", name, " must have shape (",
                      input.channels, ",), one value per channel, got ", range.sizes());
  }
  return range.contiguous();
}

at::Tensor match_layout(const char* op, const at::Tensor& gradient, const at::Tensor& x) {
  TORCH_CHECK_VALUE(gradient.sizes() == x.sizes(), op, ": grad has shape ", gradient.sizes(), " but x has ", x.sizes());
  if (gradient.strides() == x.strides() && gradient.scalar_type() == x.scalar_type()) return gradient;
  return at::empty_like(x).copy_(gradient);
}

at::Tensor check_residual(const char* op, const std::optional<at::Tensor>& residual, const at::Tensor& x) {
  if (!residual || !residual->defined()) return {};
  TORCH_CHECK_TYPE(residual->scalar_type() == x.scalar_type(), op, ": residual must be of the type of x, ",
                   x.scalar_type(), ", got ", residual->scalar_type());
  TORCH_CHECK_VALUE(residual->sizes() == x.sizes(), op, ": residual must have the shape of x, ", x.sizes(), ", got ",
                    residual->sizes());
  TORCH_CHECK_VALUE(residual->device() == x.device(), op, ": residual is on ", residual->device(), " but x is on ",
                    x.device(), "; move it with .to(x.device)");
  return residual->strides() == x.strides() ? *residual : at::empty_like(x).copy_(*residual);
}

float check_upper(const char* op, std::optional<double> upper) {
  if (!upper) return std::numeric_limits<float>::quiet_NaN();
  TORCH_CHECK_VALUE(*upper > 0 && *upper < std::numeric_limits<double>::infinity(), op,
                    ": upper must be positive and finite, got ", *upper);
  return static_cast<float>(*upper);
}

FakeQuantizeParams make_params(const Input& input, int64_t bits) {
  FakeQuantizeParams params{};
  params.x = input.x.const_data_ptr();
  params.outer = input.outer;
  params.channels = input.channels;
  params.inner = input.inner;
  params.bits = static_cast<int32_t>(bits);
  params.dtype = input.dtype;
  return params;
}

}  // namespace synq
