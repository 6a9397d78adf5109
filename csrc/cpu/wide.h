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

// Lane i becomes lane i + distance, around the end.
template <int distance>
SYNQ_INLINE Wide rotate(const Wide& value) {
#define SYNQ_LANE(i) ((i) + distance) % 16
#define SYNQ_FOUR(i) SYNQ_LANE(i), SYNQ_LANE(i + 1), SYNQ_LANE(i + 2), SYNQ_LANE(i + 3)
#if defined(__clang__)
  return __builtin_shufflevector(value, value, SYNQ_FOUR(0), SYNQ_FOUR(4), SYNQ_FOUR(8), SYNQ_FOUR(12));
#else
  return __builtin_shuffle(value, WideMask{SYNQ_FOUR(0), SYNQ_FOUR(4), SYNQ_FOUR(8), SYNQ_FOUR(12)});
#endif
#undef SYNQ_FOUR
#undef SYNQ_LANE
}

// The lanes' sum by halves.
SYNQ_INLINE float sum_lanes(Wide value) {
  value += rotate<8>(value);
  value += rotate<4>(value);
  value += rotate<2>(value);
  value += rotate<1>(value);
  return value[0];
}

// All ones in the last `count` lanes.
SYNQ_INLINE WideMask last_lanes(int64_t count) {
  const WideMask lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  return lane >= static_cast<int32_t>(kLanes - count);
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
