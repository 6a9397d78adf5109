// Checks shared by the CPU and the CUDA implementations of the range ops.
#pragma once

#include <ATen/core/Tensor.h>

#include "search_range.h"
#include "update_range.h"

namespace synq {

// Checks everything and fills in everything but the workspace. `x` becomes dense; the caller keeps it.
UpdateRangeParams check_update_range(at::Tensor& x, const at::Tensor& state_min, const at::Tensor& state_max,
                                     const at::Tensor& step, double beta);

// Checks everything and fills in everything but results and workspace. `x` becomes dense; the caller keeps it.
SearchRangeParams check_search_range(at::Tensor& x, int64_t bits, int64_t candidates, double norm);

}  // namespace synq
