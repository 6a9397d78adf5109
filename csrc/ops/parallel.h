// Splitting work over torch's threads.
#pragma once

#include <ATen/Parallel.h>

namespace synq {

// Below this many elements waking a second thread costs more than it saves.
constexpr int64_t kGrain = 32768;

// Calls body(begin, end) on parts of [0, count), on this thread alone where there is little to do. `weight` is the
// number of elements behind one index.
template <typename Body>
void for_each_part(int64_t count, int64_t weight, const Body& body) {
  if (count == 0) return;
  if (count * weight <= kGrain) return body(int64_t{0}, count);
  at::parallel_for(0, count, (kGrain + weight - 1) / weight, body);
}

}  // namespace synq
