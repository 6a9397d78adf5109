// The arithmetic of a learned grid and of its gradients, for every compiler.
#pragma once

#include "affine.h"

namespace synq {
namespace {

// The grid of a learned pair; a zero point has no negative zero, whichever way it was rounded.
SYNQ_HOST_DEVICE Affine learned_grid(float scale, float zero_point) { return {scale, add(rintf(zero_point), 0.0f)}; }

// One element's part of the gradients: `of_scale` lacks the factor 1 / scale^2 and `of_zero` the factor 1 / scale,
// which are the same for the whole channel.
struct LearnedTerms {
  float of_x;
  float of_scale;
  float of_zero;
};

SYNQ_HOST_DEVICE LearnedTerms learned_terms(float gradient, float x, Affine affine, float low, float high) {
  const float position = sub(mul(affine.scale, x), affine.zero_point);
  const float beyond = round_small(clamp(position, low - 1.0f, high + 1.0f));
  const float code = clamp(beyond, low, high);
  const bool outside = (beyond < low) | (beyond > high);
  const float distance = outside ? -add(code, affine.zero_point) : sub(position, code);
  return {outside ? 0.0f : gradient, mul(gradient, distance), outside ? gradient : 0.0f};
}

SYNQ_HOST_DEVICE float learned_grad_scale(double sum, float scale, double factor) {
  return static_cast<float>(sum / (static_cast<double>(scale) * scale) * factor);
}

SYNQ_HOST_DEVICE float learned_grad_zero_point(double sum, float scale, double factor) {
  return static_cast<float>(sum / scale * factor);
}

}  // namespace
}  // namespace synq
