#include "ops/tensors.h"

#include <ATen/ops/empty_like.h>
#include <c10/util/Exception.h>

namespace synq {

DType check_dtype(const char* op, const char* name, const at::Tensor& value) {
  switch (value.scalar_type()) {
    case at::kFloat:
      return DType::kFloat32;
    case at::kHalf:
      return DType::kFloat16;
    case at::kBFloat16:
      return DType::kBFloat16;
    default:
      C10_THROW_ERROR(TypeError,
                      c10::str(op, ": ", name, " must be float32, float16 or bfloat16, got ", value.scalar_type()));
  }
}

// empty_like keeps the order of the strides, so outputs have the strides that torch's own elementwise ops give.
at::Tensor make_dense(const at::Tensor& value) {
  return value.is_non_overlapping_and_dense() ? value : at::empty_like(value).copy_(value);
}

}  // namespace synq
