// One step of a moving average, each operation rounded on its own; CPU and CUDA kernels include this file.
#pragma once

#include "affine.h"

namespace synq {
namespace {

// `gain` is 1 - beta, taken in double and rounded once.
SYNQ_HOST_DEVICE float move_average(float state, float value, float beta, float gain) {
  return add(mul(state, beta), mul(value, gain));
}

}  // namespace
}  // namespace synq
