// Attention on quantized operands, and its gradients. A block handles a tile of queries, or of keys where sums go over
// the queries; products are of codes, staged through shared memory, which are quantized whenever they are read.
//
// Rows of at most kHeld logits are computed once and stay in shared memory; longer ones are computed again in each
// pass. Backward, the kernel of queries writes down what it knows of a row for the kernel of keys. Sums over blocks
// have a place for each block, so that every run gives the same bits.
#include "../quantized_attention.h"

#include <algorithm>

#include "attention_tiles.cuh"
#include "block_tree.cuh"

namespace synq {
namespace {

template <typename Grid>
__global__ void __launch_bounds__(kThreads, kTileBlocks) attention_kernel(const Params params) {
  __shared__ Stage stage;
  __shared__ Logits logits;
  const bool held = Logits::are_held(params.columns);
  const int64_t tiles = tiles_of(params.rows);
  const int first_row = static_cast<int>(blockIdx.x % tiles) * kTileRows;
  const int64_t index = blockIdx.x / tiles;
  const Head<Grid> head(params, index / params.heads, index % params.heads);
  find_moments(head, stage, logits, held, first_row);
  const auto round_tile = [&](int first) {
    for_own([&](int row, int column, int, int) {
      float& value = logits.at(held, row, first, column);
      const bool there = first + column < params.columns;
      value = there ? head.grid.code(probability(value, logits.most[row], logits.sum[row])) : 0.0f;
    });
  };
  if (held) {
    for (int first = 0; first < params.columns; first += kTileColumns) round_tile(first);
  }
  const int64_t start = start_of(params.y, head.image, head.head);
  for (int chunk = 0; chunk < params.width; chunk += kTileColumns) {
    Sums sums = {};
    for (int first = 0; first < params.columns; first += kTileColumns) {
      if (!held) {
        __syncthreads();
        write_logits(head, stage, logits, held, first_row, first);
        round_tile(first);
      }
      const int depth = tile_end(static_cast<int>(params.columns) - first);
      multiply<true>(
          stage, sums, depth, [&](int row, int k) { return logits.at(held, row, first, k); },
          [&](int column, int k) { return head.template code<kValues>(first + k, chunk + column); });
    }
    for_own([&](int row, int column, int i, int j) {
      if (!head.template has<kQueries>(first_row + row, chunk + column)) return;
      const float value = divide(head.grid.value(sums[i][j]), head.affine[kValues].scale);
      write(params.y.data, start + (first_row + row) * params.y.row + chunk + column, value, params.dtype);
    });
  }
}

// Where the parts of a workspace begin.
struct Workspace {
  int64_t query_sums;
  int64_t key_sums;
  int64_t bias;
  int64_t floats;

