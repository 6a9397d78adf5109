// Layer normalisation with fake quantization over one learned grid, and its five gradients, each in one pass over
// memory: a block reads a row from there once, and again from its cache.
//
// Backward a block handles every parts-th row. What its threads add to the gradients of weight and bias lies in shared
// memory, or in the workspace for rows too long for that; a second kernel adds the parts. Every part has its place, so
// every run gives the same bits.
#include "../layer_norm_fake_quantize.h"

#include "../learned_grid.h"
#include "block_rows.cuh"
#include "block_tree.cuh"

namespace synq {
namespace {

using Params = LayerNormFakeQuantizeParams;

constexpr int64_t kMostParts = kReductionParts < 512 ? kReductionParts : 512;
constexpr int64_t kLeastRows = 8;       // of a part
constexpr int64_t kMostColumns = 2048;  // whose sums lie in shared memory
constexpr int kColumns = 32;            // that a block of the second kernel adds side by side

struct Moments {
  float mean;
  float inverse;  // of the deviation
};

template <typename T, int kCount>
__device__ __forceinline__ Moments moments_of(const T* x, int64_t columns, float eps) {
  const int64_t begin = static_cast<int64_t>(threadIdx.x) * kCount;
  const int64_t step = static_cast<int64_t>(blockDim.x) * kCount;
  float sum[1] = {};
  for (int64_t first = begin; first < columns; first += step) {
    const Pack<T, kCount> pack = load_pack<kCount>(x + first);
#pragma unroll
    for (int i = 0; i < kCount; ++i) sum[0] += to_float(pack.values[i]);
  }
  sum_block(sum);
  const float mean = sum[0] / static_cast<float>(columns);
  float squares[1] = {};
  for (int64_t first = begin; first < columns; first += step) {
    const Pack<T, kCount> pack = load_pack<kCount>(x + first);
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const float distance = to_float(pack.values[i]) - mean;
      squares[0] += distance * distance;
    }
  }
  sum_block(squares);
  return {mean, 1.0f / sqrtf(squares[0] / static_cast<float>(columns) + eps)};
}

template <typename T, int kCount>
__global__ void __launch_bounds__(kThreads, kMinimumBlocks) norm_kernel(const Params params) {
  const float low = lowest_code(params.bits);
  const float high = highest_code(params.bits);
  const Affine affine = learned_grid(*params.scale, *params.zero_point);
  const int64_t step = static_cast<int64_t>(blockDim.x) * kCount;
  for (int64_t row = blockIdx.x; row < params.rows; row += gridDim.x) {
    const T* x = static_cast<const T*>(params.x) + row * params.columns;
    const Moments moments = moments_of<T, kCount>(x, params.columns, params.eps);
    for (int64_t first = static_cast<int64_t>(threadIdx.x) * kCount; first < params.columns; first += step) {
      const Pack<T, kCount> pack = load_pack<kCount>(x + first);
      const Pack<float, kCount> weight = load_pack<kCount>(params.weight + first);
      const Pack<float, kCount> bias = load_pack<kCount>(params.bias + first);
      Pack<T, kCount> y;
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        const float normal = (to_float(pack.values[i]) - moments.mean) * moments.inverse;
        y.values[i] = from_float<T>(fake_quantize(normal * weight.values[i] + bias.values[i], affine, low, high));
      }
      store_pack<kCount>(static_cast<T*>(params.y) + row * params.columns + first, y);
    }
  }
}

// One part's sums are those for weight, for bias, and the terms of the scale and of the zero point.
__host__ __device__ __forceinline__ int64_t sums_of_part(int64_t columns) { return 2 * columns + 2; }

