// Channel weights, coarse maps and the gradient of activations.
//
// Where cam_parts.cuh cannot keep the positions of a map in registers, one block makes the coarse map of one image, and
// at once finds how its resized map will be stretched: an image's activations are read once by neighbouring threads in
// the order of memory. Sums have a fixed order.
#include "cam_parts.cuh"

namespace synq {
namespace {

constexpr int kSlots = 8;              // positions or channels of a thread
constexpr int kTile = kSlots * kWarp;  // of a warp
constexpr int kWarps = kMaximumThreads / kWarp;
constexpr int64_t kLargeImage = 16384;  // elements from which a block has all its threads

template <typename T, bool kPacked>
constexpr int count_of = kPacked ? kPackBytes / static_cast<int>(sizeof(T)) : 1;

template <typename T>
struct Image {
  const T* activations;
  const T* gradients;
  float* weights;
  float* coarse;
  int channels;
  int positions;
  float factor;
  float clamp;
  float least;  // weight of one activation
};

struct Place {
  int warp;
  int warps;
  int lane;
};

__device__ __forceinline__ Place place() {
  return {static_cast<int>(threadIdx.x) / kWarp, static_cast<int>(blockDim.x) / kWarp,
          static_cast<int>(threadIdx.x) % kWarp};
}

// Sums each column of `partial` over the warps; thread i has column i, of the first `count`.
__device__ __forceinline__ float sum_warps(const float (&partial)[kWarps][kTile], int column, int warps) {
  float sum = 0.0f;
  for (int warp = 0; warp < warps; ++warp) sum += partial[warp][column];
  return sum;
}

// Memory as (channels, positions): a warp takes whole channels.
template <typename T, bool kPlusPlus>
__device__ __forceinline__ void row_weights(const Image<T>& image, const Place& at) {
  for (int channel = at.warp; channel < image.channels; channel += at.warps) {
    const int64_t start = static_cast<int64_t>(channel) * image.positions;
    float sum = 0.0f;
#pragma unroll 4
    for (int i = at.lane; i < image.positions; i += kWarp) {
      sum += to_float((kPlusPlus ? image.activations : image.gradients)[start + i]);
    }
    sum = sum_lanes(sum);
    if (kPlusPlus) {
      float weight = 0.0f;
#pragma unroll 2
      for (int i = at.lane; i < image.positions; i += kWarp) {
        weight += plus_plus_term(to_float(image.gradients[start + i]), sum, image.factor, image.clamp);
      }
      sum = sum_lanes(weight);
    } else {
      sum = at_least(sum / static_cast<float>(image.positions), image.clamp);
    }
    if (at.lane == 0) image.weights[channel] = sum;
  }
}

template <typename T, bool kByElement>
__device__ __forceinline__ void row_coarse(const Image<T>& image, const Place& at, float (&partial)[kWarps][kTile]) {
  for (int base = 0; base < image.positions; base += kTile) {
    float sums[kSlots] = {};
#pragma unroll 2
    for (int channel = at.warp; channel < image.channels; channel += at.warps) {
      const int64_t start = static_cast<int64_t>(channel) * image.positions;
      const float weight = kByElement ? 0.0f : image.weights[channel];
#pragma unroll
      for (int slot = 0; slot < kSlots; ++slot) {
        const int position = base + slot * kWarp + at.lane;
        if (position < image.positions) {
          const float activation = to_float(image.activations[start + position]);
          sums[slot] +=
              activation * (kByElement ? at_least(to_float(image.gradients[start + position]), image.least) : weight);
        }
      }
    }
    __syncthreads();
#pragma unroll
    for (int slot = 0; slot < kSlots; ++slot) partial[at.warp][slot * kWarp + at.lane] = sums[slot];
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < kTile && base + i < image.positions;
         i += static_cast<int>(blockDim.x)) {
      image.coarse[base + i] = at_least(sum_warps(partial, i, at.warps), 0.0f);
    }
  }
}

// Memory as (positions, channels): a warp takes packs of neighbouring channels, every at.warps-th position.
template <typename T, bool kPlusPlus, int kCount>
__device__ __forceinline__ void column_weights(const Image<T>& image, const Place& at, float (&partial)[kWarps][kTile],
                                               float (&totals)[kTile]) {
  constexpr int kWide = kCount * kWarp;
  for (int base = 0; base < image.channels; base += kWide) {
    const int first = base + at.lane * kCount;
    for (int step = kPlusPlus ? 0 : 1; step < 2; ++step) {
      float sums[kCount] = {};
      if (first < image.channels) {
        for (int position = at.warp; position < image.positions; position += at.warps) {
          const int64_t start = static_cast<int64_t>(position) * image.channels + first;
          const Pack<T, kCount> pack = load_pack<kCount>((step == 0 ? image.activations : image.gradients) + start);
#pragma unroll
          for (int i = 0; i < kCount; ++i) {
            const float value = to_float(pack.values[i]);
            sums[i] += kPlusPlus && step == 1
                           ? plus_plus_term(value, totals[at.lane * kCount + i], image.factor, image.clamp)
                           : value;
          }
        }
      }
      __syncthreads();
#pragma unroll
      for (int i = 0; i < kCount; ++i) partial[at.warp][at.lane * kCount + i] = sums[i];
      __syncthreads();
      for (int i = static_cast<int>(threadIdx.x); i < kWide && base + i < image.channels;
           i += static_cast<int>(blockDim.x)) {
        const float sum = sum_warps(partial, i, at.warps);
        if (kPlusPlus && step == 0) {
          totals[i] = sum;
        } else {
          image.weights[base + i] = kPlusPlus ? sum : at_least(sum / static_cast<float>(image.positions), image.clamp);
        }
      }
      __syncthreads();
    }
  }
}

template <typename T, bool kByElement, int kCount>
__device__ __forceinline__ void column_coarse(const Image<T>& image, const Place& at) {
  for (int position = at.warp; position < image.positions; position += at.warps) {
    const int64_t start = static_cast<int64_t>(position) * image.channels;
    float sum = 0.0f;
    for (int channel = at.lane * kCount; channel < image.channels; channel += kWarp * kCount) {
      const Pack<T, kCount> activations = load_pack<kCount>(image.activations + start + channel);
      Pack<T, kCount> gradients = activations;
      if (kByElement) gradients = load_pack<kCount>(image.gradients + start + channel);
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        const float weight =
            kByElement ? at_least(to_float(gradients.values[i]), image.least) : image.weights[channel + i];
        sum += weight * to_float(activations.values[i]);
      }
    }
    sum = sum_lanes(sum);
    if (at.lane == 0) image.coarse[position] = at_least(sum, 0.0f);
  }
}

