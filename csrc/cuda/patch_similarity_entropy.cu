// The patch similarity entropy and its gradient. Similarities are written with their range, and read twice: for the
// densities at points in that range, and to be replaced by their slopes. Sums have fixed places, so every run gives the
// same bits.
#include "../patch_similarity_entropy.h"

#include "memory.cuh"
#include "patch_products.cuh"
#include "warp.cuh"

namespace synq {
namespace {

constexpr int kWarps = kThreads / kWarp;
constexpr int kPerThread = static_cast<int>(kSimilarityBlock) / kThreads;
constexpr float kLeastNorm = 1e-8f;

// NaN stays.
__device__ __forceinline__ float lesser(float a, float b) { return a != a || a < b ? a : b; }
__device__ __forceinline__ float greater(float a, float b) { return a != a || a > b ? a : b; }

struct Extrema {
  float low = INFINITY;
  float high = -INFINITY;

  __device__ __forceinline__ void add(float other_low, float other_high) {
    low = lesser(other_low, low);
    high = greater(other_high, high);
  }
  __device__ __forceinline__ void reduce_warp() {
    low = reduce_lanes(low, [](float a, float b) { return lesser(b, a); });
    high = reduce_lanes(high, [](float a, float b) { return greater(b, a); });
  }
  // Every thread of the block gets the extrema of all.
  __device__ __forceinline__ void reduce_block() {
    __shared__ float lows[kWarps];
    __shared__ float highs[kWarps];
    reduce_warp();
    if (threadIdx.x % kWarp == 0) {
      lows[threadIdx.x / kWarp] = low;
      highs[threadIdx.x / kWarp] = high;
    }
    __syncthreads();
    for (int i = 0; i < static_cast<int>(blockDim.x) / kWarp; ++i) add(lows[i], highs[i]);
  }
};

// A thread's part of one image: elements first[i * kThreads] for i in [0, count), at most kPerThread of them.
struct Part {
  int64_t image;
  float* first;
  int count;

  __device__ __forceinline__ Part(const PatchSimilarityParams& p, int64_t splits) : image(blockIdx.x / splits) {
    const int64_t elements = p.count * p.count;
    const int64_t offset = blockIdx.x % splits * kSimilarityBlock + threadIdx.x;
    first = p.similarity + image * elements + offset;
    const int64_t left = elements - offset;
    count = left <= 0 ? 0 : left >= kSimilarityBlock ? kPerThread : (static_cast<int>(left) + kThreads - 1) / kThreads;
  }
  __device__ __forceinline__ void load(float (&values)[kPerThread]) const {
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) values[i] = i < count ? first[i * kThreads] : 0.0f;
  }
};

// One warp per token.
template <typename T, int kCount>
__global__ void __launch_bounds__(kThreads, kMinimumBlocks) normalize_kernel(const PatchSimilarityParams p) {
  constexpr int kWritten = kCount == 1 ? 1 : kPackBytes / sizeof(float);
  const int64_t token = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp;
  if (token >= p.batch * p.count) return;
  const T* source = static_cast<const T*>(p.tokens) + token * p.channels;
  const int64_t first = threadIdx.x % kWarp * kCount;
  float squares = 0.0f;
  for (int64_t c = first; c < p.channels; c += kWarp * kCount) {
    const Pack<T, kCount> x = load_pack<kCount>(source + c);
#pragma unroll
    for (int i = 0; i < kCount; ++i) squares += to_float(x.values[i]) * to_float(x.values[i]);
  }
  const float norm = sqrtf(sum_lanes(squares));
  const float divisor = norm < kLeastNorm ? kLeastNorm : norm;
  if (first == 0) p.inverse[token] = norm < kLeastNorm ? -1.0f / divisor : 1.0f / divisor;
  float* unit = p.unit + token * p.channels;
  for (int64_t c = first; c < p.channels; c += kWarp * kCount) {
    const Pack<T, kCount> x = load_pack<kCount>(source + c);
#pragma unroll
    for (int i = 0; i < kCount; i += kWritten) {
      Pack<float, kWritten> u;
#pragma unroll
      for (int j = 0; j < kWritten; ++j) u.values[j] = to_float(x.values[i + j]) / divisor;
      store_pack<kWritten>(unit + c + i, u);
    }
  }
}

__device__ __forceinline__ Matrix unit_of(const PatchSimilarityParams& p, int64_t image, bool packed) {
  return {p.unit + image * p.count * p.channels, static_cast<int>(p.count), static_cast<int>(p.channels), packed};
}

// A block finds a tile on or below the diagonal, and writes the one that mirrors it.
__global__ void __launch_bounds__(kProductThreads, kProductBlocks)
    similarities_kernel(const PatchSimilarityParams p, int tiles, bool packed) {
  const int64_t image = blockIdx.x / tiles;
  int down = 0;
  int across = blockIdx.x % tiles;
  for (; across > down; ++down) across -= down + 1;
  const int first_row = down * kTile;
  const int first_column = across * kTile;
  const Matrix unit = unit_of(p, image, packed);
  float* similarity = p.similarity + image * p.count * p.count;
  Sums sums = {};
  multiply_tile<true>(unit, unit, first_row, first_column, sums);
  Extrema extrema;
  for_each_sum(sums, [&](int tile_row, int tile_column, float s) {
    const int64_t row = first_row + tile_row;
    const int64_t column = first_column + tile_column;
    // Of two sums of the same products the one is as good as the other, but both must be one.
    if (row >= p.count || column > row) return;
    extrema.add(s, s);
    similarity[row * p.count + column] = s;
    similarity[column * p.count + row] = s;
  });
  extrema.reduce_block();
  if (threadIdx.x == 0) {
    p.extrema[blockIdx.x] = extrema.low;
    p.extrema[p.batch * tiles + blockIdx.x] = extrema.high;
  }
}

// A single block.
__global__ void __launch_bounds__(kThreads, kMinimumBlocks) range_kernel(const PatchSimilarityParams p, int64_t parts) {
  Extrema extrema;
  for (int64_t i = threadIdx.x; i < parts; i += kThreads) extrema.add(p.extrema[i], p.extrema[parts + i]);
  extrema.reduce_block();
  if (threadIdx.x == 0) {
    p.range[0] = extrema.low;
    p.range[1] = extrema.high;
  }
  for (int64_t i = threadIdx.x; i < p.estimate.points; i += kThreads) {
    p.range[2 + i] = p.estimate.point(extrema.low, extrema.high, i);
  }
}

__global__ void __launch_bounds__(kThreads, kMinimumBlocks)
    densities_kernel(const PatchSimilarityParams p, int64_t splits, float exponent) {
  __shared__ float partial[kMaximumPoints * kWarps];
  const Part part(p, splits);
  float s[kPerThread];
  part.load(s);
  const int points = static_cast<int>(p.estimate.points);
  for (int point = 0; point < points; ++point) {
    const float x = p.range[2 + point];
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
      const float d = s[i] - x;
      if (i < part.count) sum += exp2f(exponent * d * d);
    }
    sum = sum_lanes(sum);
    if (threadIdx.x % kWarp == 0) partial[point * kWarps + threadIdx.x / kWarp] = sum;
  }
  __syncthreads();
  for (int point = threadIdx.x; point < points; point += kThreads) {
    double sum = 0.0;
    for (int warp = 0; warp < kWarps; ++warp) sum += partial[point * kWarps + warp];
    p.sums[static_cast<int64_t>(blockIdx.x) * points + point] = sum;
  }
}

