// A logarithmic grid for one instruction set; what fake_quantize.cpp says about shared code holds here too.
#include "cpu/fake_quantize_log.h"

#include "cpu/channel_sums.h"
#include "cpu/fake_quantize_loops.h"
#include "log_grid.h"

namespace synq::cpu {
namespace {

void quantize_log_block(const float* __restrict x, float* __restrict y, int64_t count, float scale, int32_t least) {
  for (int64_t i = 0; i < count; ++i) y[i] = fake_quantize_log(x[i], scale, least);
}

void terms_of_block(const float* __restrict gradient, const float* __restrict x, int64_t count, float scale,
                    int32_t least, float* __restrict of_x, float* __restrict of_scale) {
  for (int64_t i = 0; i < count; ++i) {
    const LogTerms terms = log_terms(gradient[i], x[i], scale, least);
    of_x[i] = terms.of_x;
    of_scale[i] = terms.of_scale;
  }
}

void forward(const Job& job, int64_t begin, int64_t end) {
  const int32_t least = least_ratio(job.bits);
  with_type(job.dtype, [&](auto tag) {
    using T = decltype(tag);
    map_blocks(static_cast<const T*>(job.x) + begin, static_cast<T*>(job.y) + begin, end - begin,
               [&](int64_t, int64_t size, const float* x, float* y) {
                 quantize_log_block(x, y, size, job.scale[0], least);
               });
  });
}

void backward(const Job& job, int64_t begin, int64_t end, double* sum) {
  const int32_t least = least_ratio(job.bits);
  with_type(job.dtype, [&](auto tag) {
    using T = decltype(tag);
    map_gradient_blocks(static_cast<const T*>(job.x) + begin, static_cast<const T*>(job.gradient) + begin,
                        static_cast<T*>(job.y) + begin, end - begin,
                        [&](int64_t, int64_t size, const float* x, const float* gradient, float* of_x) {
                          float of_scale[kBlock];
                          terms_of_block(gradient, x, size, job.scale[0], least, of_x, of_scale);
                          add_run(of_scale, size, sum);
                        });
  });
}

}  // namespace

SYNQ_DEFINE_TABLE(FakeQuantizeLogKernels, fake_quantize_log_kernels) = {forward, backward};

}  // namespace synq::cpu
