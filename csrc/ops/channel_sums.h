// Deterministic two-stage sums of a pair of terms per channel, on the CPU.
#pragma once

#include <algorithm>
#include <vector>

#include "ops/parallel.h"
#include "ops/quantized.h"

namespace synq {

struct ChannelSums {
  std::vector<double> first;
  std::vector<double> second;
};

// Runs kernel(begin, end, first sums, second sums) over parts of [0, elements) whose borders depend on the sizes alone,
// then adds the parts' sums in order. Parts are long beside the number of channels, so that their sums take little
// memory, and short enough to keep many threads busy.
template <typename Kernel>
ChannelSums sum_over_parts(const Input& input, const Kernel& kernel) {
  constexpr int64_t kMostParts = 64;
  const int64_t count = input.elements();
  const int64_t channels = input.channels;
  ChannelSums sums{std::vector<double>(channels), std::vector<double>(channels)};
  if (count == 0) return sums;
  const int64_t size = std::max({kGrain, 8 * channels, (count + kMostParts - 1) / kMostParts});
  const int64_t parts = (count + size - 1) / size;
  if (parts == 1) {
    kernel(int64_t{0}, count, sums.first.data(), sums.second.data());
    return sums;
  }
  std::vector<double> partial(2 * channels * parts);
  for_each_part(parts, size, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) {
      double* first = partial.data() + 2 * channels * part;
      kernel(part * size, std::min(count, (part + 1) * size), first, first + channels);
    }
  });
  for (int64_t part = 0; part < parts; ++part) {
    const double* first = partial.data() + 2 * channels * part;
    for (int64_t c = 0; c < channels; ++c) {
      sums.first[c] += first[c];
      sums.second[c] += first[channels + c];
    }
  }
  return sums;
}

}  // namespace synq
