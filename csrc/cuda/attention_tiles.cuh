// Tiles of attention on quantized operands: products staged through shared memory, and what a block knows of a head.
#pragma once

#include "../probability_grid.h"
#include "../quantized_attention.h"
#include "block_rows.cuh"

namespace synq {
namespace {

using Params = QuantizedAttentionParams;

constexpr int kTileRows = 32;
constexpr int kTileColumns = 64;
constexpr int kDepth = 16;
constexpr int64_t kHeld = 256;
constexpr int kHeldStride = kHeld + 1;
constexpr int kTileStride = kTileColumns + 1;
constexpr int kAcross = 16;  // threads beside each other in a tile, which hold every 16th column of two rows
constexpr int kOwnRows = kTileRows * kAcross / kThreads;
constexpr int kOwnColumns = kTileColumns / kAcross;
constexpr int kTileBlocks = 2;  // a multiprocessor must have room for: at most 128 registers a thread

// What is known of a row of probabilities.
constexpr int kMoments = 3;  // the greatest logit, the inverse of the sum of exponentials, <gradient, probability>
// Sums that a block leaves.
constexpr int kQuerySums = 3;  // of the scales of queries and probabilities, and of the queries' zero point
constexpr int kKeySums = 4;    // of scale and zero point of keys, then of values

__host__ __device__ __forceinline__ int64_t tiles_of(int64_t rows) { return (rows + kTileRows - 1) / kTileRows; }

// Columns of a tile, of those that are left.
__device__ __forceinline__ int tile_end(int left) { return left < kTileColumns ? left : kTileColumns; }

using Sums = float[kOwnRows][kOwnColumns];

struct Stage {
  float a[kTileRows][kDepth + 1];
  float b[kTileColumns][kDepth + 1];
};

// What the thread holds of a tile.
__device__ __forceinline__ int own_row(int i) { return static_cast<int>(threadIdx.x) / kAcross * kOwnRows + i; }
__device__ __forceinline__ int own_column(int j) { return static_cast<int>(threadIdx.x) % kAcross + j * kAcross; }

template <typename Body>
__device__ __forceinline__ void for_own(Body body) {
#pragma unroll
  for (int i = 0; i < kOwnRows; ++i) {
#pragma unroll
    for (int j = 0; j < kOwnColumns; ++j) body(own_row(i), own_column(j), i, j);
  }
}

// sums += the product of a(row, k) and b(column, k). With kColumnsFirst neighbouring threads read neighbouring columns
// of b, else neighbouring k.
template <bool kColumnsFirst, typename A, typename B>
__device__ __forceinline__ void multiply(Stage& stage, Sums& sums, int depth, A a, B b) {
#pragma unroll 1
  for (int first = 0; first < depth; first += kDepth) {
    __syncthreads();
#pragma unroll 1
    for (int i = threadIdx.x; i < kTileRows * kDepth; i += kThreads) {
      const int k = i % kDepth;
      stage.a[i / kDepth][k] = first + k < depth ? a(i / kDepth, first + k) : 0.0f;
    }
#pragma unroll 1
    for (int i = threadIdx.x; i < kTileColumns * kDepth; i += kThreads) {
      const int k = kColumnsFirst ? i / kTileColumns : i % kDepth;
      const int column = kColumnsFirst ? i % kTileColumns : i / kDepth;
      stage.b[column][k] = first + k < depth ? b(column, first + k) : 0.0f;
    }
    __syncthreads();
#pragma unroll 4
    for (int k = 0; k < kDepth; ++k) {
      for_own([&](int row, int column, int i, int j) {
        sums[i][j] = fmaf(stage.a[row][k], stage.b[column][k], sums[i][j]);
      });
    }
  }
}

// Where a head begins.
__device__ __forceinline__ int64_t start_of(const HeadRows& rows, int64_t image, int64_t head) {
  return image * rows.batch + head * rows.head;
}

// The type is the same for all threads and asked at every element: next to the products that costs little, and kernels
// of each type would take three times as long to compile.
__device__ __forceinline__ float read(const void* data, int64_t place, DType dtype) {
  switch (dtype) {
    case DType::kFloat16:
      return to_float(static_cast<const __half*>(data)[place]);
    case DType::kBFloat16:
      return to_float(static_cast<const __nv_bfloat16*>(data)[place]);
    default:
      return static_cast<const float*>(data)[place];
  }
}

__device__ __forceinline__ void write(void* data, int64_t place, float value, DType dtype) {
  switch (dtype) {
    case DType::kFloat16:
      static_cast<__half*>(data)[place] = from_float<__half>(value);
      break;
    case DType::kBFloat16:
      static_cast<__nv_bfloat16*>(data)[place] = from_float<__nv_bfloat16>(value);
      break;
    default:
      static_cast<float*>(data)[place] = value;
  }
}

__device__ __forceinline__ int64_t place_of(const Params& params, int operand, int64_t head) {
  return params.per_head[operand] != 0 ? head : 0;
}

__device__ __forceinline__ Affine affine_of(const Params& params, int operand, int64_t head) {
  const int64_t place = place_of(params, operand, head);
  return learned_grid(params.scale[operand][place], params.zero_point[operand][place]);
}

// All that a block reads of a head of an image. What is the same for all blocks is read where it is needed: parameters
// of a launch take no registers. Grid is that of probabilities.
template <typename Grid>
struct Head {
  const Params& params;
  int64_t image;
  int64_t head;
  int64_t start[3];
  int64_t gradient_start;
  Affine affine[3];
  Grid grid;
  const float* bias;
  const float* mask;
  float factor;  // of products of codes, in logits