template <typename T, bool kChannelsLast, bool kPacked>
__global__ void __launch_bounds__(kMaximumThreads, 1) coarse_kernel(const CoarseParams params) {
  constexpr int kCount = count_of<T, kPacked>;
  __shared__ float partial[kWarps][kTile];
  __shared__ float totals[kTile];
  const Place at = place();
  const bool elements = by_element(params.kind);
  const bool plus_plus = params.kind == CamKind::kGradCamPlusPlus;
  for (int64_t b = blockIdx.x; b < params.images; b += gridDim.x) {
    Image<T> image;
    image.activations = static_cast<const T*>(params.activations) + b * params.activation_stride;
    image.gradients = static_cast<const T*>(params.gradients) + b * params.gradient_stride;
    image.channels = static_cast<int>(params.channels);
    image.positions = static_cast<int>(params.height * params.width);
    image.weights = elements ? nullptr : params.weights + b * params.channels;
    image.coarse = params.coarse + b * image.positions;
    image.clamp = params.clamp;
    image.least = params.kind == CamKind::kLayerCam ? params.clamp : -INFINITY;
    image.factor = 0.0f;
    if (plus_plus) image.factor = score_factor(params.score[b]);
    if (kChannelsLast) {
      if (plus_plus) {
        column_weights<T, true, kCount>(image, at, partial, totals);
      } else if (!elements) {
        column_weights<T, false, kCount>(image, at, partial, totals);
      }
      __syncthreads();
      if (elements) {
        column_coarse<T, true, kCount>(image, at);
      } else {
        column_coarse<T, false, kCount>(image, at);
      }
    } else {
      if (plus_plus) {
        row_weights<T, true>(image, at);
      } else if (!elements) {
        row_weights<T, false>(image, at);
      }
      __syncthreads();
      if (elements) {
        row_coarse<T, true>(image, at, partial);
      } else {
        row_coarse<T, false>(image, at, partial);
      }
    }
    __syncthreads();
    const Grid grid = grid_of(params, b);
    const Stretch stretch = find_stretch(grid, params.eps);
    if (threadIdx.x == 0) params.stretches[b] = stretch;
    __syncthreads();
  }
}

__global__ void __launch_bounds__(kThreads) stretch_kernel(const MapParams params) {
  for (int64_t b = blockIdx.x; b < params.images; b += gridDim.x) {
    const Grid grid = grid_of(params, b);
    const Stretch stretch = find_stretch(grid, params.eps);
    if (threadIdx.x == 0) params.stretches[b] = stretch;
    __syncthreads();
  }
}

