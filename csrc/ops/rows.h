// Tensors as rows of their last dimension.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty_like.h>

#include "ops/tensors.h"

namespace synq {

// A tensor in whose memory rows follow each other: itself, or a copy where that is not so.
struct Rows {
  at::Tensor x;
  int64_t count;
  int64_t columns;
  DType dtype;

  Rows(const char* op, const char* name, const at::Tensor& given) : dtype(check_dtype(op, name, given)) {
    require(given.dim() > 0 && given.size(-1) > 0, op, name);
    columns = given.size(-1);
    count = given.numel() / columns;
    x = make_dense(given);
    if (columns > 1 && x.stride(-1) != 1) x = x.contiguous();
  }

  // A result laid out as x, in the layout that at::empty_like gives it for what was given.
  at::Tensor restored(const at::Tensor& y, const at::Tensor& given) const {
    const at::Tensor wanted = at::empty_like(given);
    return wanted.strides() == y.strides() ? y : wanted.copy_(y);
  }
};

}  // namespace synq
