// Layer normalisation with fake quantization for one instruction set; what fake_quantize.cpp says about shared code
// holds here too.
#include "layer_norm_fake_quantize.h"

#include <math.h>

#include "cpu/block_sums.h"
#include "cpu/fake_quantize_loops.h"
#include "cpu/rows.h"
#include "learned_grid.h"

namespace synq::cpu {
namespace {

using Params = LayerNormFakeQuantizeParams;

// The mean of a row's terms; term(i, lanes) is 0 in lanes beyond the row.
template <typename Term>
inline float mean_of(int64_t count, Term term) {
  float total = 0.0f;
  for_each_stretch(count, [&](int64_t begin, int64_t end) {
    // Four sums: one would leave the arithmetic units waiting.
    Vector sums[4] = {};
    int64_t i = begin;
    for (; i + 4 * kLanes <= end; i += 4 * kLanes) {
      for (int k = 0; k < 4; ++k) sums[k] += term(i + k * kLanes, Whole{});
    }
    for_each_vector(i, end, [&](int64_t rest, auto lanes) { sums[0] += term(rest, lanes); });
    total += folded((sums[0] + sums[1]) + (sums[2] + sums[3]));
  });
  return total / static_cast<float>(count);
}

struct Moments {
  float mean;
  float inverse;  // of the deviation

  Moments(const float* x, int64_t count, float eps) {
    mean = mean_of(count, [&](int64_t i, auto lanes) { return lanes.load(x + i, 0.0f); });
    const float variance = mean_of(count, [&](int64_t i, auto lanes) {
      const Vector distance = lanes.load(x + i, mean) - mean;
      return distance * distance;
    });
    inverse = 1.0f / sqrtf(variance + eps);
  }
};

template <typename T>
void forward_typed(const Params& params, int64_t begin, int64_t end, float* workspace) {
  const Grid grid = grid_of(params.bits);
  const Shared pair{learned_grid(*params.scale, *params.zero_point)};
  const int64_t columns = params.columns;
  Writer<T> writer;
  for (int64_t row = begin; row < end; ++row) {
    const float* x = row_of<T>(params.x, row, columns, workspace);
    const Moments moments(x, columns, params.eps);
    T* target = static_cast<T*>(params.y) + row * columns;
    for_each_stretch(columns, [&](int64_t first, int64_t last) {
      float values[kBlock];
      for_each_vector(first, last, [&](int64_t i, auto lanes) {
        const Vector normal = (lanes.load(x + i, 0.0f) - moments.mean) * moments.inverse;
        lanes.store(values + i - first,
                    normal * lanes.load(params.weight + i, 0.0f) + lanes.load(params.bias + i, 0.0f));
      });
      float* y = writer.open(target + first);
      quantize_block(values, y, last - first, pair, grid);
      writer.close(target + first, last - first);
    });
  }
}

void terms_of_block(const float* __restrict gradient, const float* __restrict values, int64_t count, Affine pair,
                    Grid grid, float* __restrict of_value, float* __restrict of_scale, float* __restrict of_zero) {
  for (int64_t i = 0; i < count; ++i) {
    const LearnedTerms terms = learned_terms(gradient[i], values[i], pair, grid.low, grid.high);
    of_value[i] = terms.of_x;
    of_scale[i] = terms.of_scale;
    of_zero[i] = terms.of_zero;
  }
}

template <typename T>
void backward_typed(const Params& params, int64_t begin, int64_t end, float* workspace, double* sums) {
  const Grid grid = grid_of(params.bits);
  const Affine pair = learned_grid(*params.scale, *params.zero_point);
  const int64_t columns = params.columns;
  const float count = static_cast<float>(columns);
  float* copy = workspace;
  float* normals = workspace + columns;
  float* slopes = workspace + 2 * columns;
  float* of_weight = workspace + 3 * columns;
  float* of_bias = workspace + 4 * columns;
  Reader<T> reader;
  Writer<T> writer;
  for (int64_t top = begin; top < end; top += kSumRows) {
    for (int64_t i = 0; i < columns; ++i) of_weight[i] = of_bias[i] = 0.0f;
    for (int64_t row = top; row < end && row < top + kSumRows; ++row) {
      const float* x = row_of<T>(params.x, row, columns, copy);
      const Moments moments(x, columns, params.eps);
      const T* incoming = static_cast<const T*>(params.gradient) + row * columns;
      float slope_sum = 0.0f;
      float product_sum = 0.0f;
      for_each_stretch(columns, [&](int64_t first, int64_t last) {
        const int64_t size = last - first;
        float values[kBlock];
        for_each_vector(first, last, [&](int64_t i, auto lanes) {
          const Vector normal = (lanes.load(x + i, 0.0f) - moments.mean) * moments.inverse;
          lanes.store(normals + i, normal);
          lanes.store(values + i - first,
                      normal * lanes.load(params.weight + i, 0.0f) + lanes.load(params.bias + i, 0.0f));
        });
        float of_value[kBlock];
        float of_scale[kBlock];
        float of_zero[kBlock];
        terms_of_block(reader.read(incoming + first, size), values, size, pair, grid, of_value, of_scale, of_zero);
        sums[2 * columns] += sum_of_block(of_scale, size);
        sums[2 * columns + 1] += sum_of_block(of_zero, size);
        Vector slope_lanes = {};
        Vector product_lanes = {};
        for_each_vector(first, last, [&](int64_t i, auto lanes) {
          const Vector normal = lanes.load(normals + i, 0.0f);
          const Vector given = lanes.load(of_value + i - first, 0.0f);
          const Vector slope = given * lanes.load(params.weight + i, 0.0f);
          lanes.store(slopes + i, slope);
          slope_lanes += slope;
          product_lanes += slope * normal;
          lanes.store(of_weight + i, lanes.load(of_weight + i, 0.0f) + given * normal);
          lanes.store(of_bias + i, lanes.load(of_bias + i, 0.0f) + given);
        });
        slope_sum += folded(slope_lanes);
        product_sum += folded(product_lanes);
      });
      const float mean = slope_sum / count;
      const float along = product_sum / count;
      T* target = static_cast<T*>(params.y) + row * columns;
      for_each_stretch(columns, [&](int64_t first, int64_t last) {
        float* y = writer.open(target + first);
        for_each_vector(first, last, [&](int64_t i, auto lanes) {
          const Vector slope = lanes.load(slopes + i, 0.0f) - mean;
          lanes.store(y + i - first, (slope - lanes.load(normals + i, 0.0f) * along) * moments.inverse);
        });
        writer.close(target + first, last - first);
      });
    }
    add_row(of_weight, columns, sums);
    add_row(of_bias, columns, sums + columns);
  }
}

void forward(const Params& params, int64_t begin, int64_t end, float* workspace) {
  with_type(params.dtype, [&](auto tag) { forward_typed<decltype(tag)>(params, begin, end, workspace); });
}

void backward(const Params& params, int64_t begin, int64_t end, float* workspace, double* sums) {
  with_type(params.dtype, [&](auto tag) { backward_typed<decltype(tag)>(params, begin, end, workspace, sums); });
}

}  // namespace

SYNQ_DEFINE_TABLE(LayerNormFakeQuantizeKernels, layer_norm_fake_quantize_kernels) = {forward, backward};

}  // namespace synq::cpu
