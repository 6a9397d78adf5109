// Activation functions and their slopes on vectors of float32. NaN stays NaN, in the slope too.
#pragma once

#include "activation_functions.h"
#include "cpu/normal.h"

namespace synq::cpu {
namespace {

struct Point {
  Vector value;
  Vector slope;
};

// Each has value(x), and point(x) with the slope beside it.
template <Activation activation>
struct Curve;

template <>
struct Curve<Activation::kGelu> {
  static Vector value(Vector x) { return x * normal_below(x); }
  static Point point(Vector x) {
    const Vector below = normal_below(x);
    return {x * below, below + x * normal_density(x)};
  }
};

template <>
struct Curve<Activation::kSilu> {
  static Vector value(Vector x) { return x * Sigmoid(x).here; }
  static Point point(Vector x) {
    const Sigmoid sigmoid(x);
    return {x * sigmoid.here, sigmoid.here * (x * sigmoid.across + 1.0f)};
  }

 private:
  // At x and at -x, both to a few units in the last place: their sum is 1, of which a difference would leave less.
  struct Sigmoid {
    Vector here;
    Vector across;

    explicit Sigmoid(Vector x) {
      const Vector power = exp(x > 0.0f ? -x : x);
      const Vector larger = 1.0f / (power + 1.0f);
      const Vector smaller = power * larger;
      here = x < 0.0f ? smaller : larger;
      across = x < 0.0f ? larger : smaller;
    }
  };
};

template <>
struct Curve<Activation::kHardswish> {
  static Vector value(Vector x) {
    Vector gate = x < -3.0f ? Vector{} - 3.0f : x;
    gate = gate > 3.0f ? Vector{} + 3.0f : gate;
    return x * (gate + 3.0f) * (1.0f / 6);
  }
  static Point point(Vector x) {
    Vector slope = x * (1.0f / 3) + 0.5f;
    slope = x >= 3.0f ? Vector{} + 1.0f : slope;
    slope = x <= -3.0f ? Vector{} : slope;
    return {value(x), slope};
  }
};

}  // namespace
}  // namespace synq::cpu
