// What may precede the quantizer: a per-channel affine map and a ReLU, for every compiler.
#pragma once

#include "affine.h"

namespace synq {
namespace {

// `upper` NaN means no upper bound: every comparison with it is false. NaN values pass through.
SYNQ_HOST_DEVICE float relu(float value, float upper) {
  value = value < 0.0f ? 0.0f : value;
  return value > upper ? upper : value;
}

// Whether the gradient passes the ReLU; a NaN value lets it through.
SYNQ_HOST_DEVICE bool relu_passes(float value, float upper) { return !((value <= 0.0f) | (value >= upper)); }

// A product and a sum that round one after the other.
SYNQ_HOST_DEVICE float affine_map(float x, float weight, float bias) { return add(mul(x, weight), bias); }

// Whether a gradient passes at `value`, which precedes the ReLU and the quantizer; `clip` as in clipped_gradient.
SYNQ_HOST_DEVICE bool gradient_passes(float value, float upper, Affine affine, float low, float high, bool clip) {
  return relu_passes(value, upper) & !(clip && is_clipped(relu(value, upper), affine, low, high));
}

SYNQ_HOST_DEVICE float activation_gradient(float gradient, float value, float upper, Affine affine, float low,
                                           float high, bool clip) {
  return gradient_passes(value, upper, affine, low, high, clip) ? gradient : 0.0f;
}

}  // namespace
}  // namespace synq