// One block per image.
__global__ void __launch_bounds__(kThreads, kMinimumBlocks)
    entropy_kernel(const PatchSimilarityParams p, int64_t splits) {
  __shared__ double areas[kMaximumPoints];
  const int64_t image = blockIdx.x;
  const int64_t points = p.estimate.points;
  for (int64_t point = threadIdx.x; point < points; point += kThreads) {
    double sum = 0.0;
    for (int64_t split = 0; split < splits; ++split) sum += p.sums[(image * splits + split) * points + point];
    const double density = p.estimate.density(sum);
    const double width = p.estimate.width(p.range[0], p.range[1], point);
    areas[point] = width * DensityEstimate::entropy(density);
    if (p.slope != nullptr) p.slope[image * points + point] = p.estimate.slope(density, width);
  }
  __syncthreads();
  if (threadIdx.x != 0) return;
  double total = 0.0;
  for (int64_t point = 0; point < points; ++point) total += areas[point];
  p.entropy[image] = static_cast<float>(total);
}

__global__ void __launch_bounds__(kThreads, kMinimumBlocks)
    slopes_kernel(const PatchSimilarityParams p, int64_t splits, float exponent) {
  const Part part(p, splits);
  const int points = static_cast<int>(p.estimate.points);
  const float* slope = p.slope + part.image * points;
  float s[kPerThread];
  float result[kPerThread] = {};
  part.load(s);
  for (int point = 0; point < points; ++point) {
    const float x = p.range[2 + point];
    const float factor = slope[point];
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
      const float d = s[i] - x;
      result[i] += factor * d * exp2f(exponent * d * d);
    }
  }
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    if (i < part.count) part.first[i * kThreads] = result[i];
  }
}

