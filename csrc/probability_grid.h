// The two grids of probabilities with one interface, for every compiler. A code is a multiple of a unit, so that sums
// of codes are scaled afterwards.
#pragma once

#include "learned_grid.h"
#include "log_grid.h"

namespace synq {
namespace {

// Equal steps from zero, for which the lowest code stands.
struct EqualSteps {
  Affine affine;
  float low;
  float high;

  SYNQ_HOST_DEVICE EqualSteps(float scale, int bits)
      : affine{scale, -lowest_code(bits)}, low(lowest_code(bits)), high(highest_code(bits)) {}

  SYNQ_HOST_DEVICE float code(float p) const { return add(quantize(p, affine, low, high), affine.zero_point); }
  SYNQ_HOST_DEVICE float rounded(float p) const { return fake_quantize(p, affine, low, high); }
  SYNQ_HOST_DEVICE float value(float codes) const { return divide(codes, affine.scale); }
  SYNQ_HOST_DEVICE LearnedTerms terms(float gradient, float p) const {
    return learned_terms(gradient, p, affine, low, high);
  }
};

// Powers of two times the scale, and zero.
struct PowersOfTwo {
  float scale;
  int32_t least;

  SYNQ_HOST_DEVICE PowersOfTwo(float scale, int bits) : scale(scale), least(least_ratio(bits)) {}

  SYNQ_HOST_DEVICE float code(float p) const { return log_level(divide(p, scale), least); }
  SYNQ_HOST_DEVICE float rounded(float p) const { return fake_quantize_log(p, scale, least); }
  SYNQ_HOST_DEVICE float value(float codes) const { return mul(scale, codes); }
  SYNQ_HOST_DEVICE LogTerms terms(float gradient, float p) const { return log_terms(gradient, p, scale, least); }
};

// The gradient of the scale, from the sum of the terms of all probabilities.
SYNQ_HOST_DEVICE float probability_grad_scale(bool log2, double sum, float scale, double factor) {
  return log2 ? static_cast<float>(sum * factor) : learned_grad_scale(sum, scale, factor);
}

template <typename T>
struct GridTag {
  using Type = T;
};

// Calls body(tag) with the type of a grid.
template <typename Body>
auto with_probability_grid(bool log2, Body body) {
  return log2 ? body(GridTag<PowersOfTwo>{}) : body(GridTag<EqualSteps>{});
}

}  // namespace
}  // namespace synq
