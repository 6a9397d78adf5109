// Similarity of the channels of heads, and its gradient.
//
// A block handles neighbouring channels of one head, its warps other positions; one block adds up what all have found.
#include "../structural_similarity_loss.h"

#include "block_rows.cuh"
#include "ordered_total.cuh"

namespace synq {
namespace {

using Params = StructuralSimilarityParams;

int64_t channel_tiles(const Params& params) { return ceil_divide(params.channels, kWarp); }

// Every thread receives the sums over the warps of what lanes like its own hold, added in their order.
template <int kCount>
__device__ __forceinline__ void sum_warps(float (&values)[kCount]) {
  __shared__ float shared[kCount][kWarps][kWarp];
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  __syncthreads();  // what was here before has been read
#pragma unroll
  for (int i = 0; i < kCount; ++i) shared[i][threadIdx.x / kWarp][lane] = values[i];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    values[i] = 0.0f;
    for (int warp = 0; warp < kWarps; ++warp) values[i] += shared[i][warp][lane];
  }
}

// A channel at one position after another.
template <typename T>
struct Channel {
  const T* first;
  int64_t step;

  __device__ __forceinline__ float at(int64_t position) const { return to_float(first[position * step]); }
};

struct Weights {
  const float* first;
  int64_t step;

  __device__ __forceinline__ float at(int64_t position) const {
    return first == nullptr ? 1.0f : first[position * step];
  }
};

__device__ __forceinline__ Weights weights_of(const Params& params, int64_t matrix) {
  const bool given = params.weight != nullptr;
  const int64_t offset = given ? params.weight_strides.offset(matrix, params.heads, 0) : 0;
  return {given ? params.weight + offset : nullptr, params.weight_strides.row};
}

// Item (matrix, tile): a lane for each channel.
template <typename T>
__global__ void __launch_bounds__(kThreads, kMinimumBlocks) statistics_kernel(const Params params, int64_t tiles) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  for (int64_t item = blockIdx.x; item < params.matrices() * tiles; item += gridDim.x) {
    const int64_t matrix = item / tiles;
    const int64_t channel = (item - matrix * tiles) * kWarp + lane;
    const bool inside = channel < params.channels;
    const int64_t column = inside ? channel : 0;
    const Channel<T> teacher = {
        static_cast<const T*>(params.teacher) + params.teacher_strides.offset(matrix, params.heads, 0) + column,
        params.teacher_strides.row};
    const Channel<T> student = {
        static_cast<const T*>(params.student) + params.student_strides.offset(matrix, params.heads, 0) + column,
        params.student_strides.row};
    const Weights weights = weights_of(params, matrix);

    // Of the weights, the teacher, the student.
    float sums[3] = {};
#pragma unroll 2
    for (int64_t position = warp; position < params.positions; position += kWarps) {
      const float weight = weights.at(position);
      sums[0] += weight;
      sums[1] += weight * teacher.at(position);
      sums[2] += weight * student.at(position);
    }
    sum_warps(sums);
    const float inverse = 1.0f / sums[0];
    const float mean_t = sums[1] * inverse;
    const float mean_q = sums[2] * inverse;

    // The squares of both together, the products.
    float products[2] = {};
#pragma unroll 2
    for (int64_t position = warp; position < params.positions; position += kWarps) {
      const float weight = weights.at(position);
      const float t = teacher.at(position) - mean_t;
      const float q = student.at(position) - mean_q;
      products[0] += weight * (t * t + q * q);
      products[1] += weight * (t * q);
    }
    sum_warps(products);
    const float deviations = products[0] * inverse + kStructureOffset;
    const float similarity = (2.0f * (products[1] * inverse) + kStructureOffset) / deviations;
    if (warp != 0) continue;
    if (inside) {
      float* statistics = params.statistics + 4 * matrix * params.channels + channel;
      statistics[0] = mean_t;
      statistics[params.channels] = mean_q;
      statistics[2 * params.channels] = similarity;
      const float share = 2.0f * inverse / static_cast<float>(params.similarities());
      statistics[3 * params.channels] = share / deviations;
    }
    float total = inside ? similarity : 0.0f;
    total = sum_lanes(total);
    if (lane == 0) params.workspace[item] = static_cast<double>(total);
  }
}

// A warp handles a position of a head at a time.
template <typename T>
__global__ void __launch_bounds__(kThreads, kMinimumBlocks) gradient_kernel(const Params params) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const float gradient = *params.gradient;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kWarps;
  for (int64_t row = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp;
       row < params.matrices() * params.positions; row += step) {
    const int64_t matrix = row / params.positions;
    const int64_t position = row - matrix * params.positions;
    const T* teacher =
        static_cast<const T*>(params.teacher) + params.teacher_strides.offset(matrix, params.heads, position);
    const T* student =
        static_cast<const T*>(params.student) + params.student_strides.offset(matrix, params.heads, position);
    T* result = static_cast<T*>(params.result) + params.result_strides.offset(matrix, params.heads, position);
    const float* statistics = params.statistics + 4 * matrix * params.channels;
    const float factor = gradient * weights_of(params, matrix).at(position);
    for (int64_t channel = lane; channel < params.channels; channel += kWarp) {
      const float* of = statistics + channel;
      const float t = to_float(teacher[channel]) - of[0];
      const float q = to_float(student[channel]) - of[params.channels];
      const float slope = of[3 * params.channels] * factor;
      result[channel] = from_float<T>(slope * (of[2 * params.channels] * q - t));
    }
  }
}

}  // namespace

int64_t structural_similarity_workspace_cuda(const StructuralSimilarityParams& params) {
  return params.matrices() * channel_tiles(params);
}

int structural_similarity_loss_cuda(const StructuralSimilarityParams& params, void* stream) {
  const int64_t items = structural_similarity_workspace_cuda(params);
  const int error = with_element_type(params.dtype, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    return launch_striding(statistics_kernel<T>, items, kThreads, 0, stream, params, channel_tiles(params));
  });
  if (error != cudaSuccess) return error;
  return launch_total(params.workspace, items, 1.0, -1.0 / static_cast<double>(params.similarities()), params.value,
                      stream);
}

int structural_similarity_loss_backward_cuda(const StructuralSimilarityParams& params, void* stream) {
  return with_element_type(params.dtype, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    const int64_t blocks = ceil_divide(params.matrices() * params.positions, kWarps);
    return launch_striding(gradient_kernel<T>, blocks, kThreads, 0, stream, params);
  });
}

}  // namespace synq
