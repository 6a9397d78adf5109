// The grids of probabilities by their formulas in double, written again for the tests.
#pragma once

#include <cmath>

#include "quantizer_model.h"

namespace synq::test {

struct ProbabilityModel {
  bool log2;
  int bits;
  Model steps{};  // of the scale alone where levels are powers of two

  ProbabilityModel(bool log2, int bits, float scale) : log2(log2), bits(bits) {
    set_grid(steps, bits);
    steps.scale = scale;
    steps.zero_point = static_cast<float>(-steps.low);
  }

  double ratio(double p) const { return p / double(steps.scale); }
  double exponent(double p) const { return -std::log2(std::fmin(ratio(p), 1.0)); }

  // Whether rounding errors of a probability change nothing.
  bool is_decided(double p) const {
    const double position = log2 ? exponent(p) : double(steps.scale) * p;
    const bool end = log2 && std::fabs(ratio(p) - 1.0) < 1e-5;
    return !end && std::fabs(position - std::floor(position) - 0.5) > 1e-5 * (1 + position);
  }

  float value(double p) const {
    if (!log2) return value_of(steps, float(p));
    const double code = std::rint(exponent(p));
    return code > std::ldexp(1.0, bits) - 2 ? 0.0f : steps.scale * float(std::exp2(-code));
  }

  double of_p(double gradient, double p) const {
    if (!log2) return is_outside(steps, float(p)) ? 0.0 : gradient;
    return ratio(p) > 1 || value(p) == 0 ? 0.0 : gradient * double(value(p)) / p;
  }

  // The term of the scale, as the kernels add them up.
  double of_scale(double gradient, double p) const {
    if (log2) return ratio(p) > 1 ? gradient : 0.0;
    const double code = code_of(steps, float(p)) + double(steps.zero_point);
    return gradient * (is_outside(steps, float(p)) ? -code : double(steps.scale) * p - code);
  }
};

}  // namespace synq::test
