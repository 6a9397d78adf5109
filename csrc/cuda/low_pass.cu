// Low-pass filters along one side of the images, on tensor cores; a chunk of images is filtered by two launches.
//
// A block filters a tile of neighbouring lines. Sums and differences about the line's symmetries (csrc/cpu/fold.h tells
// how, here with one halving) leave four products a fourth as long. Products are three TF32 products each, which is
// float32's accuracy, or one where TF32 was asked for.
#include <algorithm>
#include <type_traits>

#include "../low_pass.h"
#include "low_pass_segments.cuh"
#include "memory.cuh"
#include "mma.cuh"

namespace synq {
namespace {

constexpr int kWarps = kThreads / 32;
constexpr int kSharedBytes = 46 * 1024;  // within the 48 KiB that every device has
constexpr int kPadding = 8;              // zero rows after the tile, read by the columns that fill up the last 8
constexpr int kPack = 4;
// Products that a warp keeps: (rows of 16) x (lines of 8).
constexpr int kSums = 8;
// What lies between the passes over a chunk: three quarters of the second-level cache of an H100. The same on every
// device, and no bit of a result depends on it.
#if defined(SYNQ_EMULATION)
inline int64_t chunk_bytes() { return emulation::chunk_bytes(); }
#else
constexpr int64_t chunk_bytes() { return int64_t{38} << 20; }
#endif

struct AxisArguments {
  const void* x;
  void* y;
  const float* matrix;
  int64_t lines;  // a line's values lie `inner` apart
  int64_t inner;
  int64_t last_line;  // where the first block begins if blocks go backwards, else -1
  Segments segments;
  int n;  // again, for the last phases; see thread_number
  bool tf32;
  bool packed;  // four neighbouring values can be read and written at once
};

// Rows of a tile lie this far apart, so that the 32 lanes of a product read from different banks.
template <int kLines>
constexpr int kRowStride = kLines + 8;

// These are read anew at each call, so that no phase of a block keeps registers for what another one computes from
// them.
__device__ __forceinline__ int thread_number() {
#if defined(__CUDA_ARCH__)
  int number;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(number));
  return number;
#else
  return static_cast<int>(threadIdx.x);
#endif
}

__device__ __forceinline__ int lane_number() {
#if defined(__CUDA_ARCH__)
  int number;
  asm volatile("mov.u32 %0, %%laneid;" : "=r"(number));
  return number;
#else
  return static_cast<int>(threadIdx.x) % 32;
#endif
}

__device__ __forceinline__ int64_t first_line(const AxisArguments& a, int lines) {
  const int64_t line = static_cast<int64_t>(blockIdx.x) * lines;
  return a.last_line < 0 ? line : a.last_line - line;
}

__device__ __forceinline__ int64_t start_of(const AxisArguments& a, int64_t line) {
  const int64_t outer = line / a.inner;
  return outer * a.segments.n * a.inner + (line - outer * a.inner);
}

// Calls item(pointer into memory, place in the tile, distance in the tile) for each `kCount` neighbours of a tile's
// values in memory; in the tile these lie `distance` apart. They follow each other along the line where lines are
// dense, else across lines. A thread keeps its lines.
template <int kLines, int kCount, typename T, typename Item>
__device__ __forceinline__ void for_each_item(const AxisArguments& a, T* memory, float* tile, Item item) {
  constexpr int kStride = kRowStride<kLines>;
  const bool along = a.inner == 1;
  const int groups = along ? kLines : kLines / kCount;
  const int thread = thread_number();
  const int line = thread % groups * (along ? 1 : kCount);
  const int64_t number = first_line(a, kLines) + line;
  if (number >= a.lines) return;
  const int step = along ? kCount : 1;
  const int begin = thread / groups * step;
  const int pace = kThreads / groups * step;
  T* pointer = memory + start_of(a, number) + begin * a.inner;
  float* place = tile + begin * kStride + line;
  for (int row = begin; row < a.segments.n; row += pace, pointer += pace * a.inner, place += pace * kStride) {
    item(pointer, place, along ? kStride : 1);
  }
}

template <int kLines, int kCount, bool kOnce, typename T>
__device__ __forceinline__ void load_tile(const AxisArguments& a, float* tile) {
  for_each_item<kLines, kCount>(a, static_cast<const T*>(a.x), tile, [](const T* source, float* target, int distance) {
    const Pack<T, kCount> pack = kOnce ? load_pack_once<kCount>(source) : load_pack<kCount>(source);
#pragma unroll
    for (int i = 0; i < kCount; ++i) target[i * distance] = to_float(pack.values[i]);
  });
}

template <int kLines, int kCount, typename T>
__device__ __forceinline__ void store_tile(const AxisArguments& a, float* tile) {
  for_each_item<kLines, kCount>(a, static_cast<T*>(a.y), tile, [](T* target, const float* source, int distance) {
    Pack<T, kCount> pack;
#pragma unroll
    for (int i = 0; i < kCount; ++i) pack.values[i] = from_float<T>(source[i * distance]);
    store_pack<kCount>(target, pack);
  });
}

__device__ __forceinline__ void butterfly(float& a, float& b) {
  const float sum = a + b;
  b = a - b;
  a = sum;
}

__device__ __forceinline__ void turn(float& a, float& b) {
  const float difference = a - b;
  b = a + b;
  a = difference;
}

// In place. Of n = 2 h: [0, h / 2] even and (h / 2, h) odd values of the part that repeats after h, then even and odd
// values of the part that changes sign. Of an odd n: even values, then odd values.
template <int kLines, bool kUnfold>
__device__ __forceinline__ void fold(float* tile, int n) {
  constexpr int kStride = kRowStride<kLines>;
  constexpr int kStep = kThreads / kLines;
  const int h = n / 2;
  const int group = thread_number() / kLines;
  // The same twice; see thread_number.
  float* line = tile + (kUnfold ? lane_number() : thread_number()) % kLines;
  float* up = line + (1 + group) * kStride;
  float* down = line + (n - 1 - group) * kStride;
  if (n % 2 != 0) {
    for (; up < down; up += kStep * kStride, down -= kStep * kStride) butterfly(*up, *down);
    return;
  }
  // Values that are their own mirror images.
  if (group == 0) butterfly(line[0], line[h * kStride]);
  if (group == 1 && h % 2 == 0) butterfly(line[h / 2 * kStride], line[(h + h / 2) * kStride]);
  const int half = h * kStride;
  for (; up < down - half; up += kStep * kStride, down -= kStep * kStride) {
    float a = up[0];
    float b = up[half];
    float c = down[-half];
    float d = down[0];
    if (kUnfold) {
      butterfly(a, c);
      butterfly(d, b);
      turn(a, d);
      turn(c, b);
      up[0] = d;
      up[half] = a;
      down[-half] = b;
      down[0] = c;
    } else {
      butterfly(a, b);
      butterfly(c, d);
      butterfly(a, c);
      turn(b, d);
      up[0] = a;
      up[half] = b;
      down[-half] = c;
      down[0] = d;
    }
  }
}

template <int kLines>
__device__ __forceinline__ void round_tile(float* tile, int n) {
  for (int i = thread_number(); i < n * kRowStride<kLines>; i += kThreads) tile[i] = tf32_as_float(to_tf32(tile[i]));
}

// A job's products with all lines.
template <int kLines, bool kTf32>
__device__ __forceinline__ void multiply(const float* tile, const float* matrix, const Segment& segment, int job,
                                         float (&sums)[2][kLines / 8][4]) {
  constexpr int kStride = kRowStride<kLines>;
  const int lane = lane_number();
  const int steps = steps_of(segment.size);
  const int step = segment.first_step + (job - segment.first_job) * steps;
  const float* factors = matrix + (step * kPacksOfStep + lane) * 4;
  const float* values = tile + (segment.begin + lane % 4) * kStride + lane / 4;
#pragma unroll 1  // has as many registers as there are
  for (int left = steps; left > 0; --left, factors += kPacksOfStep * 4, values += kStepColumns * kStride) {
    uint32_t high[2][4];
    uint32_t low[2][4];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const Pack<float, 4> pack = load_pack<4>(factors + half * 32 * 4);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const Split factor = split_finite(pack.values[i]);
        high[half][i] = factor.high;
        low[half][i] = factor.low;
      }
    }
#pragma unroll
    for (int t = 0; t < kLines / 8; ++t) {
      const Split first = split(values[t * 8]);
      const Split second = split(values[t * 8 + 4 * kStride]);
      const uint32_t b_high[2] = {first.high, second.high};
      const uint32_t b_low[2] = {first.low, second.low};
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        if (!kTf32) {
          multiply_add(sums[half][t], low[half], b_high);
          multiply_add(sums[half][t], high[half], b_low);
        }
        multiply_add(sums[half][t], high[half], b_high);
      }
    }
  }
}

