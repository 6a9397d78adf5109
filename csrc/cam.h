// What the CPU and the CUDA kernels of class activation maps share: the kinds of maps and bilinear resizing.
#pragma once

#include <stdint.h>

#include "affine.h"

namespace synq {

// As in synq_fast/ops/_cam.py.
enum class CamKind : int32_t { kGradCam = 0, kGradCamPlusPlus = 1, kLayerCam = 2, kHiResCam = 3 };

// Where a pixel of the large map lies between two neighbours of the small one. Beyond the outermost it takes their
// value: then the weight is 0, and the last index has no right neighbour.
struct Tap {
  int32_t index;
  float weight;  // of the right neighbour
};

// Internal linkage: this file is compiled for several instruction sets, and the linker must not merge the copies.
namespace {

// Whether every activation has a weight of its own, instead of one weight per channel.
SYNQ_HOST_DEVICE bool by_element(CamKind kind) { return kind == CamKind::kLayerCam || kind == CamKind::kHiResCam; }

// Below this fraction of its peak, the spread of a map is the rounding noise of the interpolation.
constexpr float kFlatSpread = 1e-6f;

// Pixel `pixel` of `large` sits at (pixel + 1/2) * small / large - 1/2; in integers, so rounded once.
SYNQ_HOST_DEVICE Tap make_tap(int64_t pixel, int64_t small, int64_t large) {
  const int64_t position = small * (2 * pixel + 1) - large;  // in units of 1 / (2 * large)
  if (position <= 0) return {0, 0.0f};
  const int64_t index = position / (2 * large);
  if (index >= small - 1) return {static_cast<int32_t>(small - 1), 0.0f};
  return {static_cast<int32_t>(index),
          static_cast<float>(position - index * 2 * large) / static_cast<float>(2 * large)};
}

// The first pixel whose tap has this index; `large` past the last one.
SYNQ_HOST_DEVICE int64_t first_pixel(int64_t index, int64_t small, int64_t large) {
  if (index <= 0) return 0;
  if (index >= small) return large;
  const int64_t position = large * (2 * index + 1) - small;  // in units of 1 / (2 * small)
  if (position <= 0) return 0;
  const int64_t pixel = (position + 2 * small - 1) / (2 * small);
  return pixel < large ? pixel : large;
}

// In this form the result is monotone in `weight` in spite of rounding: between two neighbours, the extrema are at the
// first and the last pixel.
SYNQ_HOST_DEVICE float interpolate(float left, float right, float weight) { return left + weight * (right - left); }

// exp(score) of Grad-CAM++ is a factor of the whole map, which stretching removes: 1 stands for it, NaN stays.
SYNQ_HOST_DEVICE float score_factor(float score) { return score != score ? score : 1.0f; }

// Keeps NaN, unlike fmaxf.
SYNQ_HOST_DEVICE float at_least(float value, float least) { return value < least ? least : value; }

// How a map is stretched: (value * lift - low) * scale, where `lift` is a power of two that keeps `scale` a normal
// number.
struct Stretch {
  float low;   // times lift
  float peak;  // times lift
  float scale;
  float lift;
  bool flat;
};

// Comparisons with NaN are false: a map with NaN is not flat and becomes NaN.
SYNQ_HOST_DEVICE Stretch make_stretch(float low, float peak, float eps) {
  const float spread = peak - low;
  if (spread < kFlatSpread * peak || peak == 0.0f) return {0.0f, 0.0f, 0.0f, 1.0f, true};
  const float divisor = spread + eps;
  const float lift = divisor < 0x1p-100f ? 0x1p100f : divisor > 0x1p100f ? 0x1p-100f : 1.0f;
  return {low * lift, peak * lift, 1.0f / (divisor * lift), lift, false};
}

}  // namespace
}  // namespace synq
