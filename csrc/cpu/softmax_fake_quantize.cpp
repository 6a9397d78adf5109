// Softmax with fake quantization for one instruction set; what fake_quantize.cpp says about shared code holds here too.
#include "softmax_fake_quantize.h"

#include <math.h>

#include "cpu/block_sums.h"
#include "cpu/exp.h"
#include "cpu/fake_quantize_loops.h"
#include "cpu/rows.h"
#include "learned_grid.h"

namespace synq::cpu {
namespace {

using Params = SoftmaxFakeQuantizeParams;

constexpr float kLeast = -INFINITY;

// The lowest code stands for zero.
Affine pair_of(const Params& params) { return {*params.scale, -lowest_code(params.bits)}; }

// Writes exp(alpha x - its greatest value) and returns the inverse of its sum.
float exponentials(const float* x, int64_t count, float alpha, float* result) {
  // NaN is passed over: it meets the sum later.
  Vector most = Vector{} + kLeast;
  for_each_vector(0, count, [&](int64_t i, auto lanes) {
    const Vector value = lanes.load(x + i, alpha < 0.0f ? -kLeast : kLeast) * alpha;
    most = value > most ? value : most;
  });
  const float greatest = folded(most, [](Vector a, Vector b) { return a > b ? a : b; });
  float total = 0.0f;
  for_each_stretch(count, [&](int64_t begin, int64_t end) {
    Vector sum = {};
    for_each_vector(begin, end, [&](int64_t i, auto lanes) {
      const Vector e = exp(lanes.load(x + i, 0.0f) * alpha - greatest);
      lanes.store(result + i, e);
      // Missing lanes are read back as zeros.
      sum += lanes.load(result + i, 0.0f);
    });
    total += folded(sum);
  });
  return 1.0f / total;
}

template <typename T>
void forward_typed(const Params& params, int64_t begin, int64_t end, float* workspace) {
  const Grid grid = grid_of(params.bits);
  const Shared pair{pair_of(params)};
  const int64_t columns = params.columns;
  float* values = workspace + columns;
  Writer<T> writer;
  for (int64_t row = begin; row < end; ++row) {
    const float* x = row_of<T>(params.x, row, columns, workspace);
    const float inverse = exponentials(x, columns, params.alpha, values);
    T* target = static_cast<T*>(params.y) + row * columns;
    for_each_stretch(columns, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) values[i] *= inverse;
      quantize_block(values + first, writer.open(target + first), last - first, pair, grid);
      writer.close(target + first, last - first);
    });
  }
}

// What learned_block.h gives, without the terms of a zero point.
void terms_of_scale(const float* __restrict gradient, const float* __restrict values, int64_t count, Affine pair,
                    Grid grid, float* __restrict of_value, float* __restrict of_scale) {
  for (int64_t i = 0; i < count; ++i) {
    const LearnedTerms terms = learned_terms(gradient[i], values[i], pair, grid.low, grid.high);
    of_value[i] = terms.of_x;
    of_scale[i] = terms.of_scale;
  }
}

template <typename T>
void backward_typed(const Params& params, int64_t begin, int64_t end, float* workspace, double* scale_sum) {
  const Grid grid = grid_of(params.bits);
  const Affine pair = pair_of(params);
  const int64_t columns = params.columns;
  float* values = workspace + columns;
  float* slopes = workspace + 2 * columns;
  Reader<T> reader;
  Writer<T> writer;
  for (int64_t row = begin; row < end; ++row) {
    const float* x = row_of<T>(params.x, row, columns, workspace);
    const float inverse = exponentials(x, columns, params.alpha, values);
    const T* incoming = static_cast<const T*>(params.gradient) + row * columns;
    float along = 0.0f;
    for_each_stretch(columns, [&](int64_t first, int64_t last) {
      const int64_t size = last - first;
      float of_scale[kBlock];
      for (int64_t i = first; i < last; ++i) values[i] *= inverse;
      const float* gradient = reader.read(incoming + first, size);
      terms_of_scale(gradient, values + first, size, pair, grid, slopes + first, of_scale);
      *scale_sum += sum_of_block(of_scale, size);
      Vector products = {};
      for_each_vector(first, last, [&](int64_t i, auto lanes) {
        products += lanes.load(slopes + i, 0.0f) * lanes.load(values + i, 0.0f);
      });
      along += folded(products);
    });
    T* target = static_cast<T*>(params.y) + row * columns;
    for_each_stretch(columns, [&](int64_t first, int64_t last) {
      float* y = writer.open(target + first);
      for_each_vector(first, last, [&](int64_t i, auto lanes) {
        const Vector value = lanes.load(values + i, 0.0f) * params.alpha;
        lanes.store(y + i - first, value * (lanes.load(slopes + i, 0.0f) - along));
      });
      writer.close(target + first, last - first);
    });
  }
}

void forward(const Params& params, int64_t begin, int64_t end, float* workspace) {
  with_type(params.dtype, [&](auto tag) { forward_typed<decltype(tag)>(params, begin, end, workspace); });
}

void backward(const Params& params, int64_t begin, int64_t end, float* workspace, double* of_scale) {
  with_type(params.dtype, [&](auto tag) { backward_typed<decltype(tag)>(params, begin, end, workspace, of_scale); });
}

}  // namespace

SYNQ_DEFINE_TABLE(SoftmaxFakeQuantizeKernels, softmax_fake_quantize_kernels) = {forward, backward};

}  // namespace synq::cpu
