// Activation functions and their slopes. NaN stays NaN, in the slope too.
#pragma once

#include "../activation_functions.h"
#include "../affine.h"

namespace synq {
namespace {

// Each is made of x and has a value and a slope, the latter computed where it is asked for.
template <Activation activation>
struct Curve;

// The part of the standard normal distribution below x, and its density at x. The part beyond a distance u is
// exp(-u^2 / 2) t times a polynomial of t = 1 / (1 + 0.35 u), a minimax one within a relative 3e-8.
template <>
struct Curve<Activation::kGelu> {
  float x;
  float below;
  float density;

  __device__ __forceinline__ explicit Curve(float x) : x(x) {
    const float power = expf(x * x * -0.5f);
    const float t = 1.0f / fmaf(fabsf(x), 0.35f, 1.0f);
    float tail = fmaf(-0.02914593741297722f, t, 0.1439717411994934f);
    tail = fmaf(tail, t, -0.2557143270969391f);
    tail = fmaf(tail, t, 0.15917424857616425f);
    tail = fmaf(tail, t, -0.02310989238321781f);
    tail = fmaf(tail, t, 0.10550802946090698f);
    tail = fmaf(tail, t, 0.11983285844326019f);
    tail = fmaf(tail, t, 0.13986186683177948f);
    tail = fmaf(tail, t, 0.13962140679359436f);
    const float beyond = power * t * tail;
    below = x < 0.0f ? beyond : 1.0f - beyond;
    density = power * 0.398942280f;
  }

  __device__ __forceinline__ float value() const { return mul(x, below); }
  __device__ __forceinline__ float slope() const { return below + x * density; }
};

// The sigmoid at x and at -x, both to a few units in the last place: their sum is 1, of which a difference would leave
// less.
template <>
struct Curve<Activation::kSilu> {
  float x;
  float here;
  float across;

  __device__ __forceinline__ explicit Curve(float x) : x(x) {
    const float power = expf(-fabsf(x));
    const float larger = 1.0f / (power + 1.0f);
    const float smaller = power * larger;
    here = x < 0.0f ? smaller : larger;
    across = x < 0.0f ? larger : smaller;
  }

  __device__ __forceinline__ float value() const { return mul(x, here); }
  __device__ __forceinline__ float slope() const { return here * (x * across + 1.0f); }
};

template <>
struct Curve<Activation::kHardswish> {
  float x;

  __device__ __forceinline__ explicit Curve(float x) : x(x) {}

  __device__ __forceinline__ float value() const { return mul(mul(x, add(clamp(x, -3.0f, 3.0f), 3.0f)), 1.0f / 6); }
  __device__ __forceinline__ float slope() const {
    const float inside = x >= 3.0f ? 1.0f : add(mul(x, 1.0f / 3), 0.5f);
    return x <= -3.0f ? 0.0f : inside;
  }
};

}  // namespace
}  // namespace synq
