// The two grids of a learned scale and zero point with one interface, for every compiler.
#pragma once

#include "learned_grid.h"
#include "minifloat_grid.h"

namespace synq {
namespace {

struct EqualLevels {
  float low;
  float high;

  SYNQ_HOST_DEVICE explicit EqualLevels(int bits) : low(lowest_code(bits)), high(highest_code(bits)) {}

  SYNQ_HOST_DEVICE float rounded(float x, Affine affine) const { return fake_quantize(x, affine, low, high); }
  SYNQ_HOST_DEVICE LearnedTerms terms(float gradient, float x, Affine affine) const {
    return learned_terms(gradient, x, affine, low, high);
  }
};

struct FloatLevels {
  Minifloat grid;

  SYNQ_HOST_DEVICE explicit FloatLevels(int bits) : grid(minifloat_of(bits)) {}

  SYNQ_HOST_DEVICE float rounded(float x, Affine affine) const { return fake_quantize_minifloat(x, affine, grid); }
  // Those of equal steps with a level in place of a code.
  SYNQ_HOST_DEVICE LearnedTerms terms(float gradient, float x, Affine affine) const {
    const float steps = steps_of(x, affine);
    const float level = minifloat_level(steps, grid);
    const bool outside = is_beyond(steps, grid);
    const float distance = outside ? -add(level, affine.zero_point) : sub(steps, level);
    return {outside ? 0.0f : gradient, mul(gradient, distance), outside ? gradient : 0.0f};
  }
};

// Calls body(levels) with those of a width.
template <typename Body>
auto with_levels(bool minifloat, int bits, Body body) {
  return minifloat ? body(FloatLevels(bits)) : body(EqualLevels(bits));
}

}  // namespace
}  // namespace synq
