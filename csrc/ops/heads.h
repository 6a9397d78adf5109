// Tensors as the matrices of heads, read where they lie as long as columns are neighbours.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include "layout.h"
#include "ops/tensors.h"

namespace synq {

struct Heads {
  at::Tensor x;  // (batch, heads, rows, columns)

  Heads(const char* op, const char* name, const at::Tensor& given) : x(given) {
    check_dtype(op, name, given);
    require(given.dim() == 4, op, name);
    if (given.size(3) > 1 && given.stride(3) != 1) x = given.contiguous();
  }

  HeadStrides strides() const { return {x.stride(0), x.stride(1), x.stride(2)}; }
};

// A result that lies as at::empty_like has it, and what kernels write.
struct HeadsResult {
  at::Tensor result;
  at::Tensor written;

  explicit HeadsResult(const at::Tensor& given) : result(at::empty_like(given)), written(result) {
    if (result.size(3) > 1 && result.stride(3) != 1) written = at::empty(result.sizes(), result.options());
  }

  HeadStrides strides() const { return {written.stride(0), written.stride(1), written.stride(2)}; }
  at::Tensor finished() const { return written.is_same(result) ? result : result.copy_(written); }
};

}  // namespace synq