  __device__ __forceinline__ Head(const Params& given, int64_t image, int64_t head)
      : params(given),
        image(image),
        head(head),
        gradient_start(start_of(given.gradient, image, head)),
        grid(given.scale[kProbabilities][place_of(given, kProbabilities, head)], given.bits[kProbabilities]) {
#pragma unroll
    for (int i = 0; i < 3; ++i) {
      affine[i] = affine_of(given, i, head);
      start[i] = start_of(given.x[i], image, head);
    }
    const int64_t size = given.rows * given.columns;
    bias = given.bias + head * size;
    mask = given.mask + image % given.masks * size;
    factor = divide(given.alpha, mul(affine[kQueries].scale, affine[kKeys].scale));
  }

  template <int kOperand>
  __device__ __forceinline__ bool has(int row, int column) const {
    return row < (kOperand == kQueries ? params.rows : params.columns) && column < params.width;
  }
  template <int kOperand>
  __device__ __forceinline__ float value(int row, int column) const {
    const HeadRows& rows = params.x[kOperand];
    return read(rows.data, start[kOperand] + row * rows.row + column, params.dtype);
  }
  // Counted from that of zero; zero beyond the rows.
  template <int kOperand>
  __device__ __forceinline__ float code(int row, int column) const {
    if (!has<kOperand>(row, column)) return 0.0f;
    const int bits = params.bits[kOperand];
    const float whole = quantize(value<kOperand>(row, column), affine[kOperand], lowest_code(bits), highest_code(bits));
    return add(whole, affine[kOperand].zero_point);
  }
  __device__ __forceinline__ float incoming(int row, int column) const {
    if (!has<kQueries>(row, column)) return 0.0f;
    return read(params.gradient.data, gradient_start + row * params.gradient.row + column, params.dtype);
  }
  // Writes the gradient of an element whose quantized value has the given one, and adds its terms.
  template <int kOperand>
  __device__ __forceinline__ void finish(int row, int column, float of_y, float& of_scale, float& of_zero) const {
    if (!has<kOperand>(row, column)) return;
    const int bits = params.bits[kOperand];
    const LearnedTerms terms =
        learned_terms(of_y, value<kOperand>(row, column), affine[kOperand], lowest_code(bits), highest_code(bits));
    const HeadRows& target = params.of_x[kOperand];
    write(target.data, start_of(target, image, head) + row * target.row + column, terms.of_x, params.dtype);
    of_scale += terms.of_scale;
    of_zero += terms.of_zero;
  }

