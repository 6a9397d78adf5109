// Coarse maps of few positions: a block reads a share of one image's channels, activations and gradients together and
// once; what its positions add up to stays in registers. A second kernel adds the shares in their order.
#pragma once

#include "../grad_cam.h"
#include "cam_sample.cuh"
#include "column_block.cuh"

namespace synq {
namespace {

constexpr int64_t kFewPositions = 256;

enum class Weighting { kMean, kPlusPlus, kElement };

// What one position adds to the weight of Grad-CAM++; `total` is the sum of the channel's activations. Numerator and
// denominator of alpha are divided by g^2, which would underflow.
__device__ __forceinline__ float plus_plus_term(float gradient, float total, float factor, float least) {
  const float sum = total * gradient + 2.0f;
  const float slope = at_least(gradient, 0.0f) * factor;
  const float size = fabsf(sum);
  return size < least || size == 0.0f ? slope * gradient * gradient : slope / sum;
}

// The share of one block.
template <typename T>
struct Share {
  const T* activations;  // of the image
  const T* gradients;
  float* weights;  // of the image
  int positions;
  int channels;
  int begin;
  int end;
  float factor;
  float clamp;
  float least;  // weight of one activation

  __device__ __forceinline__ Share(const CoarseParams& params, int64_t item, int shares, int size) {
    const int64_t image = item / shares;
    activations = static_cast<const T*>(params.activations) + image * params.activation_stride;
    gradients = static_cast<const T*>(params.gradients) + image * params.gradient_stride;
    positions = static_cast<int>(params.height * params.width);
    channels = static_cast<int>(params.channels);
    weights = params.weights + image * channels;
    begin = static_cast<int>(item - image * shares) * size;
    end = lesser(begin + size, channels);
    factor = params.kind == CamKind::kGradCamPlusPlus ? score_factor(params.score[image]) : 0.0f;
    clamp = params.clamp;
    least = params.kind == CamKind::kLayerCam ? params.clamp : -INFINITY;
  }
};

// Memory as (channels, positions): a warp takes kAtOnce channels at a time, a lane every 32nd position of each.
template <typename T, Weighting kWeighting, unsigned kSlots, unsigned kAtOnce>
__global__ void __launch_bounds__(kThreads, kMinimumBlocks)
    row_coarse_kernel(const CoarseParams params, int shares, int size) {
  __shared__ float shared[kBlockWarps][kSlots * kWarp];
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  for (int64_t item = blockIdx.x; item < params.images * shares; item += gridDim.x) {
    const Share<T> share(params, item, shares, size);
    float sums[kSlots] = {};
    for (int first = share.begin + warp * kAtOnce; first < share.end; first += kBlockWarps * kAtOnce) {
      float a[kAtOnce][kSlots];
      float g[kAtOnce][kSlots];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
#pragma unroll
        for (int slot = 0; slot < kSlots; ++slot) {
          const int position = slot * kWarp + lane;
          const bool inside = position < share.positions && first + i < share.end;
          const int place = (first + i) * share.positions + position;
          a[i][slot] = inside ? to_float(share.activations[place]) : 0.0f;
          g[i][slot] = inside ? to_float(share.gradients[place]) : 0.0f;
        }
      }
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        float weight = 0.0f;
        if constexpr (kWeighting != Weighting::kElement) {
#pragma unroll
          for (int slot = 0; slot < kSlots; ++slot) {
            weight += kWeighting == Weighting::kPlusPlus ? a[i][slot] : g[i][slot];
          }
          weight = sum_lanes(weight);
        }
        if constexpr (kWeighting == Weighting::kMean) {
          weight = at_least(weight / static_cast<float>(share.positions), share.clamp);
        } else if constexpr (kWeighting == Weighting::kPlusPlus) {
          const float total = weight;
          weight = 0.0f;
#pragma unroll
          for (int slot = 0; slot < kSlots; ++slot) {
            weight += plus_plus_term(g[i][slot], total, share.factor, share.clamp);
          }
          weight = sum_lanes(weight);
        }
        if (kWeighting != Weighting::kElement && lane == 0 && first + i < share.end) share.weights[first + i] = weight;
#pragma unroll
        for (int slot = 0; slot < kSlots; ++slot) {
          sums[slot] += a[i][slot] * (kWeighting == Weighting::kElement ? at_least(g[i][slot], share.least) : weight);
        }
      }
    }
    __syncthreads();  // what was here before has been read
#pragma unroll
    for (int slot = 0; slot < kSlots; ++slot) shared[warp][slot * kWarp + lane] = sums[slot];
    __syncthreads();
    const int position = static_cast<int>(threadIdx.x);
    if (position >= share.positions) continue;
    float sum = shared[0][position];
    for (int i = 1; i < kBlockWarps; ++i) sum += shared[i][position];
    params.workspace[item * share.positions + position] = sum;
  }
}

