// Gradients of a learned grid for one instruction set; what fake_quantize.cpp says about shared code holds here too.
#include "cpu/fake_quantize_learned.h"

#include "cpu/channel_sums.h"
#include "cpu/fake_quantize_loops.h"
#include "learned_grid.h"

namespace synq::cpu {
namespace {

template <typename Affines>
void terms_of_block(const float* __restrict gradient, const float* __restrict x, int64_t count, Affines affines,
                    Grid grid, float* __restrict of_x, float* __restrict of_scale, float* __restrict of_zero) {
  for (int64_t i = 0; i < count; ++i) {
    const LearnedTerms terms = learned_terms(gradient[i], x[i], affines(i), grid.low, grid.high);
    of_x[i] = terms.of_x;
    of_scale[i] = terms.of_scale;
    of_zero[i] = terms.of_zero;
  }
}

template <typename T>
void backward_typed(const Job& job, int64_t begin, int64_t end, double* scale_sums, double* zero_sums) {
  const Grid grid = grid_of(job.bits);
  const bool innermost = channels_innermost(job);
  for_each_run(job, begin, end, [&](int64_t start, int64_t count, int64_t channel) {
    map_gradient_blocks(static_cast<const T*>(job.x) + start, static_cast<const T*>(job.gradient) + start,
                        static_cast<T*>(job.y) + start, count,
                        [&](int64_t i, int64_t size, const float* x, const float* gradient, float* of_x) {
                          float of_scale[kBlock];
                          float of_zero[kBlock];
                          const int64_t first = innermost ? channel + i : channel;
                          if (innermost) {
                            const PerElement affines{job.scale + first, job.zero_point + first};
                            terms_of_block(gradient, x, size, affines, grid, of_x, of_scale, of_zero);
                          } else {
                            const Shared affines{{job.scale[first], job.zero_point[first]}};
                            terms_of_block(gradient, x, size, affines, grid, of_x, of_scale, of_zero);
                          }
                          add_terms(of_scale, size, innermost, scale_sums + first);
                          add_terms(of_zero, size, innermost, zero_sums + first);
                        });
  });
}

void backward_any(const Job& job, int64_t begin, int64_t end, double* of_scale, double* of_zero) {
  with_type(job.dtype, [&](auto tag) { backward_typed<decltype(tag)>(job, begin, end, of_scale, of_zero); });
}

}  // namespace

SYNQ_DEFINE_TABLE(FakeQuantizeLearnedKernels, fake_quantize_learned_kernels) = {backward_any};

}  // namespace synq::cpu
