// One direction of bilinear resizing, laid out for vectors.
#pragma once

#include <stdint.h>

#include "cam.h"

namespace synq::cpu {

// Weights are read by whole vectors, from any pixel on.
constexpr int64_t kAxisPadding = 15;

struct Axis {
  int64_t positions;      // of the coarse map
  int64_t pixels;         // of the large one
  const float* weights;   // (pixels + kAxisPadding,): of the position on the right, by pixel
  const int64_t* starts;  // (positions + 1,): the first pixel between a position and the next
};

namespace {

inline void fill_axis(int64_t positions, int64_t pixels, float* weights, int64_t* starts) {
  for (int64_t i = 0; i < pixels; ++i) weights[i] = make_tap(i, positions, pixels).weight;
  for (int64_t i = pixels; i < pixels + kAxisPadding; ++i) weights[i] = 0.0f;
  for (int64_t i = 0; i <= positions; ++i) starts[i] = first_pixel(i, positions, pixels);
}

}  // namespace
}  // namespace synq::cpu
