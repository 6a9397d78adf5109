// Low-pass filters along one side of the images, on tensor cores; an image is filtered by two launches.
//
// A block filters a tile of neighbouring lines. Sums and differences about the line's symmetries (csrc/cpu/fold.h tells
// how, here with one halving) leave four products a fourth as long, with matrices A(i, j) = u(i - j) +- u(i + j) that
// are read off a table of n values, so nothing but the images is kept in device memory. Products are three TF32
// products each, which is float32's accuracy, or one where TF32 was asked for.
#include <algorithm>

#include "../low_pass.h"
#include "memory.cuh"
#include "mma.cuh"

namespace synq {
namespace {

constexpr int kWarps = kThreads / 32;
constexpr int kSharedBytes = 46 * 1024;  // within the 48 KiB that every device has
constexpr int kTablePadding = 32;        // read by the rows that fill up the last block of 16
constexpr int kPadding = 8;              // zero rows after the tile, read by the columns that fill up the last 8
constexpr int kPack = 4;
// Products that a warp keeps: (rows of 16) x (lines of 8).
constexpr int kSums = 8;

struct Segment {
  int begin;
  int size;
  int table;      // where its u begins
  int first_job;  // a job is a product of 16 rows
  bool odd;
};

struct AxisArguments {
  const void* x;
  void* y;
  int64_t lines;  // a line's values lie `inner` apart
  int64_t inner;
  int n;
  int segments;
  int jobs;
  int table_size;
  bool tf32;
  bool packed;  // four neighbouring values can be read and written at once
  Segment segment[4];
  float table[kLowPassLongestSide + 2];
};
static_assert(sizeof(AxisArguments) < 4096, "all devices take 4 KiB of arguments");

// Rows of a tile lie this far apart, so that the 32 lanes of a product read from different banks.
template <int kLines>
constexpr int kRowStride = kLines + 8;

__device__ __forceinline__ int64_t start_of(const AxisArguments& a, int64_t line) {
  const int64_t outer = line / a.inner;
  return outer * a.n * a.inner + (line - outer * a.inner);
}

// Calls item(pointer into memory, place in the tile, distance in the tile) for each `kCount` neighbours of a tile's
// values in memory; in the tile these lie `distance` apart. They follow each other along the line where lines are
// dense, else across lines. A thread keeps its lines.
template <int kLines, int kCount, typename T, typename Item>
__device__ __forceinline__ void for_each_item(const AxisArguments& a, T* memory, float* tile, int64_t first,
                                              Item item) {
  constexpr int kStride = kRowStride<kLines>;
  const bool along = a.inner == 1;
  const int groups = along ? kLines : kLines / kCount;
  const int line = static_cast<int>(threadIdx.x) % groups * (along ? 1 : kCount);
  if (first + line >= a.lines) return;
  T* pointer = memory + start_of(a, first + line);
  const int step = along ? kCount : 1;
  for (int row = static_cast<int>(threadIdx.x) / groups * step; row < a.n; row += kThreads / groups * step) {
    item(pointer + row * a.inner, tile + row * kStride + line, along ? kStride : 1);
  }
}

template <int kLines, int kCount, typename T>
__device__ __forceinline__ void load_tile(const AxisArguments& a, float* tile, int64_t first) {
  for_each_item<kLines, kCount>(a, static_cast<const T*>(a.x), tile, first,
                                [](const T* source, float* target, int distance) {
                                  const Pack<T, kCount> pack = load_pack<kCount>(source);
#pragma unroll
                                  for (int i = 0; i < kCount; ++i) target[i * distance] = to_float(pack.values[i]);
                                });
}

template <int kLines, int kCount, typename T>
__device__ __forceinline__ void store_tile(const AxisArguments& a, float* tile, int64_t first) {
  for_each_item<kLines, kCount>(a, static_cast<T*>(a.y), tile, first, [](T* target, const float* source, int distance) {
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

// In place. Of n = 2 h: [0, h / 2] even and (h / 2, h) odd values of the part that repeats after h, then even and odd
// values of the part that changes sign. Of an odd n: even values, then odd values.
template <int kLines, bool kUnfold>
__device__ __forceinline__ void fold(float* tile, int n) {
  constexpr int kStride = kRowStride<kLines>;
  const int h = n / 2;
  const bool halves = n % 2 == 0;
  const int last = halves ? h / 2 : h;
  for (int item = threadIdx.x; item < (last + 1) * kLines; item += kThreads) {
    const int i = item / kLines;
    float* line = tile + item % kLines;
    if (!halves) {
      if (i > 0) butterfly(line[i * kStride], line[(n - i) * kStride]);
    } else if (i == 0 || 2 * i == h) {
      butterfly(line[i * kStride], line[(h + i) * kStride]);
    } else {
      float& a = line[i * kStride];
      float& b = line[(h + i) * kStride];
      float& c = line[(h - i) * kStride];
      float& d = line[(n - i) * kStride];
      if (kUnfold) {
        butterfly(a, c);
        const float s = b + d;
        const float r = d - b;
        b = a - s;
        a = a + s;
        d = c - r;
        c = c + r;
      } else {
        butterfly(a, b);
        butterfly(c, d);
        butterfly(a, c);
        const float s = b - d;
        d = b + d;
        b = s;
      }
    }
  }
}

// Row and column number p of a segment's matrix stand for this index into the line.
__device__ __forceinline__ int index_of(const Segment& segment, int p) { return segment.odd ? segment.size - p : p; }

__device__ __forceinline__ float matrix_value(const float* u, const Segment& segment, int row, int column) {
  if (column >= segment.size) return 0.0f;
  const int i = index_of(segment, row);
  const int j = index_of(segment, column);
  const float difference = u[abs(i - j)];
  const float sum = u[abs(i + j)];
  return segment.odd ? difference - sum : difference + sum;
}

// 16 rows of a segment's product with all lines.
template <int kLines>
__device__ __forceinline__ void multiply(const float* tile, const float* u, const Segment& segment, int first_row,
                                         bool tf32, float (&sums)[kLines / 8][4]) {
  constexpr int kStride = kRowStride<kLines>;
  const int group = static_cast<int>(threadIdx.x) % 32 / 4;
  const int member = static_cast<int>(threadIdx.x) % 4;
  const float* values = tile + (segment.begin + member) * kStride + group;
  for (int k = 0; k < segment.size; k += 8, values += 8 * kStride) {
    uint32_t high[4];
    uint32_t low[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const Split value = split(matrix_value(u, segment, first_row + group + i % 2 * 8, k + member + i / 2 * 4));
      high[i] = value.high;
      low[i] = value.low;
    }
#pragma unroll
    for (int t = 0; t < kLines / 8; ++t) {
      const Split first = split(values[t * 8]);
      const Split second = split(values[t * 8 + 4 * kStride]);
      const uint32_t b_high[2] = {first.high, second.high};
      if (!tf32) {
        const uint32_t b_low[2] = {first.low, second.low};
        multiply_add(sums[t], low, b_high);
        multiply_add(sums[t], high, b_low);
      }
      multiply_add(sums[t], high, b_high);
    }
  }
}

template <typename X, typename Y, int kLines>
__global__ void __launch_bounds__(kThreads, kMinimumBlocks) low_pass_kernel(const __grid_constant__ AxisArguments a) {
  constexpr int kStride = kRowStride<kLines>;
  constexpr int kTiles = kLines / 8;
  constexpr int kJobs = kSums / kTiles;
  extern __shared__ __align__(kPackBytes) float low_pass_shared[];
  float* tile = low_pass_shared;
  float* table = tile + (a.n + kPadding) * kStride;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kLines;
  const int warp = static_cast<int>(threadIdx.x) / 32;

  for (int i = threadIdx.x; i < a.table_size + kTablePadding; i += kThreads) {
    table[i] = i < a.table_size ? a.table[i] : 0.0f;
  }
  for (int i = threadIdx.x; i < kPadding * kStride; i += kThreads) tile[a.n * kStride + i] = 0.0f;
  if (first + kLines > a.lines) {
    for (int i = threadIdx.x; i < a.n * kStride; i += kThreads) tile[i] = 0.0f;
    __syncthreads();
  }
  if (a.packed) {
    load_tile<kLines, kPack, X>(a, tile, first);
  } else {
    load_tile<kLines, 1, X>(a, tile, first);
  }
  __syncthreads();
  fold<kLines, false>(tile, a.n);
  __syncthreads();

  float sums[kJobs][kTiles][4] = {};
#pragma unroll
  for (int j = 0; j < kJobs; ++j) {
    const int job = j * kWarps + warp;
    if (job < a.jobs) {
      int s = 0;
      while (s + 1 < a.segments && job >= a.segment[s + 1].first_job) ++s;
      const Segment segment = a.segment[s];
      multiply<kLines>(tile, table + segment.table, segment, (job - segment.first_job) * 16, a.tf32, sums[j]);
    }
  }
  __syncthreads();
  const int group = static_cast<int>(threadIdx.x) % 32 / 4;
  const int member = static_cast<int>(threadIdx.x) % 4;
#pragma unroll
  for (int j = 0; j < kJobs; ++j) {
    const int job = j * kWarps + warp;
    if (job < a.jobs) {
      int s = 0;
      while (s + 1 < a.segments && job >= a.segment[s + 1].first_job) ++s;
      const Segment segment = a.segment[s];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = (job - segment.first_job) * 16 + group + half * 8;
        if (row >= segment.size) continue;
        float* target = tile + (segment.begin + row) * kStride + 2 * member;
#pragma unroll
        for (int t = 0; t < kTiles; ++t) {
          target[t * 8] = sums[j][t][2 * half];
          target[t * 8 + 1] = sums[j][t][2 * half + 1];
        }
      }
    }
  }
  __syncthreads();
  fold<kLines, true>(tile, a.n);
  __syncthreads();
  if (a.packed) {
    store_tile<kLines, kPack, Y>(a, tile, first);
  } else {
    store_tile<kLines, 1, Y>(a, tile, first);
  }
}

void add_segment(AxisArguments& a, int begin, int size, int table, bool odd) {
  if (size == 0) return;
  a.segment[a.segments++] = {begin, size, table, a.jobs, odd};
  a.jobs += static_cast<int>(ceil_divide(size, 16));
}

AxisArguments make_arguments(const LowPassAxis& axis) {
  AxisArguments a = {};
  a.n = static_cast<int>(axis.n);
  a.table_size = static_cast<int>(low_pass_table_size(axis.n));
  std::copy_n(axis.table, a.table_size, a.table);
  const int h = a.n / 2;
  if (a.n % 2 != 0) {
    add_segment(a, 0, h + 1, 0, false);
    add_segment(a, h + 1, h, 0, true);
    return a;
  }
  add_segment(a, 0, h / 2 + 1, 0, false);
  add_segment(a, h / 2 + 1, (h - 1) / 2, 0, true);
  add_segment(a, h, (h + 1) / 2, h + 1, false);
  add_segment(a, h + (h + 1) / 2, h / 2, h + 1, true);
  return a;
}

template <int kLines>
size_t shared_bytes(const AxisArguments& a) {
  return ((a.n + kPadding) * kRowStride<kLines> + a.table_size + kTablePadding) * sizeof(float);
}

template <int kLines>
bool fits(const AxisArguments& a) {
  return a.jobs <= kWarps * kSums / (kLines / 8) && shared_bytes<kLines>(a) <= kSharedBytes;
}

template <typename X, typename Y, int kLines>
int launch_lines(const AxisArguments& a, void* stream) {
  return launch(low_pass_kernel<X, Y, kLines>, ceil_divide(a.lines, kLines), kThreads, shared_bytes<kLines>(a), stream,
                a);
}

template <typename X, typename Y>
int filter_axis(const LowPassAxis& axis, const X* x, Y* y, int64_t outer, int64_t inner, bool tf32, void* stream) {
  if (axis.n > kLowPassLongestSide) return cudaErrorInvalidValue;
  AxisArguments a = make_arguments(axis);
  a.x = x;
  a.y = y;
  a.lines = outer * inner;
  a.inner = inner;
  a.tf32 = tf32;
  a.packed = (inner == 1 ? axis.n : inner) % kPack == 0 && is_aligned(x, kPack * sizeof(X)) &&
             is_aligned(y, kPack * sizeof(Y));
  if (fits<32>(a)) return launch_lines<X, Y, 32>(a, stream);
  if (fits<16>(a)) return launch_lines<X, Y, 16>(a, stream);
  return cudaErrorInvalidValue;
}

}  // namespace

int low_pass_cuda(const LowPassParams& params, void* stream) {
  return with_element_type(params.dtype, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    const int64_t row = params.width.n * params.channels;
    const int error = filter_axis(params.height, static_cast<const T*>(params.x), params.middle, params.images, row,
                                  params.tf32, stream);
    if (error != 0) return error;
    return filter_axis(params.width, static_cast<const float*>(params.middle), static_cast<T*>(params.y),
                       params.images * params.height.n, params.channels, params.tf32, stream);
  });
}

}  // namespace synq
