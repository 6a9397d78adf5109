// The arguments of ops that draw random numbers.
#pragma once

#include <ATen/core/Tensor.h>

#include <cmath>

#include "ops/tensors.h"
#include "philox.h"

namespace synq {

inline uint32_t check_keep(const char* op, double keep) {
  require(keep >= 0 && keep <= 1, op, "keep");
  return static_cast<uint32_t>(std::nearbyint(keep * (1 << 24)));
}

// So that places within any tensor are numbers too.
inline int64_t check_offset(const char* op, int64_t offset) {
  require(offset >= 0 && offset < int64_t{1} << 62, op, "offset");
  return offset;
}

// Where the seed lies, on the device of x.
inline const int64_t* check_seed(const char* op, const at::Tensor& seed, const at::Tensor& x) {
  require_type(seed.scalar_type() == at::kLong, op, "seed");
  require(seed.numel() == 1 && seed.device() == x.device(), op, "seed");
  return seed.const_data_ptr<int64_t>();
}

}  // namespace synq