// Adds a group's values over the rows of threads: thread i < kGroup has the sum of channel i, of which each thread has
// kCount neighbouring ones, `sides` threads side by side.
template <int kSides, int kCount>
__device__ __forceinline__ float sum_rows(float (&values)[kCount]) {
  __shared__ float shared[kBlockWarps][kSides * kCount];
  const int thread = static_cast<int>(threadIdx.x);
  __syncthreads();  // what was here before has been read
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    values[i] = sum_lanes<kWarp, kSides>(values[i]);
    if (thread % kWarp < kSides) shared[thread / kWarp][thread % kWarp * kCount + i] = values[i];
  }
  __syncthreads();
  float sum = 0.0f;
  if (thread < kSides * kCount) {
    for (int warp = 0; warp < kBlockWarps; ++warp) sum += shared[warp][thread];
  }
  return sum;
}

// Memory as (positions, channels): of a group of channels, a thread takes a pack at kSlots positions.
template <typename T, Weighting kWeighting, unsigned kSlots, bool kPacked>
__global__ void __launch_bounds__(kThreads, kMinimumBlocks)
    column_coarse_kernel(const CoarseParams params, int shares, int size) {
  constexpr int kCount = kPacked ? kSumPack : 1;
  constexpr int kSides = 16 / static_cast<int>(kSlots);
  constexpr int kRows = kThreads / kSides;
  constexpr int kGroup = kSides * kCount;
  __shared__ float weight_of[kGroup];
  const int thread = static_cast<int>(threadIdx.x);
  const int side = thread % kSides * kCount;
  for (int64_t item = blockIdx.x; item < params.images * shares; item += gridDim.x) {
    const Share<T> share(params, item, shares, size);
    float sums[kSlots] = {};
    for (int first = share.begin; first < share.end; first += kGroup) {
      Pack<T, kCount> a[kSlots] = {};
      Pack<T, kCount> g[kSlots] = {};
#pragma unroll
      for (int slot = 0; slot < kSlots; ++slot) {
        const int position = slot * kRows + thread / kSides;
        if (position >= share.positions || first + side >= share.end) continue;
        const int place = position * share.channels + first + side;
        a[slot] = load_pack<kCount>(share.activations + place);
        g[slot] = load_pack<kCount>(share.gradients + place);
      }
      if constexpr (kWeighting != Weighting::kElement) {
        float values[kCount] = {};
#pragma unroll
        for (int slot = 0; slot < kSlots; ++slot) {
#pragma unroll
          for (int i = 0; i < kCount; ++i) {
            values[i] += to_float((kWeighting == Weighting::kPlusPlus ? a : g)[slot].values[i]);
          }
        }
        float sum = sum_rows<kSides>(values);
        if constexpr (kWeighting == Weighting::kPlusPlus) {
          if (thread < kGroup) weight_of[thread] = sum;
          __syncthreads();
#pragma unroll
          for (int i = 0; i < kCount; ++i) {
            values[i] = 0.0f;
#pragma unroll
            for (int slot = 0; slot < kSlots; ++slot) {
              values[i] += plus_plus_term(to_float(g[slot].values[i]), weight_of[side + i], share.factor, share.clamp);
            }
          }
          sum = sum_rows<kSides>(values);
        } else {
          sum = at_least(sum / static_cast<float>(share.positions), share.clamp);
        }
        if (thread < kGroup) {
          weight_of[thread] = sum;
          if (first + thread < share.end) share.weights[first + thread] = sum;
        }
        __syncthreads();
      }
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        const float weight = kWeighting == Weighting::kElement ? 0.0f : weight_of[side + i];
#pragma unroll
        for (int slot = 0; slot < kSlots; ++slot) {
          const float own =
              kWeighting == Weighting::kElement ? at_least(to_float(g[slot].values[i]), share.least) : weight;
          sums[slot] += to_float(a[slot].values[i]) * own;
        }
      }
    }
#pragma unroll
    for (int slot = 0; slot < kSlots; ++slot) {
      sums[slot] = sum_lanes<kSides>(sums[slot]);
      const int position = slot * kRows + thread / kSides;
      if (side == 0 && position < share.positions) params.workspace[item * share.positions + position] = sums[slot];
    }
  }
}

