// Fake quantization for one instruction set; the table at the end is named after it.
// Nothing here may instantiate shared inline code (the standard library, torch): the linker keeps one copy of it, and
// that could be the copy compiled for an instruction set that the running machine lacks.
#include "cpu/fake_quantize.h"

#include "cpu/fake_quantize_loops.h"

namespace synq::cpu {
namespace {

template <typename Affines>
void backward(const float* __restrict gradient, const float* __restrict x, float* __restrict result, int64_t count,
              Affines affines, Grid grid) {
  for (int64_t i = 0; i < count; ++i) {
    result[i] = clipped_gradient(gradient[i], x[i], affines(i), grid.low, grid.high);
  }
}

template <typename Code, typename Affines>
void codes(const float* __restrict x, Code* __restrict y, int64_t count, Affines affines, Grid grid) {
  for (int64_t i = 0; i < count; ++i) {
    const float code = quantize(x[i], affines(i), grid.low, grid.high);
    y[i] = static_cast<Code>(static_cast<int32_t>(code == code ? code : 0.0f));
  }
}

template <typename T>
void fake_quantize_typed(const Job& job, int64_t begin, int64_t end) {
  const Grid grid = grid_of(job.bits);
  for_each_affine(job, begin, end, [&](int64_t start, int64_t count, auto affines) {
    map_blocks(
        static_cast<const T*>(job.x) + start, static_cast<T*>(job.y) + start, count,
        [&](int64_t i, int64_t size, const float* x, float* y) { quantize_block(x, y, size, affines.from(i), grid); });
  });
}

template <typename T>
void backward_typed(const Job& job, int64_t begin, int64_t end) {
  const Grid grid = grid_of(job.bits);
  for_each_affine(job, begin, end, [&](int64_t start, int64_t count, auto affines) {
    map_gradient_blocks(static_cast<const T*>(job.x) + start, static_cast<const T*>(job.gradient) + start,
                        static_cast<T*>(job.y) + start, count,
                        [&](int64_t i, int64_t size, const float* x, const float* gradient, float* y) {
                          backward(gradient, x, y, size, affines.from(i), grid);
                        });
  });
}

template <typename T, typename Code>
void codes_typed(const Job& job, int64_t begin, int64_t end) {
  const Grid grid = grid_of(job.bits);
  for_each_affine(job, begin, end, [&](int64_t start, int64_t count, auto affines) {
    Code* y = static_cast<Code*>(job.y) + start;
    for_each_block(static_cast<const T*>(job.x) + start, count,
                   [&](int64_t i, int64_t size, const float* x) { codes(x, y + i, size, affines.from(i), grid); });
  });
}

void fake_quantize_any(const Job& job, int64_t begin, int64_t end) {
  with_type(job.dtype, [&](auto tag) { fake_quantize_typed<decltype(tag)>(job, begin, end); });
}

void backward_any(const Job& job, int64_t begin, int64_t end) {
  with_type(job.dtype, [&](auto tag) { backward_typed<decltype(tag)>(job, begin, end); });
}

void codes_any(const Job& job, int64_t begin, int64_t end) {
  with_type(job.dtype, [&](auto tag) {
    if (job.bits <= 8) {
      codes_typed<decltype(tag), int8_t>(job, begin, end);
    } else {
      codes_typed<decltype(tag), int16_t>(job, begin, end);
    }
  });
}

}  // namespace

SYNQ_DEFINE_TABLE(FakeQuantizeKernels, fake_quantize_kernels) = {fake_quantize_any, backward_any, codes_any};

}  // namespace synq::cpu
