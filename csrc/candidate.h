// One candidate of the range search: its quantizer, and the error that it makes. CPU and CUDA kernels include this
// file; codes, levels and errors are those of fake_quantize, bit for bit.
#pragma once

#include "affine.h"

namespace synq {
namespace {

struct Candidate {
  Affine affine;
  float inverse;  // 1 / scale
};

#if defined(__CUDA_ARCH__)
SYNQ_HOST_DEVICE float multiply_add(float a, float b, float c) { return __fmaf_rn(a, b, c); }
#elif defined(__FMA__) || defined(__ARM_FEATURE_FMA)
SYNQ_HOST_DEVICE float multiply_add(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
#else
SYNQ_HOST_DEVICE float multiply_add(float a, float b, float c) { return a * b + c; }
#endif

// What candidate `index` multiplies both ends of the range by: 1 - 0.01 index, correctly rounded.
SYNQ_HOST_DEVICE float shrink_of(int index) { return divide(static_cast<float>(100 - index), 100.0f); }

SYNQ_HOST_DEVICE Candidate make_candidate(float range_min, float range_max, int index, int bits) {
  const float shrink = shrink_of(index);
  const Affine affine = make_affine(mul(range_min, shrink), mul(range_max, shrink), bits);
  return {affine, divide(1.0f, affine.scale)};
}

// Whether errors are numbers: not if the range is NaN or infinite, or if its scale or zero point overflows. The first
// candidate then wins, as it does by its NaN score in the reference.
SYNQ_HOST_DEVICE bool is_searchable(Affine first) {
  return first.scale > 0.0f && first.scale < HUGE_VALF && fabsf(first.zero_point) < HUGE_VALF;
}

// A correction with the exact remainder takes the place of the division, which costs several times as much.
SYNQ_HOST_DEVICE float quotient(float dividend, Candidate candidate) {
#if defined(__CUDA_ARCH__) || defined(__FMA__) || defined(__ARM_FEATURE_FMA)
  const float estimate = mul(dividend, candidate.inverse);
  const float remainder = multiply_add(-estimate, candidate.affine.scale, dividend);
  return multiply_add(remainder, candidate.inverse, estimate);
#else
  return dividend / candidate.affine.scale;
#endif
}

SYNQ_HOST_DEVICE float quantization_error(float x, Candidate candidate, float low, float high) {
  const float code = quantize(x, candidate.affine, low, high);
  return sub(quotient(add(code, candidate.affine.zero_point), candidate), x);
}

// Powers are taken of errors in steps of the first candidate: |error|^norm = 2^(norm log2 |error| + offset) steps^norm,
// so that they neither overflow nor vanish, whatever the scale of x. An error is below four times the largest |x|;
// where the power of that would leave no room in float32 for sums of 2^31 elements, the unit is larger.
SYNQ_HOST_DEVICE float power_offset(float range_min, float range_max, Affine first, float norm) {
  constexpr float kLargestPower = 64.0f;
  const float largest = fmaxf(fabsf(range_min), fabsf(range_max));
  const float offset = mul(norm, log2f(first.scale));
  const float excess = sub(add(mul(norm, add(log2f(largest), 2.0f)), offset), kLargestPower);
  return excess > 0.0f ? sub(offset, excess) : offset;
}

}  // namespace
}  // namespace synq
