// GELU with fake quantization for one instruction set; what fake_quantize.cpp says about shared code holds here too.
#include "cpu/gelu_fake_quantize.h"

#include "cpu/block_sums.h"
#include "cpu/fake_quantize_loops.h"
#include "cpu/lanes.h"
#include "cpu/normal.h"
#include "learned_grid.h"

namespace synq::cpu {
namespace {

Shared grid_pair(const Job& job) { return {{job.scale[0], job.zero_point[0]}}; }

template <typename T>
void forward_typed(const Job& job, int64_t begin, int64_t end) {
  const Grid grid = grid_of(job.bits);
  const Shared pair = grid_pair(job);
  Reader<T> reader;
  Writer<T> writer;
  for (int64_t start = begin; start < end; start += kBlock) {
    const int64_t size = end - start < kBlock ? end - start : kBlock;
    const float* x = reader.read(static_cast<const T*>(job.x) + start, size);
    float* y = writer.open(static_cast<T*>(job.y) + start);
    float values[kBlock];
    for_each_vector(0, size, [&](int64_t i, auto lanes) {
      const Vector value = lanes.load(x + i, 0.0f);
      lanes.store(values + i, value * normal_below(value));
    });
    quantize_block(values, y, size, pair, grid);
    writer.close(static_cast<T*>(job.y) + start, size);
  }
}

void terms_of_block(const float* __restrict gradient, const float* __restrict values, const float* __restrict slopes,
                    int64_t count, Affine pair, Grid grid, float* __restrict of_x, float* __restrict of_scale,
                    float* __restrict of_zero) {
  for (int64_t i = 0; i < count; ++i) {
    const LearnedTerms terms = learned_terms(gradient[i], values[i], pair, grid.low, grid.high);
    of_x[i] = terms.of_x * slopes[i];
    of_scale[i] = terms.of_scale;
    of_zero[i] = terms.of_zero;
  }
}

template <typename T>
void backward_typed(const Job& job, int64_t begin, int64_t end, double* scale_sum, double* zero_sum) {
  const Grid grid = grid_of(job.bits);
  const Affine pair = grid_pair(job).affine;
  map_gradient_blocks(static_cast<const T*>(job.x) + begin, static_cast<const T*>(job.gradient) + begin,
                      static_cast<T*>(job.y) + begin, end - begin,
                      [&](int64_t, int64_t size, const float* x, const float* gradient, float* of_x) {
                        float values[kBlock];
                        float slopes[kBlock];
                        for_each_vector(0, size, [&](int64_t i, auto lanes) {
                          const Vector value = lanes.load(x + i, 0.0f);
                          const Vector below = normal_below(value);
                          lanes.store(values + i, value * below);
                          lanes.store(slopes + i, below + value * normal_density(value));
                        });
                        float of_scale[kBlock];
                        float of_zero[kBlock];
                        terms_of_block(gradient, values, slopes, size, pair, grid, of_x, of_scale, of_zero);
                        *scale_sum += sum_of_block(of_scale, size);
                        *zero_sum += sum_of_block(of_zero, size);
                      });
}

void forward(const Job& job, int64_t begin, int64_t end) {
  with_type(job.dtype, [&](auto tag) { forward_typed<decltype(tag)>(job, begin, end); });
}

void backward(const Job& job, int64_t begin, int64_t end, double* of_scale, double* of_zero) {
  with_type(job.dtype, [&](auto tag) { backward_typed<decltype(tag)>(job, begin, end, of_scale, of_zero); });
}

}  // namespace

SYNQ_DEFINE_TABLE(GeluFakeQuantizeKernels, gelu_fake_quantize_kernels) = {forward, backward};

}  // namespace synq::cpu