// A block writes a part of one image; memory is (rows, length) with length = positions, or channels when channels_last.
template <typename T, bool kByElement, bool kPacked>
__global__ void __launch_bounds__(kThreads, kMinimumBlocks) spread_kernel(const SpreadParams params, int64_t parts) {
  constexpr int kCount = count_of<T, kPacked>;
  const int64_t image = blockIdx.x / parts;
  const unsigned elements = static_cast<unsigned>(params.channels * params.positions);
  const unsigned part = static_cast<unsigned>(blockIdx.x - image * parts);
  const unsigned first = (part * kThreads + threadIdx.x) * kCount;
  if (first >= elements) return;
  const bool channels_last = params.channels_last != 0;
  const unsigned length = static_cast<unsigned>(channels_last ? params.channels : params.positions);
  const float* slope = params.slope + image * params.positions;
  const float* weights = static_cast<const float*>(params.weights) + image * params.channels;
  const float factor = params.factor == nullptr ? 1.0f : *params.factor;
  const float least = params.kind == CamKind::kLayerCam ? params.clamp : -INFINITY;
  unsigned row = first / length;
  unsigned column = first - row * length;
  Pack<T, kCount> gradients = {};
  if (kByElement) {
    gradients =
        load_pack<kCount>(static_cast<const T*>(params.weights) + image * static_cast<int64_t>(elements) + first);
  }
  Pack<T, kCount> result;
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    const float weight =
        kByElement ? at_least(to_float(gradients.values[i]), least) : weights[channels_last ? column : row];
    result.values[i] = from_float<T>(weight * (slope[channels_last ? row : column] * factor));
    if (++column == length) {
      column = 0;
      ++row;
    }
  }
  store_pack<kCount>(static_cast<T*>(params.result) + image * static_cast<int64_t>(elements) + first, result);
}

template <typename T>
int launch_coarse(const CoarseParams& params, void* stream) {
  constexpr int kCount = pack_size<T>();
  const bool packed = params.channels_last != 0 && params.channels % kCount == 0 &&
                      params.activation_stride % kCount == 0 && params.gradient_stride % kCount == 0 &&
                      is_aligned(params.activations, kPackBytes) && is_aligned(params.gradients, kPackBytes);
  const Shares shares = shares_of(params);
  if (shares.count > 0) {
    if (by_element(params.kind)) return launch_shares<T, Weighting::kElement>(params, shares, packed, stream);
    if (params.kind == CamKind::kGradCam) return launch_shares<T, Weighting::kMean>(params, shares, packed, stream);
    return launch_shares<T, Weighting::kPlusPlus>(params, shares, packed, stream);
  }
  const int64_t elements = params.channels * params.height * params.width;
  const int threads = elements < kLargeImage ? kThreads : kMaximumThreads;
  if (params.channels_last == 0) {
    return launch_striding(coarse_kernel<T, false, false>, params.images, threads, 0, stream, params);
  }
  return packed ? launch_striding(coarse_kernel<T, true, true>, params.images, threads, 0, stream, params)
                : launch_striding(coarse_kernel<T, true, false>, params.images, threads, 0, stream, params);
}

template <typename T, bool kByElement>
int launch_spread(const SpreadParams& params, void* stream) {
  constexpr int kCount = pack_size<T>();
  const int64_t elements = params.channels * params.positions;
  const bool packed = elements % kCount == 0 && is_aligned(params.result, kPackBytes) &&
                      (!kByElement || is_aligned(params.weights, kPackBytes));
  const int64_t parts = ceil_divide(elements, kThreads * (packed ? kCount : 1));
  return packed
             ? launch(spread_kernel<T, kByElement, true>, params.images * parts, kThreads, 0, stream, params, parts)
             : launch(spread_kernel<T, kByElement, false>, params.images * parts, kThreads, 0, stream, params, parts);
}

}  // namespace

int64_t cam_coarse_workspace_cuda(const CoarseParams& params) {
  return params.images * shares_of(params).count * params.height * params.width;
}

int cam_coarse_cuda(const CoarseParams& params, void* stream) {
  return with_element_type(params.dtype,
                           [&](auto tag) { return launch_coarse<typename decltype(tag)::Type>(params, stream); });
}

int cam_stretch_cuda(const MapParams& params, void* stream) {
  return launch_striding(stretch_kernel, params.images, kThreads, 0, stream, params);
}

int cam_spread_cuda(const SpreadParams& params, void* stream) {
  return with_element_type(params.dtype, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    return by_element(params.kind) ? launch_spread<T, true>(params, stream) : launch_spread<T, false>(params, stream);
  });
}

}  // namespace synq
