// Small floats by their formulas, written again for the tests.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "quantizer_model.h"

namespace synq::test {

// The level of every code, and the one that would follow the largest.
inline std::vector<double> levels_of(int bits) {
  const int mantissa = bits - 3;
  std::vector<double> levels;
  for (int code = 0; code <= 1 << bits; ++code) {
    const int exponent = code >> mantissa;
    const int fraction = code & ((1 << mantissa) - 1);
    levels.push_back(exponent == 0 ? fraction : std::ldexp((1 << mantissa) + fraction, exponent - 1));
  }
  return levels;
}

// The level next to a number of steps, of all and the one above; -1 below them. Ties are even in the mantissa's last
// bit; without a mantissa they go up, but for that above zero.
inline double level_by_search(double steps, int bits) {
  if (std::isnan(steps)) return steps;
  if (steps < -0.5) return -1.0;
  const std::vector<double> levels = levels_of(bits);
  for (size_t code = 0; code + 1 < levels.size(); ++code) {
    const double middle = (levels[code] + levels[code + 1]) / 2;
    const bool keeps_tie = bits == 3 ? code == 0 : code % 2 == 0;
    if (keeps_tie ? steps <= middle : steps < middle) return levels[code];
  }
  return levels.back();
}

inline double model_steps(const Model& model, float x) {
  return rounded(double(rounded(double(model.scale) * x)) - double(model.zero_point));
}

inline float value_of_minifloat(const Model& model, float x, int bits) {
  const double level = level_by_search(model_steps(model, x), bits);
  const double largest = levels_of(bits)[(1u << bits) - 1];
  const double inside = std::isnan(level) ? level : std::clamp(level, 0.0, largest);
  return rounded(double(rounded(inside + double(model.zero_point))) / double(model.scale));
}

inline bool is_outside_minifloat(const Model& model, float x, int bits) {
  const double level = level_by_search(model_steps(model, x), bits);
  return level < 0 || level > levels_of(bits)[(1u << bits) - 1];
}

inline Model minifloat_model(float minimum, float maximum, int bits) {
  Model model{};
  float half = rounded(0.5 * double(maximum) - 0.5 * double(minimum));
  if (half < 0.5e-8f) half = 0.5e-8f;
  model.scale = rounded(double(rounded(1.0 / double(half))) * 0.5 * levels_of(bits)[(1u << bits) - 1]);
  model.zero_point = rounded(std::nearbyint(rounded(double(model.scale) * minimum)));
  return model;
}

}  // namespace synq::test
