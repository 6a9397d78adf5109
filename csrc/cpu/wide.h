// Sixteen float lanes, whatever the instruction set: sums have the same order, and so the same bits, everywhere.
#pragma once

#include <stdint.h>

#if !defined(SYNQ_VECTOR_BYTES)
#define SYNQ_VECTOR_BYTES 16
#endif

namespace synq::cpu {
namespace {

constexpr int64_t kLanes = 16;

#define SYNQ_INLINE inline __attribute__((always_inline))

// Compilers keep a vector that is wider than the registers in memory, but a struct of register-wide ones in registers.
template <typename Half>
struct Pair {
  Half low;
  Half high;
};

typedef float Quad __attribute__((vector_size(16)));
typedef int32_t QuadMask __attribute__((vector_size(16)));
typedef float Native __attribute__((vector_size(SYNQ_VECTOR_BYTES)));
typedef int32_t NativeMask __attribute__((vector_size(SYNQ_VECTOR_BYTES)));
#if SYNQ_VECTOR_BYTES == 64
using Wide = Native;
using WideMask = NativeMask;
#elif SYNQ_VECTOR_BYTES == 32
using Wide = Pair<Native>;
using WideMask = Pair<NativeMask>;
#else
using Wide = Pair<Pair<Native> >;
using WideMask = Pair<Pair<NativeMask> >;
#endif
static_assert(sizeof(Wide) == kLanes * sizeof(float));

#define SYNQ_LANEWISE(op)                                                    \
  template <typename Half>                                                   \
  SYNQ_INLINE auto operator op(const Pair<Half>& a, const Pair<Half>& b) {   \
    return Pair<decltype(a.low op b.low)>{a.low op b.low, a.high op b.high}; \
  }
#define SYNQ_ARITHMETIC(op)                                          \
  SYNQ_LANEWISE(op)                                                  \
  template <typename Half>                                           \
  SYNQ_INLINE Pair<Half> operator op(const Pair<Half>& a, float b) { \
    return {a.low op b, a.high op b};                                \
  }                                                                  \
  template <typename Half>                                           \
  SYNQ_INLINE Pair<Half> operator op(float a, const Pair<Half>& b) { \
    return {a op b.low, a op b.high};                                \
  }
SYNQ_ARITHMETIC(+)
SYNQ_ARITHMETIC(-)
SYNQ_ARITHMETIC(*)
SYNQ_ARITHMETIC(/)
SYNQ_LANEWISE(<)
SYNQ_LANEWISE(>)
SYNQ_LANEWISE(==)
SYNQ_LANEWISE(!=)
SYNQ_LANEWISE(|)
SYNQ_LANEWISE(&)
#undef SYNQ_ARITHMETIC
#undef SYNQ_LANEWISE

template <typename Half>
SYNQ_INLINE Pair<Half>& operator+=(Pair<Half>& a, const Pair<Half>& b) {
  return a = a + b;
}

// Lanes of x where the mask is set, else of y.
SYNQ_INLINE float select(bool mask, float x, float y) { return mask ? x : y; }
SYNQ_INLINE Native select(const NativeMask& mask, const Native& x, const Native& y) { return mask ? x : y; }
#if SYNQ_VECTOR_BYTES > 16
SYNQ_INLINE Quad select(const QuadMask& mask, const Quad& x, const Quad& y) { return mask ? x : y; }
#endif
template <typename Mask, typename Half>
SYNQ_INLINE Pair<Half> select(const Pair<Mask>& mask, const Pair<Half>& x, const Pair<Half>& y) {
  return {select(mask.low, x.low, y.low), select(mask.high, x.high, y.high)};
}

// The difference with zero changes nothing, not even the sign of zero, and so costs nothing.
template <typename V>
SYNQ_INLINE V all_lanes(float value) {
  return value - V{};
}

// Whole structs must not be copied by memcpy: they would lie in memory from then on.
SYNQ_INLINE void load(const float* source, Native& target) { __builtin_memcpy(&target, source, sizeof target); }
template <typename Half>
SYNQ_INLINE void load(const float* source, Pair<Half>& target) {
  load(source, target.low);
  load(source + sizeof(Half) / sizeof(float), target.high);
}

SYNQ_INLINE void store(const Native& source, float* target) { __builtin_memcpy(target, &source, sizeof source); }
template <typename Half>
SYNQ_INLINE void store(const Pair<Half>& source, float* target) {
  store(source.low, target);
  store(source.high, target + sizeof(Half) / sizeof(float));
}

// For loops that are written once for vectors and for what is left of a row: the value's type tells which.
SYNQ_INLINE Wide read(const float* x, const Wide&) {
  Wide value;
  load(x, value);
  return value;
}
SYNQ_INLINE float read(const float* x, float) { return *x; }

// Writes row[i...] = value(i, a value of the vector's type). The last vector overlaps the one before it.
template <typename Value>
SYNQ_INLINE void write_floats(float* row, int64_t count, Value value) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store(value(i, Wide{}), row + i);
  if (i == count) return;
  if (count >= kLanes) {
    store(value(count - kLanes, Wide{}), row + count - kLanes);
  } else {
    for (; i < count; ++i) row[i] = value(i, 0.0f);
  }
}

constexpr float kLaneNumbers[kLanes] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

// The first `count` lanes, all of them from 16 on.
SYNQ_INLINE WideMask first_lanes(int64_t count) {
  return read(kLaneNumbers, Wide{}) < all_lanes<Wide>(static_cast<float>(count) - 0.5f);
}

// The last `count` lanes.
SYNQ_INLINE WideMask last_lanes(int64_t count) {
  return read(kLaneNumbers, Wide{}) > all_lanes<Wide>(static_cast<float>(kLanes - count) - 0.5f);
}

SYNQ_INLINE bool any(const NativeMask& mask) {
  int64_t words[sizeof mask / sizeof(int64_t)];
  __builtin_memcpy(words, &mask, sizeof mask);
  int64_t all = 0;
  for (const int64_t word : words) all |= word;
  return all != 0;
}
template <typename Half>
SYNQ_INLINE bool any(const Pair<Half>& mask) {
  return any(mask.low | mask.high);
}

// The lanes' sum by halves, as far as four lanes.
SYNQ_INLINE Quad sum_quarters(const Quad& value) { return value; }
#if SYNQ_VECTOR_BYTES == 32
SYNQ_INLINE Quad sum_quarters(const Native& value) {
  Quad halves[2];
  __builtin_memcpy(halves, &value, sizeof value);
  return halves[0] + halves[1];
}
#elif SYNQ_VECTOR_BYTES == 64
SYNQ_INLINE Quad sum_quarters(const Native& value) {
  Quad quarters[4];
  __builtin_memcpy(quarters, &value, sizeof value);
  return (quarters[0] + quarters[2]) + (quarters[1] + quarters[3]);
}
#endif
template <typename Half>
SYNQ_INLINE Quad sum_quarters(const Pair<Half>& value) {
  return sum_quarters(value.low + value.high);
}
#if defined(__clang__)
#define SYNQ_SHUFFLE(x, y, a, b, c, d) __builtin_shufflevector(x, y, a, b, c, d)
#else
#define SYNQ_SHUFFLE(x, y, a, b, c, d) __builtin_shuffle(x, y, QuadMask{a, b, c, d})
#endif

// The sums of the lanes of four vectors, each by halves.
SYNQ_INLINE Quad sum_lanes(const Wide& a, const Wide& b, const Wide& c, const Wide& d) {
  const Quad p = sum_quarters(a), q = sum_quarters(b), r = sum_quarters(c), s = sum_quarters(d);
  const Quad pq = SYNQ_SHUFFLE(p, q, 0, 4, 1, 5) + SYNQ_SHUFFLE(p, q, 2, 6, 3, 7);
  const Quad rs = SYNQ_SHUFFLE(r, s, 0, 4, 1, 5) + SYNQ_SHUFFLE(r, s, 2, 6, 3, 7);
  return SYNQ_SHUFFLE(pq, rs, 0, 1, 4, 5) + SYNQ_SHUFFLE(pq, rs, 2, 3, 6, 7);
}

SYNQ_INLINE float sum_lanes(const Wide& value) {
  const Quad sum = sum_quarters(value);
  return (sum[0] + sum[2]) + (sum[1] + sum[3]);
}

#undef SYNQ_SHUFFLE

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
