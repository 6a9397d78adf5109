// Walking over rows of float32 or 16-bit elements.
#pragma once

#include "cpu/elements.h"
#include "cpu/lanes.h"

namespace synq::cpu {
namespace {

// Calls block(begin, end) on stretches short enough to sum in float32.
template <typename Block>
inline void for_each_stretch(int64_t count, Block block) {
  for (int64_t i = 0; i < count; i += kBlock) block(i, count - i < kBlock ? count : i + kBlock);
}

// One value of the lanes, halves combined with each other.
template <int kWidth = kLanes / 2, typename Combine>
inline float folded(Vector value, Combine combine) {
  if constexpr (kWidth == 0) {
    return value[0];
  } else {
    Lanes other;
    for (int i = 0; i < kLanes; ++i) other[i] = (i + kWidth) % kLanes;
    return folded<kWidth / 2>(combine(value, shuffle(value, value, other)), combine);
  }
}

// The sum of the lanes.
inline float folded(Vector value) {
  return folded(value, [](Vector a, Vector b) { return a + b; });
}

// A row as float32: where it lies, or for 16-bit types a copy.
template <typename T>
const float* row_of(const void* memory, int64_t row, int64_t columns, float* copy) {
  const T* source = static_cast<const T*>(memory) + row * columns;
  if constexpr (std::is_same_v<T, float>) {
    return source;
  } else {
    load(source, copy, columns);
    return copy;
  }
}

}  // namespace
}  // namespace synq::cpu