// A block adds the shares of one image, and finds how its resized map will be stretched.
__global__ void __launch_bounds__(kThreads) join_kernel(const CoarseParams params, int shares) {
  const int positions = static_cast<int>(params.height * params.width);
  for (int64_t image = blockIdx.x; image < params.images; image += gridDim.x) {
    const float* sums = params.workspace + image * shares * positions;
    for (int position = static_cast<int>(threadIdx.x); position < positions; position += kThreads) {
      float sum = 0.0f;
#pragma unroll 4
      for (int share = 0; share < shares; ++share) sum += sums[share * positions + position];
      params.coarse[image * positions + position] = at_least(sum, 0.0f);
    }
    __syncthreads();
    const Stretch stretch = find_stretch(grid_of(params, image), params.eps);
    if (threadIdx.x == 0) params.stretches[image] = stretch;
    __syncthreads();
  }
}

// How an image's channels are divided, by sizes alone; no shares where there are too many positions.
struct Shares {
  int count;
  int size;   // channels of a share
  bool slim;  // at most a quarter of kFewPositions
};

inline Shares shares_of(const CoarseParams& params) {
  const int64_t positions = params.height * params.width;
  if (positions > kFewPositions) return {0, 0, false};
  constexpr int64_t kUnit = 64;  // channels that a block reads at once, of any type and layout
  const int64_t units = ceil_divide(params.channels, kUnit);
  const int64_t wanted = std::min(units, ceil_divide(kReductionParts, params.images));
  const int64_t size = ceil_divide(units, wanted);
  return {static_cast<int>(ceil_divide(units, size)), static_cast<int>(size * kUnit), positions * 4 <= kFewPositions};
}

template <typename T, Weighting kWeighting>
int launch_shares(const CoarseParams& params, const Shares& shares, bool packed, void* stream) {
  const auto run = [&](auto kernel) {
    const int64_t items = params.images * shares.count;
    return launch_striding(kernel, items, kThreads, 0, stream, params, shares.count, shares.size);
  };
  int error;
  if (params.channels_last == 0) {
    error = shares.slim ? run(row_coarse_kernel<T, kWeighting, 2, 4>) : run(row_coarse_kernel<T, kWeighting, 8, 1>);
  } else if (packed) {
    error = shares.slim ? run(column_coarse_kernel<T, kWeighting, 2, true>)
                        : run(column_coarse_kernel<T, kWeighting, 4, true>);
  } else {
    error = shares.slim ? run(column_coarse_kernel<T, kWeighting, 2, false>)
                        : run(column_coarse_kernel<T, kWeighting, 4, false>);
  }
  if (error != cudaSuccess) return error;
  return launch_striding(join_kernel, params.images, kThreads, 0, stream, params, shares.count);
}

}  // namespace
}  // namespace synq
