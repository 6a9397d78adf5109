// One value from many terms, added up by one block in a fixed order.
#pragma once

#include "block_tree.cuh"

namespace synq {
namespace {

struct Total {
  double value;
};

__device__ __forceinline__ Total merge(const Total& a, const Total& b) { return {a.value + b.value}; }

__global__ void __launch_bounds__(kThreads)
    total_kernel(const double* terms, int64_t count, double offset, double factor, float* result) {
  Total total = {0.0};
  for (int64_t i = threadIdx.x; i < count; i += kThreads) total.value += terms[i];
  total = merge_block<1>(total);
  if (threadIdx.x == 0) *result = static_cast<float>(offset + factor * total.value);
}

// result = offset + factor * the sum of the terms
int launch_total(const double* terms, int64_t count, double offset, double factor, float* result, void* stream) {
  return launch(total_kernel, 1, kThreads, 0, stream, terms, count, offset, factor, result);
}

}  // namespace
}  // namespace synq
