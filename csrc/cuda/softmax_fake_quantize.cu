// Softmax with fake quantization over one scale, and its two gradients, each in one pass over memory: a block
// reads a row from there once, and again from its cache.
//
// Backward a block handles every parts-th row and keeps a sum for the scale; a second kernel adds the parts. Every part
// has its place, so every run gives the same bits.
#include "../softmax_fake_quantize.h"

#include "../probability_grid.h"
#include "block_rows.cuh"
#include "block_tree.cuh"
#include "channel_parts.cuh"

namespace synq {
namespace {

using Params = SoftmaxFakeQuantizeParams;

struct Moments {
  float most;     // of alpha x
  float inverse;  // of the sum of exponentials

  __device__ __forceinline__ float probability(float x, float alpha) const { return expf(x * alpha - most) * inverse; }
};

template <typename T, int kCount>
__device__ __forceinline__ Moments moments_of(const T* x, const Params& params) {
  const int64_t begin = static_cast<int64_t>(threadIdx.x) * kCount;
  const int64_t step = static_cast<int64_t>(blockDim.x) * kCount;
  float most[1] = {-INFINITY};
  for (int64_t first = begin; first < params.columns; first += step) {
    const Pack<T, kCount> pack = load_pack<kCount>(x + first);
#pragma unroll
    for (int i = 0; i < kCount; ++i) most[0] = fmaxf(most[0], to_float(pack.values[i]) * params.alpha);
  }
  maximum_block(most);
  float sum[1] = {};
  for (int64_t first = begin; first < params.columns; first += step) {
    const Pack<T, kCount> pack = load_pack<kCount>(x + first);
#pragma unroll
    for (int i = 0; i < kCount; ++i) sum[0] += expf(to_float(pack.values[i]) * params.alpha - most[0]);
  }
  sum_block(sum);
  return {most[0], 1.0f / sum[0]};
}

template <typename Grid, typename T, int kCount>
__global__ void __launch_bounds__(kThreads, kMinimumBlocks) softmax_kernel(const Params params) {
  const Grid grid(*params.scale, params.bits);
  const int64_t step = static_cast<int64_t>(blockDim.x) * kCount;
  for (int64_t row = blockIdx.x; row < params.rows; row += gridDim.x) {
    const T* x = static_cast<const T*>(params.x) + row * params.columns;
    const Moments moments = moments_of<T, kCount>(x, params);
    for (int64_t first = static_cast<int64_t>(threadIdx.x) * kCount; first < params.columns; first += step) {
      const Pack<T, kCount> pack = load_pack<kCount>(x + first);
      Pack<T, kCount> y;
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        const float value = moments.probability(to_float(pack.values[i]), params.alpha);
        y.values[i] = from_float<T>(grid.rounded(value));
      }
      store_pack<kCount>(static_cast<T*>(params.y) + row * params.columns + first, y);
    }
  }
}

template <typename Grid, typename T, int kCount>
__global__ void __launch_bounds__(kThreads, kMinimumBlocks)
    softmax_gradient_kernel(const Params params, int64_t parts) {
  const Grid grid(*params.scale, params.bits);
  const int64_t columns = params.columns;
  const int64_t begin = static_cast<int64_t>(threadIdx.x) * kCount;
  const int64_t step = static_cast<int64_t>(blockDim.x) * kCount;
  for (int64_t part = blockIdx.x; part < parts; part += gridDim.x) {
    float term[1] = {};
    for (int64_t row = part; row < params.rows; row += parts) {
      const T* x = static_cast<const T*>(params.x) + row * columns;
      const T* gradient = static_cast<const T*>(params.gradient) + row * columns;
      const Moments moments = moments_of<T, kCount>(x, params);
      float along[1] = {};
      for (int64_t first = begin; first < columns; first += step) {
        const Pack<T, kCount> pack = load_pack<kCount>(x + first);
        const Pack<T, kCount> given = load_pack<kCount>(gradient + first);
#pragma unroll
        for (int i = 0; i < kCount; ++i) {
          const float value = moments.probability(to_float(pack.values[i]), params.alpha);
          const auto each = grid.terms(to_float(given.values[i]), value);
          term[0] += each.of_scale;
          along[0] += each.of_x * value;
        }
      }
      sum_block(along);
      for (int64_t first = begin; first < columns; first += step) {
        const Pack<T, kCount> pack = load_pack<kCount>(x + first);
        const Pack<T, kCount> given = load_pack<kCount>(gradient + first);
        Pack<T, kCount> y;
#pragma unroll
        for (int i = 0; i < kCount; ++i) {
          const float value = moments.probability(to_float(pack.values[i]), params.alpha);
          const auto each = grid.terms(to_float(given.values[i]), value);
          y.values[i] = from_float<T>(params.alpha * value * (each.of_x - along[0]));
        }
        store_pack<kCount>(static_cast<T*>(params.y) + row * columns + first, y);
      }
    }
    sum_block(term);
    if (threadIdx.x == 0) params.workspace[part] = static_cast<double>(term[0]);
  }
}

struct Sum {
  double value;
};

__device__ __forceinline__ Sum merge(const Sum& a, const Sum& b) { return {a.value + b.value}; }

__global__ void __launch_bounds__(kThreads) softmax_total_kernel(const Params params, int64_t parts) {
  Sum sum = {0.0};
  for (int64_t part = threadIdx.x; part < parts; part += blockDim.x) sum.value += params.workspace[part];
  sum = merge_block<1>(sum);
  if (threadIdx.x != 0) return;
  *params.grad_scale = probability_grad_scale(params.log2 != 0, sum.value, *params.scale, params.gradient_scale);
}

template <typename T>
bool is_packed(const Params& params) {
  return params.columns % pack_size<T>() == 0 && is_aligned(params.x, kPackBytes) &&
         is_aligned(params.gradient, kPackBytes) && is_aligned(params.y, kPackBytes);
}

// Calls launch(tag of the grid, tag of the element type).
template <typename Launch>
int with_kernel_types(const Params& params, Launch launch) {
  return with_probability_grid(params.log2 != 0, [&](auto grid) {
    return with_element_type(params.dtype, [&](auto element) { return launch(grid, element); });
  });
}

}  // namespace