// The gradient in unit tokens.
__global__ void __launch_bounds__(kProductThreads, kProductBlocks)
    gradients_kernel(const PatchSimilarityParams p, int across, int down, bool packed, bool packed_slopes) {
  const int64_t image = blockIdx.x / (across * down);
  const int tile = blockIdx.x % (across * down);
  const int first_row = tile / across * kTile;
  const int first_column = tile % across * kTile;
  const int count = static_cast<int>(p.count);
  const Matrix slopes = {p.similarity + image * p.count * p.count, count, count, packed_slopes};
  float* gradient = p.gradient + image * p.count * p.channels;
  Sums sums = {};
  multiply_tile<false>(slopes, unit_of(p, image, packed), first_row, first_column, sums);
  for_each_sum(sums, [&](int tile_row, int tile_column, float value) {
    const int64_t row = first_row + tile_row;
    const int64_t column = first_column + tile_column;
    if (row < p.count && column < p.channels) gradient[row * p.channels + column] = value;
  });
}

// From the gradient in a unit token to that in the token, in place. One warp per token.
template <int kCount>
__global__ void __launch_bounds__(kThreads, kMinimumBlocks) project_kernel(const PatchSimilarityParams p) {
  const int64_t token = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp;
  if (token >= p.batch * p.count) return;
  const float* unit = p.unit + token * p.channels;
  float* gradient = p.gradient + token * p.channels;
  const int64_t first = threadIdx.x % kWarp * kCount;
  float products = 0.0f;
  for (int64_t c = first; c < p.channels; c += kWarp * kCount) {
    const Pack<float, kCount> u = load_pack<kCount>(unit + c);
    const Pack<float, kCount> g = load_pack<kCount>(gradient + c);
#pragma unroll
    for (int i = 0; i < kCount; ++i) products += u.values[i] * g.values[i];
  }
  const float inverse = p.inverse[token];
  const float sum = sum_lanes(products);
  // A token shorter than the least norm is divided by a constant: its length has a gradient too.
  const float along = inverse < 0.0f ? 0.0f : sum;
  const float scale = fabsf(inverse);
  for (int64_t c = first; c < p.channels; c += kWarp * kCount) {
    const Pack<float, kCount> u = load_pack<kCount>(unit + c);
    Pack<float, kCount> g = load_pack<kCount>(gradient + c);
#pragma unroll
    for (int i = 0; i < kCount; ++i) g.values[i] = scale * (g.values[i] - along * u.values[i]);
    store_pack<kCount>(gradient + c, g);
  }
}

int64_t token_blocks(const PatchSimilarityParams& p) { return ceil_divide(p.batch * p.count, kWarps); }

bool are_packed(const float* rows, int64_t width) { return width % kPack == 0 && is_aligned(rows, kPackBytes); }

int launch_normalize(const PatchSimilarityParams& p, void* stream) {
  return with_element_type(p.dtype, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    constexpr int kCount = pack_size<T>();
    const bool packed = p.channels % kCount == 0 && is_aligned(p.tokens, kPackBytes) && is_aligned(p.unit, kPackBytes);
    const auto kernel = packed ? normalize_kernel<T, kCount> : normalize_kernel<T, 1>;
    return launch(kernel, token_blocks(p), kThreads, 0, stream, p);
  });
}

}  // namespace

int patch_similarity_entropy_cuda(const PatchSimilarityParams& p, void* stream) {
  const int64_t splits = p.splits();
  const int64_t tiles = p.tiles();
  int error = launch_normalize(p, stream);
  if (error == cudaSuccess) {
    const bool packed = are_packed(p.unit, p.channels);
    error =
        launch(similarities_kernel, p.batch * tiles, kProductThreads, 0, stream, p, static_cast<int>(tiles), packed);
  }
  if (error == cudaSuccess) error = launch(range_kernel, 1, kThreads, 0, stream, p, p.batch * tiles);
  if (error == cudaSuccess) {
    error = launch(densities_kernel, p.batch * splits, kThreads, 0, stream, p, splits, p.estimate.exponent());
  }
  if (error == cudaSuccess) error = launch(entropy_kernel, p.batch, kThreads, 0, stream, p, splits);
  return error;
}

int patch_similarity_gradient_cuda(const PatchSimilarityParams& p, void* stream) {
  const int64_t splits = p.splits();
  const bool packed = are_packed(p.unit, p.channels);
  int error = launch(slopes_kernel, p.batch * splits, kThreads, 0, stream, p, splits, p.estimate.exponent());
  if (error == cudaSuccess) {
    const int across = static_cast<int>(ceil_divide(p.channels, kTile));
    const int down = static_cast<int>(ceil_divide(p.count, kTile));
    error = launch(gradients_kernel, p.batch * (across * down), kProductThreads, 0, stream, p, across, down, packed,
                   are_packed(p.similarity, p.count));
  }
  if (error != cudaSuccess) return error;
  const auto project = packed && is_aligned(p.gradient, kPackBytes) ? project_kernel<kPack> : project_kernel<1>;
  return launch(project, token_blocks(p), kThreads, 0, stream, p);
}

}  // namespace synq
