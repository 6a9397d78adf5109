// Gradients of a learned grid for one instruction set; what fake_quantize.cpp says about shared code holds here too.
#include "cpu/fake_quantize_learned.h"

#include "cpu/channel_sums.h"
#include "cpu/draws.h"
#include "cpu/fake_quantize_loops.h"
#include "learned_grid.h"

namespace synq::cpu {
namespace {

// What stands for flags where every element is quantized.
struct Every {
  Every from(int64_t) const { return *this; }
  bool operator[](int64_t) const { return true; }
};

struct Chosen {
  const int32_t* flags;
  Chosen from(int64_t i) const { return {flags + i}; }
  bool operator[](int64_t i) const { return flags[i] != 0; }
};

template <typename Affines, typename Choice>
void terms_of_block(const float* __restrict gradient, const float* __restrict x, int64_t count, Affines affines,
                    Choice chosen, Grid grid, float* __restrict of_x, float* __restrict of_scale,
                    float* __restrict of_zero) {
  for (int64_t i = 0; i < count; ++i) {
    const LearnedTerms terms = learned_terms(gradient[i], x[i], affines(i), grid.low, grid.high);
    of_x[i] = chosen[i] ? terms.of_x : gradient[i];
    of_scale[i] = chosen[i] ? terms.of_scale : 0.0f;
    of_zero[i] = chosen[i] ? terms.of_zero : 0.0f;
  }
}

template <typename T, typename Choice>
void backward_typed(const Job& job, int64_t begin, int64_t end, Choice chosen, double* scale_sums, double* zero_sums) {
  const Grid grid = grid_of(job.bits);
  const bool innermost = channels_innermost(job);
  for_each_run(job, begin, end, [&](int64_t start, int64_t count, int64_t channel) {
    map_gradient_blocks(static_cast<const T*>(job.x) + start, static_cast<const T*>(job.gradient) + start,
                        static_cast<T*>(job.y) + start, count,
                        [&](int64_t i, int64_t size, const float* x, const float* gradient, float* of_x) {
                          float of_scale[kBlock];
                          float of_zero[kBlock];
                          const int64_t first = innermost ? channel + i : channel;
                          const Choice here = chosen.from(start - begin + i);
                          if (innermost) {
                            const PerElement affines{job.scale + first, job.zero_point + first};
                            terms_of_block(gradient, x, size, affines, here, grid, of_x, of_scale, of_zero);
                          } else {
                            const Shared affines{{job.scale[first], job.zero_point[first]}};
                            terms_of_block(gradient, x, size, affines, here, grid, of_x, of_scale, of_zero);
                          }
                          add_terms(of_scale, size, innermost, scale_sums + first);
                          add_terms(of_zero, size, innermost, zero_sums + first);
                        });
  });
}

template <typename Affines>
void quantize_chosen(const float* __restrict x, const int32_t* __restrict flags, float* __restrict y, int64_t count,
                     Affines affines, Grid grid) {
  for (int64_t i = 0; i < count; ++i) {
    const float quantized = fake_quantize(x[i], affines(i), grid.low, grid.high);
    y[i] = flags[i] != 0 ? quantized : x[i];
  }
}

template <typename T>
void dropped_typed(const Job& job, const Chance& chance, int64_t begin, int64_t end) {
  const Grid grid = grid_of(job.bits);
  for_each_drawn_block(chance, begin, end, [&](int64_t block, int64_t size, const int32_t* flags) {
    for_each_affine(job, block, block + size, [&](int64_t start, int64_t count, auto affines) {
      const int32_t* here = flags + (start - block);
      map_blocks(static_cast<const T*>(job.x) + start, static_cast<T*>(job.y) + start, count,
                 [&](int64_t i, int64_t length, const float* x, float* y) {
                   quantize_chosen(x, here + i, y, length, affines.from(i), grid);
                 });
    });
  });
}

void backward_any(const Job& job, int64_t begin, int64_t end, double* of_scale, double* of_zero) {
  with_type(job.dtype, [&](auto tag) { backward_typed<decltype(tag)>(job, begin, end, Every{}, of_scale, of_zero); });
}

void dropped_any(const Job& job, const Chance& chance, int64_t begin, int64_t end) {
  with_type(job.dtype, [&](auto tag) { dropped_typed<decltype(tag)>(job, chance, begin, end); });
}

void dropped_backward_any(const Job& job, const Chance& chance, int64_t begin, int64_t end, double* of_scale,
                          double* of_zero) {
  with_type(job.dtype, [&](auto tag) {
    for_each_drawn_block(chance, begin, end, [&](int64_t start, int64_t size, const int32_t* flags) {
      backward_typed<decltype(tag)>(job, start, start + size, Chosen{flags}, of_scale, of_zero);
    });
  });
}

}  // namespace

SYNQ_DEFINE_TABLE(FakeQuantizeLearnedKernels, fake_quantize_learned_kernels) = {backward_any, dropped_any,
                                                                                dropped_backward_any};

}  // namespace synq::cpu
