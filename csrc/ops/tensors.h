// What every op asks of its tensors. Kernels test what memory safety needs and refuse in few words: the checks that
// explain themselves are those of the fakes in synq_fast/ops, which the public functions turn to when a call fails.
#pragma once

#include <ATen/core/Tensor.h>

#include "dtype.h"
#include "layout.h"

namespace synq {

[[noreturn]] void refuse(const char* op, const char* argument);        // ValueError
[[noreturn]] void refuse_type(const char* op, const char* argument);   // TypeError
[[noreturn]] void refuse_index(const char* op, const char* argument);  // IndexError

inline void require(bool fits, const char* op, const char* argument) {
  if (C10_UNLIKELY(!fits)) refuse(op, argument);
}

inline void require_type(bool fits, const char* op, const char* argument) {
  if (C10_UNLIKELY(!fits)) refuse_type(op, argument);
}

// The kernel's name for the type of a tensor; raises TypeError for types that kernels do not read.
DType check_dtype(const char* op, const char* name, const at::Tensor& value);

// The tensor itself when its memory has neither gaps nor overlaps, else a copy with the same order of strides.
at::Tensor make_dense(const at::Tensor& value);

// The tensor itself where strides and type are those of x, else a copy that has them.
at::Tensor match_layout(const char* op, const at::Tensor& gradient, const at::Tensor& x);

// Images (..., H, W). Copied only if they are neither contiguous nor channels_last.
struct Planes : PlaneLayout {
  at::Tensor x;

  Planes(const char* op, const at::Tensor& x);
  int64_t rows() const { return planes * height; }
};

// Options for float32 results in no particular layout, beside x.
inline at::TensorOptions floats_like(const at::Tensor& x) {
  return x.options().dtype(at::kFloat).memory_format(std::nullopt);
}

}  // namespace synq