  explicit __host__ __device__ Workspace(const Params& params, ImageParts parts) {
    const int64_t heads = params.batch * params.heads;
    query_sums = kMoments * heads * params.rows;
    const int64_t row_tiles = tiles_of(params.rows);
    const int64_t key_tiles = tiles_of(params.columns);
    key_sums = query_sums + kQuerySums * parts.count * params.heads * row_tiles;
    bias = key_sums + kKeySums * heads * key_tiles;
    floats = bias + (params.grad_bias == nullptr ? 0 : parts.count * params.heads * params.rows * params.columns);
  }
};

// Products of a tile of the incoming gradient with values.
template <typename Head>
__device__ __forceinline__ void multiply_values(const Head& head, Stage& stage, Sums& sums, int first_row,
                                                int first_column) {
  multiply<false>(
      stage, sums, static_cast<int>(head.params.width),
      [&](int row, int k) { return head.incoming(first_row + row, k); },
      [&](int column, int k) { return head.template code<kValues>(first_column + column, k); });
}

// A tile of queries of a head, in the images of a part one after another.
template <typename Grid>
__global__ void __launch_bounds__(kThreads, kTileBlocks)
    attention_query_gradient_kernel(const Params params, const ImageParts parts) {
  __shared__ Stage stage;
  __shared__ Logits logits;
  __shared__ float slopes[kTileRows][kTileStride];
  __shared__ float along[kTileRows];
  const Workspace workspace(params, parts);
  const bool held = Logits::are_held(params.columns);
  const int64_t tiles = tiles_of(params.rows);
  const int first_row = static_cast<int>(blockIdx.x % tiles) * kTileRows;
  const int64_t index = blockIdx.x / tiles;
  const int64_t begin = index / params.heads * parts.size;
  const int64_t end = begin + parts.size < params.batch ? begin + parts.size : params.batch;
  float totals[kQuerySums] = {};
  for (int64_t image = begin; image < end; ++image) {
    const Head<Grid> head(params, image, index % params.heads);
    __syncthreads();
    find_moments(head, stage, logits, held, first_row);
    // <gradient, probability> of each row: a warp has two rows, half of it one.
    float own[kOwnRows] = {};
    for (int first = 0; first < params.columns; first += kTileColumns) {
      if (!held) write_logits(head, stage, logits, held, first_row, first);
      Sums sums = {};
      multiply_values(head, stage, sums, first_row, first);
      for_own([&](int row, int column, int i, int j) {
        if (!head.has_logit(first_row + row, first + column)) return;
        const float p = probability(logits.at(held, row, first, column), logits.most[row], logits.sum[row]);
        const auto terms = head.terms(sums[i][j], p);
        totals[1] += terms.of_scale;
        own[i] += terms.of_x * p;
      });
    }
#pragma unroll
    for (int i = 0; i < kOwnRows; ++i) {
      own[i] = sum_lanes<kAcross>(own[i]);
      if (threadIdx.x % kAcross == 0) along[own_row(i)] = own[i];
    }
    __syncthreads();
    if (threadIdx.x < kTileRows && first_row + threadIdx.x < params.rows) {
      float* moments = params.workspace + kMoments * head.row_of(first_row + threadIdx.x);
      moments[0] = logits.most[threadIdx.x];
      moments[1] = logits.sum[threadIdx.x];
      moments[2] = along[threadIdx.x];
    }
    for (int chunk = 0; chunk < params.width; chunk += kTileColumns) {
      Sums sums = {};
      for (int first = 0; first < params.columns; first += kTileColumns) {
        if (!held) {
          __syncthreads();
          write_logits(head, stage, logits, held, first_row, first);
        }
        Sums products = {};
        multiply_values(head, stage, products, first_row, first);
        for_own([&](int row, int column, int i, int j) {
          const bool there = head.has_logit(first_row + row, first + column);
          float slope = 0.0f;
          if (there) {
            const float p = probability(logits.at(held, row, first, column), logits.most[row], logits.sum[row]);
            slope = p * (head.terms(products[i][j], p).of_x - along[row]);
          }
          slopes[row][column] = slope;
          if (there && chunk == 0 && params.grad_bias != nullptr) {
            float* bias = params.workspace + workspace.bias + (index * params.rows + first_row + row) * params.columns +
                          first + column;
            *bias = image == begin ? slope : *bias + slope;
          }
        });
        multiply<true>(
            stage, sums, tile_end(static_cast<int>(params.columns) - first),
            [&](int row, int k) { return slopes[row][k]; },
            [&](int column, int k) { return head.template code<kKeys>(first + k, chunk + column); });
      }
      for_own([&](int row, int column, int i, int j) {
        const float gradient = params.alpha * divide(sums[i][j], head.affine[kKeys].scale);
        head.template finish<kQueries>(first_row + row, chunk + column, gradient, totals[0], totals[2]);
      });
    }
  }
  sum_block(totals);
  if (threadIdx.x != 0) return;
#pragma unroll
  for (int i = 0; i < kQuerySums; ++i) params.workspace[workspace.query_sums + blockIdx.x * kQuerySums + i] = totals[i];
}

// A tile of keys and values of a head of an image: the products are those of the kernel above, turned over.
template <typename Grid>
__global__ void __launch_bounds__(kThreads, kTileBlocks)
    attention_key_gradient_kernel(const Params params, const ImageParts parts) {
  __shared__ Stage stage;
  __shared__ float rounded[kTileRows][kTileStride];
  __shared__ float slopes[kTileRows][kTileStride];
  const Workspace workspace(params, parts);
  const int64_t tiles = tiles_of(params.columns);
  const int first_key = static_cast<int>(blockIdx.x % tiles) * kTileRows;
  const int64_t index = blockIdx.x / tiles;
  const Head<Grid> head(params, index / params.heads, index % params.heads);
  float totals[kKeySums] = {};
  for (int chunk = 0; chunk < params.width; chunk += kTileColumns) {
    Sums of_keys = {}, of_values = {};
    for (int first = 0; first < params.rows; first += kTileColumns) {
      Sums products = {}, sums = {};
      multiply<false>(
          stage, products, static_cast<int>(params.width),
          [&](int row, int k) { return head.template code<kKeys>(first_key + row, k); },
          [&](int column, int k) { return head.template code<kQueries>(first + column, k); });
      multiply<false>(
          stage, sums, static_cast<int>(params.width),
          [&](int row, int k) { return head.template code<kValues>(first_key + row, k); },
          [&](int column, int k) { return head.incoming(first + column, k); });
      for_own([&](int row, int column, int i, int j) {
        float code = 0.0f, slope = 0.0f;
        if (head.has_logit(first + column, first_key + row)) {
          const float* moments = params.workspace + kMoments * head.row_of(first + column);
          const float logit = head.logit(products[i][j], first + column, first_key + row);
          const float p = probability(logit, moments[0], moments[1]);
          code = head.grid.code(p);
          slope = p * (head.terms(sums[i][j], p).of_x - moments[2]);
        }
        rounded[row][column] = code;
        slopes[row][column] = slope;
      });
      const int depth = tile_end(static_cast<int>(params.rows) - first);
      multiply<true>(
          stage, of_values, depth, [&](int row, int k) { return rounded[row][k]; },
          [&](int column, int k) { return head.incoming(first + k, chunk + column); });
      multiply<true>(
          stage, of_keys, depth, [&](int row, int k) { return slopes[row][k]; },
          [&](int column, int k) { return head.template code<kQueries>(first + k, chunk + column); });
    }
    for_own([&](int row, int column, int i, int j) {
      const float of_key = params.alpha * divide(of_keys[i][j], head.affine[kQueries].scale);
      head.template finish<kKeys>(first_key + row, chunk + column, of_key, totals[0], totals[1]);
      const float of_value = head.grid.value(of_values[i][j]);
      head.template finish<kValues>(first_key + row, chunk + column, of_value, totals[2], totals[3]);
    });
  }
  sum_block(totals);
  if (threadIdx.x != 0) return;
#pragma unroll
  for (int i = 0; i < kKeySums; ++i) params.workspace[workspace.key_sums + blockIdx.x * kKeySums + i] = totals[i];
}

struct Total {
  double value;
};

__device__ __forceinline__ Total merge(const Total& a, const Total& b) { return {a.value + b.value}; }

// Block (i, head) adds up sum i: of the scales of queries, probabilities, keys and values, and then of the zero points
// of queries, keys and values.
__global__ void __launch_bounds__(kThreads, kMinimumBlocks)
    attention_total_kernel(const Params params, const ImageParts parts) {
  constexpr int kOperandOf[kAttentionSums] = {kQueries, kProbabilities, kKeys, kValues, kQueries, kKeys, kValues};
  constexpr int kPlace[kAttentionSums] = {0, 1, 0, 2, 2, 1, 3};
  const int i = blockIdx.x % kAttentionSums;
  const int64_t head = blockIdx.x / kAttentionSums;
  const int operand = kOperandOf[i];
  const bool alone = params.per_head[operand] != 0;
  if (!alone && head > 0) return;
  const Workspace workspace(params, parts);
  const bool of_queries = operand == kQueries || operand == kProbabilities;
  const int64_t tiles = tiles_of(of_queries ? params.rows : params.columns);
  const int64_t count = (of_queries ? parts.count : params.batch) * params.heads * tiles;
  const float* sums = params.workspace + (of_queries ? workspace.query_sums : workspace.key_sums) + kPlace[i];
  const int width = of_queries ? kQuerySums : kKeySums;
  Total total = {0.0};
#pragma unroll 1
  for (int64_t block = threadIdx.x; block < count; block += blockDim.x) {
    if (!alone || block / tiles % params.heads == head) total.value += static_cast<double>(sums[block * width]);
  }
  total = merge_block<1>(total);
  if (threadIdx.x != 0) return;
  const float scale = params.scale[operand][head];
  const double factor = params.gradient_scale[operand];
  if (i < kOperands) {
    const bool log2 = params.log2 != 0 && operand == kProbabilities;
    params.grad_scale[operand][head] = probability_grad_scale(log2, total.value, scale, factor);
  } else {
    params.grad_zero_point[operand][head] = learned_grad_zero_point(total.value, scale, factor);
  }
}

__global__ void __launch_bounds__(kThreads, kMinimumBlocks)
    attention_bias_kernel(const Params params, const ImageParts parts) {
  const int64_t size = params.heads * params.rows * params.columns;
  const float* terms = params.workspace + Workspace(params, parts).bias;
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; i < size; i += step) {
    float sum = 0.0f;
#pragma unroll 1
    for (int64_t part = 0; part < parts.count; ++part) sum += terms[part * size + i];
    params.grad_bias[i] = sum;
  }
}

}  // namespace