template <typename T, int kCount>
__global__ void __launch_bounds__(kThreads, kMinimumBlocks) norm_gradient_kernel(const Params params, int64_t parts) {
  __shared__ float shared[2 * kMostColumns];
  const float low = lowest_code(params.bits);
  const float high = highest_code(params.bits);
  const Affine affine = learned_grid(*params.scale, *params.zero_point);
  const int64_t columns = params.columns;
  const int64_t begin = static_cast<int64_t>(threadIdx.x) * kCount;
  const int64_t step = static_cast<int64_t>(blockDim.x) * kCount;
  const float count = static_cast<float>(columns);
  for (int64_t part = blockIdx.x; part < parts; part += gridDim.x) {
    float* result = params.workspace + part * sums_of_part(columns);
    // Each thread meets its own columns alone.
    float* of_weight = columns <= kMostColumns ? shared : result;
    float* of_bias = of_weight + columns;
    for (int64_t first = begin; first < columns; first += step) {
      for (int i = 0; i < kCount; ++i) of_weight[first + i] = of_bias[first + i] = 0.0f;
    }
    float terms[2] = {};
    for (int64_t row = part; row < params.rows; row += parts) {
      const T* x = static_cast<const T*>(params.x) + row * columns;
      const T* gradient = static_cast<const T*>(params.gradient) + row * columns;
      const Moments moments = moments_of<T, kCount>(x, columns, params.eps);
      float sums[2] = {};
      for (int64_t first = begin; first < columns; first += step) {
        const Pack<T, kCount> pack = load_pack<kCount>(x + first);
        const Pack<T, kCount> given = load_pack<kCount>(gradient + first);
#pragma unroll
        for (int i = 0; i < kCount; ++i) {
          const float normal = (to_float(pack.values[i]) - moments.mean) * moments.inverse;
          const float weight = params.weight[first + i];
          const float value = normal * weight + params.bias[first + i];
          const LearnedTerms each = learned_terms(to_float(given.values[i]), value, affine, low, high);
          terms[0] += each.of_scale;
          terms[1] += each.of_zero;
          const float slope = each.of_x * weight;
          sums[0] += slope;
          sums[1] += slope * normal;
          of_weight[first + i] += each.of_x * normal;
          of_bias[first + i] += each.of_x;
        }
      }
      sum_block(sums);
      const float mean = sums[0] / count;
      const float along = sums[1] / count;
      for (int64_t first = begin; first < columns; first += step) {
        const Pack<T, kCount> pack = load_pack<kCount>(x + first);
        const Pack<T, kCount> given = load_pack<kCount>(gradient + first);
        Pack<T, kCount> y;
#pragma unroll
        for (int i = 0; i < kCount; ++i) {
          const float normal = (to_float(pack.values[i]) - moments.mean) * moments.inverse;
          const float weight = params.weight[first + i];
          const float value = normal * weight + params.bias[first + i];
          const LearnedTerms each = learned_terms(to_float(given.values[i]), value, affine, low, high);
          y.values[i] = from_float<T>((each.of_x * weight - mean - normal * along) * moments.inverse);
        }
        store_pack<kCount>(static_cast<T*>(params.y) + row * columns + first, y);
      }
    }
    sum_block(terms);
    if (threadIdx.x < 2) result[2 * columns + threadIdx.x] = threadIdx.x == 0 ? terms[0] : terms[1];
    if (columns > kMostColumns) continue;
    for (int64_t first = begin; first < columns; first += step) {
      for (int i = 0; i < kCount; ++i) {
        result[first + i] = of_weight[first + i];
        result[columns + first + i] = of_bias[first + i];
      }
    }
  }
}

struct Sum {
  double value;
};

__device__ __forceinline__ Sum merge(const Sum& a, const Sum& b) { return {a.value + b.value}; }

// Adds the parts, a block for kColumns of their sums.
__global__ void __launch_bounds__(kThreads) norm_total_kernel(const Params params, int64_t parts) {
  const int64_t sums = sums_of_part(params.columns);
  for (int64_t group = blockIdx.x; group * kColumns < sums; group += gridDim.x) {
    const int64_t column = group * kColumns + threadIdx.x % kColumns;
    Sum sum = {0.0};
    if (column < sums) {
      for (int64_t part = threadIdx.x / kColumns; part < parts; part += kThreads / kColumns) {
        sum.value += params.workspace[part * sums + column];
      }
    }
    sum = merge_block<kColumns>(sum);
    if (threadIdx.x >= kColumns || column >= sums) continue;
    if (column < params.columns) {
      params.grad_weight[column] = static_cast<float>(sum.value);
    } else if (column < 2 * params.columns) {
      params.grad_bias[column - params.columns] = static_cast<float>(sum.value);
    } else if (column == 2 * params.columns) {
      *params.grad_scale = learned_grad_scale(sum.value, *params.scale, params.gradient_scale);
    } else {
      *params.grad_zero_point = learned_grad_zero_point(sum.value, *params.scale, params.gradient_scale);
    }
  }
}

int64_t parts_of(const Params& params) { return std::min(ceil_divide(params.rows, kLeastRows), kMostParts); }

template <typename T>
bool is_packed(const Params& params) {
  constexpr int kCount = pack_size<T>();
  const size_t wide = sizeof(float) * kCount;
  return params.columns % kCount == 0 && is_aligned(params.x, kPackBytes) && is_aligned(params.gradient, kPackBytes) &&
         is_aligned(params.y, kPackBytes) && is_aligned(params.weight, wide) && is_aligned(params.bias, wide);
}

}  // namespace

int layer_norm_fake_quantize_cuda(const Params& params, void* stream) {
  return with_element_type(params.dtype, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    constexpr int kCount = pack_size<T>();
    if (is_packed<T>(params)) {
      const int threads = threads_for_row(params.columns / kCount);
      return launch_striding(norm_kernel<T, kCount>, params.rows, threads, 0, stream, params);
    }
    return launch_striding(norm_kernel<T, 1>, params.rows, threads_for_row(params.columns), 0, stream, params);
  });
}

int64_t layer_norm_fake_quantize_workspace_cuda(const Params& params) {
  return parts_of(params) * sums_of_part(params.columns);
}

int layer_norm_fake_quantize_backward_cuda(const Params& params, void* stream) {
  const int64_t parts = parts_of(params);
  const int error = with_element_type(params.dtype, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    constexpr int kCount = pack_size<T>();
    if (is_packed<T>(params)) {
      const int threads = threads_for_row(params.columns / kCount);
      return launch_striding(norm_gradient_kernel<T, kCount>, parts, threads, 0, stream, params, parts);
    }
    const int threads = threads_for_row(params.columns);
    return launch_striding(norm_gradient_kernel<T, 1>, parts, threads, 0, stream, params, parts);
  });
  if (error != cudaSuccess) return error;
  const int64_t groups = ceil_divide(sums_of_part(params.columns), kColumns);
  return launch_striding(norm_total_kernel, groups, kThreads, 0, stream, params, parts);
}

}  // namespace synq