__device__ __forceinline__ Segment segment_of(const Segments& segments, int job) {
  int s = 0;
  while (s + 1 < segments.count && job >= segments.items[s + 1].first_job) ++s;
  return segments.items[s];
}

template <typename X, typename Y, int kLines>
__global__ void __launch_bounds__(kThreads, kMinimumBlocks) low_pass_kernel(const __grid_constant__ AxisArguments a) {
  constexpr int kStride = kRowStride<kLines>;
  constexpr int kTiles = kLines / 8;
  constexpr int kJobs = kSums / kTiles / 2;
  // All but what lies between the passes, which the next chunk writes anew.
  constexpr bool kOnce = !std::is_same_v<X, float> || std::is_same_v<Y, float>;
  extern __shared__ __align__(kPackBytes) float low_pass_shared[];
  float* tile = low_pass_shared;
  const int n = a.segments.n;

  for (int i = thread_number(); i < kPadding * kStride; i += kThreads) tile[n * kStride + i] = 0.0f;
  if (first_line(a, kLines) + kLines > a.lines) {
    for (int i = thread_number(); i < n * kStride; i += kThreads) tile[i] = 0.0f;
    __syncthreads();
  }
  if (a.packed) {
    load_tile<kLines, kPack, kOnce, X>(a, tile);
  } else {
    load_tile<kLines, 1, kOnce, X>(a, tile);
  }
  __syncthreads();
  fold<kLines, false>(tile, n);
  __syncthreads();
  if (a.tf32) {
    round_tile<kLines>(tile, n);
    __syncthreads();
  }

  const int warp = thread_number() / 32;
  float sums[kJobs][2][kTiles][4] = {};
#pragma unroll
  for (int j = 0; j < kJobs; ++j) {
    const int job = j * kWarps + warp;
    if (job < a.segments.jobs) {
      const Segment segment = segment_of(a.segments, job);
      if (a.tf32) {
        multiply<kLines, true>(tile, a.matrix, segment, job, sums[j]);
      } else {
        multiply<kLines, false>(tile, a.matrix, segment, job, sums[j]);
      }
    }
  }
  __syncthreads();
  const int lane = lane_number();
#pragma unroll
  for (int j = 0; j < kJobs; ++j) {
    const int job = j * kWarps + warp;
    if (job < a.segments.jobs) {
      const Segment segment = segment_of(a.segments, job);
#pragma unroll
      for (int part = 0; part < 4; ++part) {
        const int row = (job - segment.first_job) * kJobRows + lane / 4 + part * 8;
        if (row >= segment.size) continue;
        float* target = tile + (segment.begin + row) * kStride + lane % 4 * 2;
#pragma unroll
        for (int t = 0; t < kTiles; ++t) {
          target[t * 8] = sums[j][part / 2][t][part % 2 * 2];
          target[t * 8 + 1] = sums[j][part / 2][t][part % 2 * 2 + 1];
        }
      }
    }
  }
  __syncthreads();
  fold<kLines, true>(tile, a.n);
  __syncthreads();
  if (a.packed) {
    store_tile<kLines, kPack, Y>(a, tile);
  } else {
    store_tile<kLines, 1, Y>(a, tile);
  }
}

