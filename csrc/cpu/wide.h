// Sixteen float lanes, whatever the instruction set: sums have the same order, and so the same bits, everywhere.
#pragma once

#include <stdint.h>

namespace synq::cpu {
namespace {

constexpr int64_t kLanes = 16;

typedef float Wide __attribute__((vector_size(64)));
typedef int32_t WideMask __attribute__((vector_size(64)));
typedef float LooseWide __attribute__((vector_size(64), aligned(4), may_alias));

#define SYNQ_INLINE inline __attribute__((always_inline))

SYNQ_INLINE void load(const float* source, Wide& target) { target = *reinterpret_cast<const LooseWide*>(source); }

SYNQ_INLINE void store(const Wide& source, float* target) { *reinterpret_cast<LooseWide*>(target) = source; }

// The lanes' sum by halves.
SYNQ_INLINE float sum_lanes(const Wide& value) {
  float lanes[kLanes];
  store(value, lanes);
  for (int64_t width = kLanes / 2; width > 0; width /= 2) {
    for (int64_t i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  }
  return lanes[0];
}

SYNQ_INLINE double sum_lanes_double(const Wide& value) {
  float lanes[kLanes];
  store(value, lanes);
  double sum = 0.0;
  for (int64_t i = 0; i < kLanes; ++i) sum += lanes[i];
  return sum;
}

// The least number of whole vectors, in floats.
constexpr int64_t padded(int64_t count) { return (count + kLanes - 1) / kLanes * kLanes; }

}  // namespace
}  // namespace synq::cpu