  // Which of the rows of logits of all heads.
  __device__ __forceinline__ int64_t row_of(int row) const { return (image * params.heads + head) * params.rows + row; }
  __device__ __forceinline__ bool has_logit(int row, int column) const {
    return row < params.rows && column < params.columns;
  }
  // Minus infinity beyond the last key.
  __device__ __forceinline__ float logit(float product, int row, int column) const {
    if (!has_logit(row, column)) return -INFINITY;
    float value = mul(product, factor);
    const int64_t place = row * params.columns + column;
    if (params.bias != nullptr) value = add(value, bias[place]);
    if (params.mask != nullptr) value = add(value, mask[place]);
    return value;
  }
  // Of a product of an incoming gradient with values, which is that of a rounded probability.
  __device__ __forceinline__ auto terms(float product, float probability) const {
    return grid.terms(divide(product, affine[kValues].scale), probability);
  }
};

// Logits of a tile of queries: of all keys where they can be held, else of the tile that was written last.
struct Logits {
  float values[kTileRows * kHeldStride];
  float most[kTileRows];
  float sum[kTileRows];

  static __device__ __forceinline__ bool are_held(int64_t columns) { return columns <= kHeld; }
  __device__ __forceinline__ float& at(bool held, int row, int first, int column) {
    return values[row * kHeldStride + (held ? first : 0) + column];
  }
};

template <typename Head>
__device__ __forceinline__ void write_logits(const Head& head, Stage& stage, Logits& logits, bool held, int first_row,
                                             int first_column) {
  Sums sums = {};
  multiply<false>(
      stage, sums, static_cast<int>(head.params.width),
      [&](int row, int k) { return head.template code<kQueries>(first_row + row, k); },
      [&](int column, int k) { return head.template code<kKeys>(first_column + column, k); });
  for_own([&](int row, int column, int i, int j) {
    logits.at(held, row, first_column, column) = head.logit(sums[i][j], first_row + row, first_column + column);
  });
  __syncthreads();
}

// The greatest logit of each row, and the inverse of the sum of exponentials in place of `sum`. NaN meets the sum.
template <typename Head>
__device__ __forceinline__ void find_moments(const Head& head, Stage& stage, Logits& logits, bool held, int first_row) {
  const int lane = threadIdx.x % kWarp;
  const int warp = threadIdx.x / kWarp;
  if (threadIdx.x < kTileRows) {
    logits.most[threadIdx.x] = -INFINITY;
    logits.sum[threadIdx.x] = 0.0f;
  }
  for (int first = 0; first < head.params.columns; first += kTileColumns) {
    write_logits(head, stage, logits, held, first_row, first);
    for (int row = warp; row < kTileRows; row += kWarps) {
      float most = -INFINITY;
      for (int column = lane; column < kTileColumns; column += kWarp) {
        most = fmaxf(most, logits.at(held, row, first, column));
      }
      const float before = logits.most[row];
      most = fmaxf(maximum_of_lanes(most), before);
      float sum = 0.0f;
      // Nothing but minus infinities so far adds nothing.
      if (most != -INFINITY) {
        for (int column = lane; column < kTileColumns; column += kWarp) {
          sum += expf(logits.at(held, row, first, column) - most);
        }
      }
      sum = sum_lanes(sum);
      __syncwarp();
      if (lane == 0) {
        logits.sum[row] = most == -INFINITY ? 0.0f : fmaf(logits.sum[row], expf(before - most), sum);
        logits.most[row] = most;
      }
      __syncwarp();
    }
    __syncthreads();
  }
  if (threadIdx.x < kTileRows) logits.sum[threadIdx.x] = 1.0f / logits.sum[threadIdx.x];
  __syncthreads();
}

// A logit's probability; that of minus infinities alone is NaN.
__device__ __forceinline__ float probability(float logit, float most, float inverse) {
  return expf(logit - most) * inverse;
}

}  // namespace
}  // namespace synq
