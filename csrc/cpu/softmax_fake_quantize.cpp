// Softmax with fake quantization for one instruction set; what fake_quantize.cpp says about shared code holds here too.
#include "softmax_fake_quantize.h"

#include <math.h>

#include "cpu/block_sums.h"
#include "cpu/exp.h"
#include "cpu/fake_quantize_loops.h"
#include "cpu/rows.h"
#include "probability_grid.h"

namespace synq::cpu {
namespace {

using Params = SoftmaxFakeQuantizeParams;

constexpr float kLeast = -INFINITY;

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

template <typename Levels>
void round_block(const float* __restrict values, float* __restrict y, int64_t count, Levels levels) {
  for (int64_t i = 0; i < count; ++i) y[i] = levels.rounded(values[i]);
}

template <typename Levels, typename T>
void forward_typed(const Params& params, int64_t begin, int64_t end, float* workspace) {
  const Levels levels(*params.scale, params.bits);
  const int64_t columns = params.columns;
  float* values = workspace + columns;
  Writer<T> writer;
  for (int64_t row = begin; row < end; ++row) {
    const float* x = row_of<T>(params.x, row, columns, workspace);
    const float inverse = exponentials(x, columns, params.alpha, values);
    T* target = static_cast<T*>(params.y) + row * columns;
    for_each_stretch(columns, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) values[i] *= inverse;
      round_block(values + first, writer.open(target + first), last - first, levels);
      writer.close(target + first, last - first);
    });
  }
}

template <typename Levels>
void terms_of_block(const float* __restrict gradient, const float* __restrict values, int64_t count, Levels levels,
                    float* __restrict of_value, float* __restrict of_scale) {
  for (int64_t i = 0; i < count; ++i) {
    const auto terms = levels.terms(gradient[i], values[i]);
    of_value[i] = terms.of_x;
    of_scale[i] = terms.of_scale;
  }
}

template <typename Levels, typename T>
void backward_typed(const Params& params, int64_t begin, int64_t end, float* workspace, double* scale_sum) {
  const Levels levels(*params.scale, params.bits);
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
      terms_of_block(gradient, values + first, size, levels, slopes + first, of_scale);
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
  with_probability_grid(params.log2 != 0, [&](auto grid) {
    with_type(params.dtype, [&](auto tag) {
      forward_typed<typename decltype(grid)::Type, decltype(tag)>(params, begin, end, workspace);
    });
  });
}

void backward(const Params& params, int64_t begin, int64_t end, float* workspace, double* of_scale) {
  with_probability_grid(params.log2 != 0, [&](auto grid) {
    with_type(params.dtype, [&](auto tag) {
      backward_typed<typename decltype(grid)::Type, decltype(tag)>(params, begin, end, workspace, of_scale);
    });
  });
}

}  // namespace

SYNQ_DEFINE_TABLE(SoftmaxFakeQuantizeKernels, softmax_fake_quantize_kernels) = {forward, backward};

}  // namespace synq::cpu
