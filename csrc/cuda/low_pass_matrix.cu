// The matrices of the low-pass filters in the order in which the product reads them.
#include <algorithm>

#include "../low_pass.h"
#include "low_pass_segments.cuh"
#include "memory.cuh"

namespace synq {
namespace {

struct MatrixArguments {
  float* matrix;
  Segments segments;
  float table[kLowPassLongestSide + 2];
};
static_assert(sizeof(MatrixArguments) < 4096, "all devices take 4 KiB of arguments");

// Row and column number p of a segment's matrix stand for this index into the line.
__device__ __forceinline__ int index_of(const Segment& segment, int p) { return segment.odd ? segment.size - p : p; }

__device__ __forceinline__ float matrix_value(const float* u, const Segment& segment, int row, int column) {
  if (row >= segment.size || column >= segment.size) return 0.0f;
  const int i = index_of(segment, row);
  const int j = index_of(segment, column);
  const float difference = u[abs(i - j)];
  const float sum = u[i + j];
  return segment.odd ? difference - sum : difference + sum;
}

__global__ void __launch_bounds__(kThreads, kMinimumBlocks)
    low_pass_matrix_kernel(const __grid_constant__ MatrixArguments a) {
  const int pack = static_cast<int>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x);
  const int step = pack / kPacksOfStep;
  if (step >= a.segments.steps) return;
  int s = 0;
  while (s + 1 < a.segments.count && step >= a.segments.items[s + 1].first_step) ++s;
  const Segment segment = a.segments.items[s];
  const int steps = steps_of(segment.size);
  const int job = (step - segment.first_step) / steps;
  const int lane = pack % 32;
  const int row = job * kJobRows + pack % kPacksOfStep / 32 * 16 + lane / 4;
  const int column = (step - segment.first_step) % steps * kStepColumns + lane % 4;
  Pack<float, 4> values;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    values.values[i] = matrix_value(a.table + segment.table, segment, row + i % 2 * 8, column + i / 2 * 4);
  }
  store_pack<4>(a.matrix + int64_t{4} * pack, values);
}

}  // namespace

int64_t low_pass_matrix_size(int64_t n) { return int64_t{4} * kPacksOfStep * segments_of(n).steps; }

int low_pass_matrix_cuda(const LowPassMatrixParams& params, void* stream) {
  if (params.n > kLowPassLongestSide) return cudaErrorInvalidValue;
  MatrixArguments a = {};
  a.matrix = params.matrix;
  a.segments = segments_of(params.n);
  std::copy_n(params.table, low_pass_table_size(params.n), a.table);
  return launch(low_pass_matrix_kernel, ceil_divide(int64_t{kPacksOfStep} * a.segments.steps, kThreads), kThreads, 0,
                stream, a);
}

}  // namespace synq
