// The bound of a ReLU that has one.
#pragma once

#include <limits>
#include <optional>

#include "ops/quantized.h"

namespace synq {

// NaN for no upper bound.
inline float check_upper(const char* op, std::optional<double> upper) {
  if (!upper) return std::numeric_limits<float>::quiet_NaN();
  require(*upper > 0 && *upper < std::numeric_limits<double>::infinity(), op, "upper");
  return static_cast<float>(*upper);
}

}  // namespace synq
