// The quantizer's arithmetic, one definition for every compiler: CPU kernels and CUDA kernels include this file.
//
// Each operation is rounded on its own. The host side relies on -ffp-contract=off, the device side on the
// __f*_rn intrinsics, so no path contracts a product and a sum into one rounding.
#pragma once

#include <math.h>
#include <stdint.h>

#if defined(__CUDACC__)
#define SYNQ_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define SYNQ_HOST_DEVICE inline
#endif

namespace synq {
// Internal linkage: this file is compiled for several instruction sets, and the linker must not merge the copies.
namespace {

#if defined(__CUDA_ARCH__)
SYNQ_HOST_DEVICE float mul(float a, float b) { return __fmul_rn(a, b); }
SYNQ_HOST_DEVICE float add(float a, float b) { return __fadd_rn(a, b); }
SYNQ_HOST_DEVICE float sub(float a, float b) { return __fsub_rn(a, b); }
SYNQ_HOST_DEVICE float divide(float a, float b) { return __fdiv_rn(a, b); }
#else
SYNQ_HOST_DEVICE float mul(float a, float b) { return a * b; }
SYNQ_HOST_DEVICE float add(float a, float b) { return a + b; }
SYNQ_HOST_DEVICE float sub(float a, float b) { return a - b; }
SYNQ_HOST_DEVICE float divide(float a, float b) { return a / b; }
#endif

// Ranges narrower than this are widened to it, so that a constant tensor has a finite scale.
constexpr float kMinimumWidth = 1e-8f;

struct Affine {
  float scale;       // steps per unit of x
  float zero_point;  // an integer held in float: it exceeds int32 for narrow ranges far from zero
};

// NaN compares false both times and so passes through.
SYNQ_HOST_DEVICE float clamp(float value, float low, float high) {
  value = value < low ? low : value;
  return value > high ? high : value;
}

// Half to even for |value| <= 2^22, without the rounding instruction that baseline x86-64 lacks.
SYNQ_HOST_DEVICE float round_small(float value) { return sub(add(value, 12582912.0f), 12582912.0f); }

SYNQ_HOST_DEVICE float lowest_code(int bits) { return -static_cast<float>(1 << (bits - 1)); }
SYNQ_HOST_DEVICE float highest_code(int bits) { return static_cast<float>((1 << (bits - 1)) - 1); }

// How many steps a range spans, and what is added to its zero point so that codes begin at the grid's lowest.
struct Span {
  float steps;
  float offset;
};

SYNQ_HOST_DEVICE Span span_of(int bits) {
  return {static_cast<float>((1 << bits) - 1), static_cast<float>(1 << (bits - 1))};
}

SYNQ_HOST_DEVICE Affine make_affine(float range_min, float range_max, Span span) {
  // Half the width: the whole of it overflows for ranges that span more than the largest float.
  const float difference = sub(mul(range_max, 0.5f), mul(range_min, 0.5f));
  const float half = difference < kMinimumWidth / 2 ? kMinimumWidth / 2 : difference;
  // A reciprocal, then a product: one rounding away from a plain division, and what eager PyTorch computes.
  const float scale = mul(divide(1.0f, half), 0.5f * span.steps);
  const float zero_point = add(rintf(mul(scale, range_min)), span.offset);
  return {scale, zero_point};
}

SYNQ_HOST_DEVICE Affine make_affine(float range_min, float range_max, int bits) {
  return make_affine(range_min, range_max, span_of(bits));
}

// Clamping to integers before rounding equals clamping after it.
SYNQ_HOST_DEVICE float quantize(float x, Affine affine, float low, float high) {
  return round_small(clamp(sub(mul(affine.scale, x), affine.zero_point), low, high));
}

SYNQ_HOST_DEVICE float dequantize(float code, Affine affine) {
  const float steps = add(code, affine.zero_point);
#if defined(__CUDACC__) || defined(SYNQ_EMULATION)
  // Keeps the numerator of what is quantized to zero from the check that guards the short form of a GPU's division.
  const bool zero = steps == 0.0f && affine.scale > 0.0f;
  const float quotient = divide(zero ? 1.0f : steps, affine.scale);
  return zero ? 0.0f : quotient;
#else
  return divide(steps, affine.scale);
#endif
}

SYNQ_HOST_DEVICE float fake_quantize(float x, Affine affine, float low, float high) {
  return dequantize(quantize(x, affine, low, high), affine);
}

struct Range {
  float low;
  float high;
};

// The range around zero that spans the given one. Were it exactly [-a, a], scale * low would be a tie, and rounding
// errors would choose between the zero points 0 and 1; the widening exceeds these errors, so that it is 0.
SYNQ_HOST_DEVICE Range symmetric_range(Range range) {
  float largest = -range.low > range.high ? -range.low : range.high;
  largest = largest < kMinimumWidth / 2 ? kMinimumWidth / 2 : largest;
  return {-mul(largest, 1.0f + 0x1p-20f), largest};
}

// Whether round(scale * x - zero_point) leaves [low, high]. A NaN lies on neither side.
SYNQ_HOST_DEVICE bool is_clipped(float x, Affine affine, float low, float high) {
  const float code = quantize(x, affine, low - 1.0f, high + 1.0f);
  return (code < low) | (code > high);
}

// The clipped straight-through gradient; at NaN it passes.
SYNQ_HOST_DEVICE float clipped_gradient(float gradient, float x, Affine affine, float low, float high) {
  return is_clipped(x, affine, low, high) ? 0.0f : gradient;
}

}  // namespace
}  // namespace synq
