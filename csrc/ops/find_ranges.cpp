#include "ops/find_ranges.h"

#include <algorithm>
#include <limits>
#include <vector>

#include "ops/parallel.h"

namespace synq {

void include_ranges(const float* low, const float* high, int64_t count, float* minimum, float* maximum) {
  for (int64_t i = 0; i < count; ++i) {
    if (low[i] < minimum[i] || low[i] != low[i]) minimum[i] = low[i];
    if (high[i] > maximum[i] || high[i] != high[i]) maximum[i] = high[i];
  }
}

// Extrema do not depend on the order of comparison, so the split over threads cannot be seen in the result.
void find_ranges(const cpu::DynamicJob& job, int64_t count, float* minimum, float* maximum) {
  const int64_t channels = job.channels;
  const auto reset = [channels](float* low, float* high) {
    std::fill_n(low, channels, std::numeric_limits<float>::infinity());
    std::fill_n(high, channels, -std::numeric_limits<float>::infinity());
  };
  reset(minimum, maximum);
  const auto kernel = SYNQ_SELECT(cpu::fake_quantize_dynamic_kernels).find_range;
  const int64_t parts = std::min<int64_t>(at::get_num_threads(), (count + kGrain - 1) / kGrain);
  if (parts <= 1) return kernel(job, 0, count, minimum, maximum);

  std::vector<float> partial(2 * channels * parts);
  const int64_t size = (count + parts - 1) / parts;
  at::parallel_for(0, parts, 1, [&](int64_t first, int64_t last) {
    for (int64_t part = first; part < last; ++part) {
      float* low = partial.data() + 2 * channels * part;
      reset(low, low + channels);
      kernel(job, part * size, std::min(count, (part + 1) * size), low, low + channels);
    }
  });
  for (int64_t part = 0; part < parts; ++part) {
    const float* low = partial.data() + 2 * channels * part;
    include_ranges(low, low + channels, channels, minimum, maximum);
  }
}

}  // namespace synq