int softmax_fake_quantize_cuda(const Params& params, void* stream) {
  return with_kernel_types(params, [&](auto grid, auto element) {
    using Grid = typename decltype(grid)::Type;
    using T = typename decltype(element)::Type;
    constexpr int kCount = pack_size<T>();
    if (is_packed<T>(params)) {
      const int threads = threads_for_row(params.columns / kCount);
      return launch_striding(softmax_kernel<Grid, T, kCount>, params.rows, threads, 0, stream, params);
    }
    return launch_striding(softmax_kernel<Grid, T, 1>, params.rows, threads_for_row(params.columns), 0, stream, params);
  });
}

int64_t softmax_fake_quantize_workspace_cuda(const Params& params) { return std::min(params.rows, kReductionParts); }

int softmax_fake_quantize_backward_cuda(const Params& params, void* stream) {
  const int64_t parts = softmax_fake_quantize_workspace_cuda(params);
  const int error = with_kernel_types(params, [&](auto grid, auto element) {
    using Grid = typename decltype(grid)::Type;
    using T = typename decltype(element)::Type;
    constexpr int kCount = pack_size<T>();
    if (is_packed<T>(params)) {
      const int threads = threads_for_row(params.columns / kCount);
      return launch_striding(softmax_gradient_kernel<Grid, T, kCount>, parts, threads, 0, stream, params, parts);
    }
    const int threads = threads_for_row(params.columns);
    return launch_striding(softmax_gradient_kernel<Grid, T, 1>, parts, threads, 0, stream, params, parts);
  });
  if (error != cudaSuccess) return error;
  return launch(softmax_total_kernel, 1, threads_for(parts), 0, stream, params, parts);
}

}  // namespace synq
