// Sums of the terms of a block.
#pragma once

#include "cpu/channel_sums.h"
#include "cpu/vector.h"

namespace synq::cpu {
namespace {

// The sum of a block, in float32 as far as kSumRows terms go.
inline double sum_of_block(const float* terms, int64_t count) {
  constexpr int kWidth = kBlock / kSumRows;
  double total = 0.0;
  int64_t i = 0;
  if (count >= kWidth) {
    Vector sums[kWidth / kLanes] = {};
    for (; i + kWidth <= count; i += kWidth) {
      for (int k = 0; k < kWidth / kLanes; ++k) sums[k] += load_vector(terms + i + k * kLanes);
    }
    for (const Vector& sum : sums) {
      for (int lane = 0; lane < kLanes; ++lane) total += static_cast<double>(sum[lane]);
    }
  }
  for (; i < count; ++i) total += static_cast<double>(terms[i]);
  return total;
}

}  // namespace
}  // namespace synq::cpu
