// Walking over an array vector by vector, the rest included.
#pragma once

#include "cpu/vector.h"

namespace synq::cpu {
namespace {

// How many lanes of a vector are there: all of them, known when compiling, or the first `count`.
struct Whole {
  static Vector load(const float* source, float /*rest*/) { return load_vector(source); }
  static void store(float* target, Vector value) { store_vector(target, value); }
};

struct Part {
  int64_t count;

#if defined(__AVX512F__)
  __mmask16 mask() const { return static_cast<__mmask16>((1u << count) - 1); }
  Vector load(const float* source, float rest) const {
    return (Vector)_mm512_mask_loadu_ps((__m512)(Vector{} + rest), mask(), source);
  }
  void store(float* target, Vector value) const { _mm512_mask_storeu_ps(target, mask(), (__m512)value); }
#else
  Vector load(const float* source, float rest) const {
    Vector value = Vector{} + rest;
    memcpy(&value, source, sizeof(float) * static_cast<size_t>(count));
    return value;
  }
  void store(float* target, Vector value) const { memcpy(target, &value, sizeof(float) * static_cast<size_t>(count)); }
#endif
};

// Calls body(index, lanes) with lanes.load(pointer, what the missing lanes hold) and lanes.store(pointer, value).
template <typename Body>
inline void for_each_vector(int64_t begin, int64_t end, Body body) {
  int64_t i = begin;
  for (; i + kLanes <= end; i += kLanes) body(i, Whole{});
  if (i < end) body(i, Part{end - i});
}

// The sum of the lanes, always in the same order.
inline double sum_of(Vector value) {
  double lanes[kLanes];
  for (int i = 0; i < kLanes; ++i) lanes[i] = static_cast<double>(value[i]);
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  }
  return lanes[0];
}

}  // namespace
}  // namespace synq::cpu
