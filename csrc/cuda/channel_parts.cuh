// How reductions over channels divide a tensor among blocks.
#pragma once

#include <algorithm>

#include "../layout.h"
#include "memory.cuh"

namespace synq {

constexpr int64_t kNarrowInner = 16;  // below this, a channel's pieces are too short to read on their own
constexpr int kColumns = 32;          // columns a block reduces side by side

// Whether memory is better read as an (outer, columns) matrix, neighbouring threads on neighbouring columns.
inline bool is_narrow(const Layout& layout) {
  return layout.outer > 1 && layout.inner < kNarrowInner && layout.channels > 1;
}

template <typename Params>
Layout layout_of(const Params& params) {
  if (params.channels == 1) return {1, 1, params.elements()};
  return {params.outer, params.channels, params.inner};
}

// Parts that the rows of a matrix are divided into, of a few rows a thread.
inline int64_t column_splits(const Layout& layout) {
  const int64_t useful = ceil_divide(layout.outer, 4 * kThreads / kColumns);
  return std::min(useful, ceil_divide(kReductionParts, ceil_divide(layout.columns(), kColumns)));
}

// Parts that each channel is divided into, of a few packs a thread.
inline int64_t channel_splits(const Layout& layout, int pack) {
  const int64_t useful = ceil_divide(layout.length(), 4 * kThreads * pack);
  return std::min(useful, ceil_divide(kReductionParts, layout.channels));
}

// One warp at least, one block at most, about four elements or packs a thread.
inline int threads_for(int64_t items) {
  int threads = 32;
  while (threads < kThreads && threads * 4 < items) threads *= 2;
  return threads;
}

}  // namespace synq
