#include "ops/tensors.h"

#include <ATen/ops/empty_like.h>
#include <c10/util/Exception.h>

namespace synq {
namespace {

std::string message(const char* op, const char* argument) {
  return c10::str(op, ": ", argument, " is not what the op takes; the function in synq_fast.ops says why");
}

}  // namespace

void refuse(const char* op, const char* argument) { C10_THROW_ERROR(ValueError, message(op, argument)); }
void refuse_type(const char* op, const char* argument) { C10_THROW_ERROR(TypeError, message(op, argument)); }
void refuse_index(const char* op, const char* argument) { C10_THROW_ERROR(IndexError, message(op, argument)); }

DType check_dtype(const char* op, const char* name, const at::Tensor& value) {
  switch (value.scalar_type()) {
    case at::kFloat:
      return DType::kFloat32;
    case at::kHalf:
      return DType::kFloat16;
    case at::kBFloat16:
      return DType::kBFloat16;
    default:
      refuse_type(op, name);
  }
}

// empty_like keeps the order of the strides, so outputs have the strides that torch's own elementwise ops give.
at::Tensor make_dense(const at::Tensor& value) {
  return value.is_non_overlapping_and_dense() ? value : at::empty_like(value).copy_(value);
}

at::Tensor match_layout(const char* op, const at::Tensor& gradient, const at::Tensor& x) {
  require(gradient.sizes() == x.sizes(), op, "grad");
  if (gradient.strides() == x.strides() && gradient.scalar_type() == x.scalar_type()) return gradient;
  return at::empty_like(x).copy_(gradient);
}

Planes::Planes(const char* op, const at::Tensor& given) : PlaneLayout{}, x(given) {
  require(x.dim() >= 2, op, "x");
  height = x.size(-2);
  width = x.size(-1);
  step = 1;
  if (!x.is_contiguous()) {
    if (x.is_contiguous(at::MemoryFormat::ChannelsLast)) {
      step = x.size(1);
    } else {
      x = x.contiguous();
    }
  }
  if (x.numel() > 0) planes = x.numel() / (height * width * step);
}

}  // namespace synq
