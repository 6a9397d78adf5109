// Norms of the differences of neighbouring pixels, and the gradient of their sum.
//
// Blocks reduce runs of rows to four sums of squares each; one block a group puts these together in a fixed order.
#include "../total_variation.h"

#include "block_tree.cuh"
#include "channel_parts.cuh"

namespace synq {
namespace {

constexpr int kDirections = 4;

struct Squares {
  double values[kDirections];
};

__device__ __forceinline__ Squares merge(const Squares& a, const Squares& b) {
  Squares result;
#pragma unroll
  for (int d = 0; d < kDirections; ++d) result.values[d] = a.values[d] + b.values[d];
  return result;
}

__device__ __forceinline__ float square(float value) { return value * value; }

// How the rows lie, and how those of each group are divided among blocks.
struct Plan {
  int64_t group_rows;
  int64_t height;
  int64_t length;
  int64_t step;
  int64_t groups;
  int64_t splits;
};

Plan make_plan(const TotalVariationParams& params) {
  const int64_t rows = params.planes / params.groups * params.height;
  const int64_t splits = std::min(rows, ceil_divide(kReductionParts, params.groups));
  return {rows, params.height, params.width * params.step, params.step, params.groups, splits};
}

// Item (group, split): a run of the group's rows.
template <typename T>
__global__ void __launch_bounds__(kThreads, kMinimumBlocks) squares_kernel(const T* x, double* partial, Plan plan) {
  for (int64_t item = blockIdx.x; item < plan.groups * plan.splits; item += gridDim.x) {
    const int64_t group = item / plan.splits;
    const int64_t split = item - group * plan.splits;
    const int64_t begin = group * plan.group_rows + split * plan.group_rows / plan.splits;
    const int64_t end = group * plan.group_rows + (split + 1) * plan.group_rows / plan.splits;
    Squares total = {};
    for (int64_t row = begin; row < end; ++row) {
      const T* here = x + row * plan.length;
      const T* below = here + plan.length;
      const bool has_below = (row + 1) % plan.height != 0;
      float sums[kDirections] = {};
      for (int64_t i = threadIdx.x; i < plan.length; i += blockDim.x) {
        const bool has_right = i + plan.step < plan.length;
        const float value = to_float(here[i]);
        const float right = has_right ? to_float(here[i + plan.step]) : value;
        sums[0] += square(right - value);
        if (!has_below) continue;
        const float down = to_float(below[i]);
        sums[1] += square(down - value);
        if (!has_right) continue;
        sums[2] += square(to_float(below[i + plan.step]) - value);
        sums[3] += square(down - right);
      }
#pragma unroll
      for (int d = 0; d < kDirections; ++d) total.values[d] += static_cast<double>(sums[d]);
    }
    total = merge_block<1>(total);
    if (threadIdx.x != 0) continue;
#pragma unroll
    for (int d = 0; d < kDirections; ++d) partial[item * kDirections + d] = total.values[d];
  }
}

__global__ void __launch_bounds__(kThreads)
    norms_kernel(const double* partial, float* norms, float* value, int64_t splits) {
  const int64_t group = blockIdx.x;
  Squares total = {};
  for (int64_t split = threadIdx.x; split < splits; split += blockDim.x) {
#pragma unroll
    for (int d = 0; d < kDirections; ++d) total.values[d] += partial[(group * splits + split) * kDirections + d];
  }
  total = merge_block<1>(total);
  if (threadIdx.x != 0) return;
  double sum = 0.0;
#pragma unroll
  for (int d = 0; d < kDirections; ++d) {
    const double norm = sqrt(total.values[d]);
    norms[group * kDirections + d] = static_cast<float>(norm);
    sum += norm;
  }
  value[group] = static_cast<float>(sum);
}

// A block handles a row at a time.
template <typename T>
__global__ void __launch_bounds__(kThreads, kMinimumBlocks)
    gradient_kernel(const T* x, const float* norms, const float* gradient, T* y, Plan plan) {
  for (int64_t row = blockIdx.x; row < plan.groups * plan.group_rows; row += gridDim.x) {
    const int64_t group = row / plan.group_rows;
    float factors[kDirections];
#pragma unroll
    for (int d = 0; d < kDirections; ++d) {
      const float norm = norms[group * kDirections + d];
      factors[d] = norm == 0.0f ? 0.0f : gradient[group] / norm;
    }
    const bool has_up = row % plan.height != 0;
    const bool has_down = (row + 1) % plan.height != 0;
    const int64_t step = plan.step;
    const T* here = x + row * plan.length;
    const T* up = here - plan.length;
    const T* down = here + plan.length;
    for (int64_t i = threadIdx.x; i < plan.length; i += blockDim.x) {
      const bool has_left = i >= step;
      const bool has_right = i + step < plan.length;
      const float value = to_float(here[i]);
      float total = 0.0f;
      if (has_right) total += factors[0] * (value - to_float(here[i + step]));
      if (has_left) total += factors[0] * (value - to_float(here[i - step]));
      if (has_down) total += factors[1] * (value - to_float(down[i]));
      if (has_up) total += factors[1] * (value - to_float(up[i]));
      if (has_down && has_right) total += factors[2] * (value - to_float(down[i + step]));
      if (has_up && has_left) total += factors[2] * (value - to_float(up[i - step]));
      if (has_down && has_left) total += factors[3] * (value - to_float(down[i - step]));
      if (has_up && has_right) total += factors[3] * (value - to_float(up[i + step]));
      y[row * plan.length + i] = from_float<T>(total);
    }
  }
}

}  // namespace

int64_t total_variation_workspace_cuda(const TotalVariationParams& params) {
  const Plan plan = make_plan(params);
  return kDirections * plan.groups * plan.splits;
}

int total_variation_cuda(const TotalVariationParams& params, void* stream) {
  const Plan plan = make_plan(params);
  return with_element_type(params.dtype, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    const int error = launch_striding(squares_kernel<T>, plan.groups * plan.splits, threads_for(plan.length), 0, stream,
                                      static_cast<const T*>(params.x), params.workspace, plan);
    if (error != cudaSuccess) return error;
    return launch(norms_kernel, plan.groups, kThreads, 0, stream, static_cast<const double*>(params.workspace),
                  params.norms, params.value, plan.splits);
  });
}

int total_variation_backward_cuda(const TotalVariationParams& params, void* stream) {
  const Plan plan = make_plan(params);
  return with_element_type(params.dtype, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    return launch_striding(gradient_kernel<T>, plan.groups * plan.group_rows, threads_for(plan.length), 0, stream,
                           static_cast<const T*>(params.x), static_cast<const float*>(params.norms), params.gradient,
                           static_cast<T*>(params.y), plan);
  });
}

}  // namespace synq