template <int kLines>
size_t shared_bytes(const Segments& segments) {
  return (segments.n + kPadding) * kRowStride<kLines> * sizeof(float);
}

template <int kLines>
bool fits(const Segments& segments) {
  return segments.jobs <= kWarps * kSums / (kLines / 8) / 2 && shared_bytes<kLines>(segments) <= kSharedBytes;
}

template <typename X, typename Y, int kLines>
int launch_lines(AxisArguments& a, bool backwards, void* stream) {
  const int64_t blocks = ceil_divide(a.lines, kLines);
  a.last_line = backwards ? (blocks - 1) * kLines : -1;
  return launch(low_pass_kernel<X, Y, kLines>, blocks, kThreads, shared_bytes<kLines>(a.segments), stream, a);
}

template <typename X, typename Y>
int filter_axis(const LowPassAxis& axis, const X* x, Y* y, int64_t outer, int64_t inner, bool tf32, bool backwards,
                void* stream) {
  if (axis.n > kLowPassLongestSide) return cudaErrorInvalidValue;
  AxisArguments a = {};
  a.x = x;
  a.y = y;
  a.matrix = axis.matrix;
  a.lines = outer * inner;
  a.inner = inner;
  a.segments = segments_of(axis.n);
  a.n = a.segments.n;
  a.tf32 = tf32;
  a.packed = (inner == 1 ? axis.n : inner) % kPack == 0 && is_aligned(x, kPack * sizeof(X)) &&
             is_aligned(y, kPack * sizeof(Y));
  if (fits<32>(a.segments)) return launch_lines<X, Y, 32>(a, backwards, stream);
  if (fits<16>(a.segments)) return launch_lines<X, Y, 16>(a, backwards, stream);
  return cudaErrorInvalidValue;
}

int64_t image_size(const LowPassParams& params) { return params.height.n * params.width.n * params.channels; }

// Images of a chunk; all chunks but the last have as many.
int64_t chunk_images(const LowPassParams& params) {
  const int64_t fitting = std::max<int64_t>(chunk_bytes() / (image_size(params) * sizeof(float)), 1);
  return ceil_divide(params.images, ceil_divide(params.images, fitting));
}

}  // namespace

int64_t low_pass_workspace_cuda(const LowPassParams& params) {
  return params.dtype == DType::kFloat32 ? 0 : chunk_images(params) * image_size(params);
}

int low_pass_cuda(const LowPassParams& params, void* stream) {
  return with_element_type(params.dtype, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    const int64_t row = params.width.n * params.channels;
    const int64_t chunk = chunk_images(params);
    for (int64_t image = 0; image < params.images; image += chunk) {
      const int64_t images = std::min(chunk, params.images - image);
      const T* x = static_cast<const T*>(params.x) + image * image_size(params);
      T* y = static_cast<T*>(params.y) + image * image_size(params);
      float* middle = params.workspace;
      if constexpr (std::is_same_v<T, float>) middle = y;
      int error = filter_axis(params.height, x, middle, images, row, params.tf32, false, stream);
      if (error != 0) return error;
      // Begins with what the first pass wrote last.
      error = filter_axis(params.width, const_cast<const float*>(middle), y, images * params.height.n, params.channels,
                          params.tf32, true, stream);
      if (error != 0) return error;
    }
    return 0;
  });
}

}  // namespace synq
