// What every op asks of its tensors.
#pragma once

#include <ATen/core/Tensor.h>

#include "dtype.h"

namespace synq {

// The kernel's name for the type of a tensor; raises TypeError for types that kernels do not read.
DType check_dtype(const char* op, const char* name, const at::Tensor& value);

// The tensor itself when its memory has neither gaps nor overlaps, else a copy with the same order of strides.
at::Tensor make_dense(const at::Tensor& value);

}  // namespace synq