int quantized_attention_cuda(const Params& params, void* stream) {
  const int64_t blocks = params.batch * params.heads * tiles_of(params.rows);
  return with_probability_grid(params.log2 != 0, [&](auto grid) {
    using Grid = typename decltype(grid)::Type;
    return launch(attention_kernel<Grid>, blocks, kThreads, 0, stream, params);
  });
}

int64_t quantized_attention_workspace_cuda(const Params& params) {
  return Workspace(params, image_parts(params)).floats;
}

int quantized_attention_backward_cuda(const Params& params, void* stream) {
  const ImageParts parts = image_parts(params);
  const int64_t query_blocks = parts.count * params.heads * tiles_of(params.rows);
  const int64_t key_blocks = params.batch * params.heads * tiles_of(params.columns);
  int error = with_probability_grid(params.log2 != 0, [&](auto grid) {
    using Grid = typename decltype(grid)::Type;
    const auto queries = attention_query_gradient_kernel<Grid>;
    const int failed = launch(queries, query_blocks, kThreads, 0, stream, params, parts);
    if (failed != cudaSuccess) return failed;
    return launch(attention_key_gradient_kernel<Grid>, key_blocks, kThreads, 0, stream, params, parts);
  });
  if (error != cudaSuccess) return error;
  error = launch(attention_total_kernel, kAttentionSums * params.heads, kThreads, 0, stream, params, parts);
  if (error != cudaSuccess || params.grad_bias == nullptr) return error;
  const int64_t size = params.heads * params.rows * params.columns;
  return launch_striding(attention_bias_kernel, ceil_divide(size, kThreads), kThreads, 0, stream, params, parts);
}

}  // namespace synq
