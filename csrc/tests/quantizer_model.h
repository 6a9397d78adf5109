// The quantizer by its formulas, written again for the tests: each operation in double, then rounded to float, which is
// what a single correctly rounded float operation gives.
#pragma once

#include <cmath>

namespace synq::test {

struct Model {
  float scale;
  float zero_point;
  double low;
  double high;
};

inline float rounded(double value) { return static_cast<float>(value); }

inline void set_grid(Model& model, int bits) {
  model.low = -std::ldexp(1.0, bits - 1);
  model.high = std::ldexp(1.0, bits - 1) - 1.0;
}

inline Model make_model(float minimum, float maximum, int bits) {
  Model model{};
  set_grid(model, bits);
  float half = rounded(0.5 * double(maximum) - 0.5 * double(minimum));
  if (half < 0.5e-8f) half = 0.5e-8f;
  model.scale = rounded(double(rounded(1.0 / double(half))) * 0.5 * (std::ldexp(1.0, bits) - 1.0));
  model.zero_point = rounded(std::nearbyint(rounded(double(model.scale) * minimum)) + std::ldexp(1.0, bits - 1));
  return model;
}

inline double unclamped_code(const Model& model, float x) {
  return std::nearbyint(rounded(double(rounded(double(model.scale) * x)) - model.zero_point));
}

// NaN stays NaN.
inline double code_of(const Model& model, float x) {
  const double code = unclamped_code(model, x);
  if (code < model.low) return model.low;
  if (code > model.high) return model.high;
  return code;
}

inline float value_of(const Model& model, float x) {
  return rounded(double(rounded(code_of(model, x) + model.zero_point)) / double(model.scale));
}

inline bool is_outside(const Model& model, float x) {
  const double code = unclamped_code(model, x);
  return code < model.low || code > model.high;
}

}  // namespace synq::test
