// Small floats for one instruction set; what fake_quantize.cpp says about shared code holds here too.
#include "cpu/fake_quantize_minifloat.h"

#include "cpu/fake_quantize_loops.h"
#include "minifloat_grid.h"

namespace synq::cpu {
namespace {

template <typename Affines>
void quantize_minifloat_block(const float* __restrict x, float* __restrict y, int64_t count, Affines affines,
                              Minifloat grid) {
  for (int64_t i = 0; i < count; ++i) y[i] = fake_quantize_minifloat(x[i], affines(i), grid);
}

template <typename Affines>
void gradient_block(const float* __restrict gradient, const float* __restrict x, float* __restrict result,
                    int64_t count, Affines affines, Minifloat grid) {
  for (int64_t i = 0; i < count; ++i) result[i] = minifloat_gradient(gradient[i], x[i], affines(i), grid);
}

void forward(const Job& job, int64_t begin, int64_t end) {
  const Minifloat grid = minifloat_of(job.bits);
  with_type(job.dtype, [&](auto tag) {
    using T = decltype(tag);
    for_each_affine(job, begin, end, [&](int64_t start, int64_t count, auto affines) {
      map_blocks(static_cast<const T*>(job.x) + start, static_cast<T*>(job.y) + start, count,
                 [&](int64_t i, int64_t size, const float* x, float* y) {
                   quantize_minifloat_block(x, y, size, affines.from(i), grid);
                 });
    });
  });
}

void backward(const Job& job, int64_t begin, int64_t end) {
  const Minifloat grid = minifloat_of(job.bits);
  with_type(job.dtype, [&](auto tag) {
    using T = decltype(tag);
    for_each_affine(job, begin, end, [&](int64_t start, int64_t count, auto affines) {
      map_gradient_blocks(static_cast<const T*>(job.x) + start, static_cast<const T*>(job.gradient) + start,
                          static_cast<T*>(job.y) + start, count,
                          [&](int64_t i, int64_t size, const float* x, const float* gradient, float* y) {
                            gradient_block(gradient, x, y, size, affines.from(i), grid);
                          });
    });
  });
}

}  // namespace

SYNQ_DEFINE_TABLE(FakeQuantizeMinifloatKernels, fake_quantize_minifloat_kernels) = {forward, backward};

}  // namespace synq::cpu
