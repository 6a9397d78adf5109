// Transposing a square of kLanes x kLanes floats in registers.
#pragma once

#include "cpu/vector.h"

namespace synq::cpu {
namespace {

struct Pattern {
  int32_t lanes[kLanes];
};

// Within each quarter vector (128 bits): a, b, a, b in turn from element `first` on, by single elements or by pairs.
constexpr Pattern interleave(int first, bool pairs) {
  Pattern where = {};
  for (int i = 0; i < kLanes; ++i) {
    const int lane = i % 4;
    const bool from_b = pairs ? lane >= 2 : lane % 2 == 1;
    where.lanes[i] = i / 4 * 4 + first + (pairs ? lane % 2 : lane / 2) + (from_b ? kLanes : 0);
  }
  return where;
}

// Every other quarter of a and then of b, beginning with the quarter `first`.
constexpr Pattern quarters(int first) {
  Pattern where = {};
  for (int i = 0; i < kLanes; ++i) where.lanes[i] = (i / 4 * 2 + first) * 4 + i % 4;
  return where;
}

inline Vector shuffle(Vector a, Vector b, const Pattern& pattern) {
  Lanes where;
  memcpy(&where, pattern.lanes, sizeof where);
  return shuffle(a, b, where);
}

inline void transpose(Vector (&v)[kLanes]) {
  constexpr Pattern kLow = interleave(0, false), kHigh = interleave(2, false);
  constexpr Pattern kFirst = interleave(0, true), kLast = interleave(2, true);
  for (int group = 0; group < kLanes; group += 4) {
    const Vector a = shuffle(v[group], v[group + 1], kLow), b = shuffle(v[group], v[group + 1], kHigh);
    const Vector c = shuffle(v[group + 2], v[group + 3], kLow), d = shuffle(v[group + 2], v[group + 3], kHigh);
    v[group] = shuffle(a, c, kFirst);
    v[group + 1] = shuffle(a, c, kLast);
    v[group + 2] = shuffle(b, d, kFirst);
    v[group + 3] = shuffle(b, d, kLast);
  }
  constexpr Pattern kEven = quarters(0), kOdd = quarters(1);
  if constexpr (kLanes == 8) {
    for (int i = 0; i < 4; ++i) {
      const Vector a = v[i], b = v[i + 4];
      v[i] = shuffle(a, b, kEven);
      v[i + 4] = shuffle(a, b, kOdd);
    }
  } else if constexpr (kLanes == 16) {
    for (int i = 0; i < 4; ++i) {
      const Vector a = shuffle(v[i], v[i + 4], kEven), b = shuffle(v[i], v[i + 4], kOdd);
      const Vector c = shuffle(v[i + 8], v[i + 12], kEven), d = shuffle(v[i + 8], v[i + 12], kOdd);
      v[i] = shuffle(a, c, kEven);
      v[i + 4] = shuffle(b, d, kEven);
      v[i + 8] = shuffle(a, c, kOdd);
      v[i + 12] = shuffle(b, d, kOdd);
    }
  }
}

}  // namespace
}  // namespace synq::cpu
