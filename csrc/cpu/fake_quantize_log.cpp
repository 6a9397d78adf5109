// A logarithmic grid for one instruction set; what fake_quantize.cpp says about shared code holds here too.
#include "cpu/fake_quantize_log.h"

#include "cpu/channel_sums.h"
#include "cpu/fake_quantize_loops.h"
#include "log_grid.h"

namespace synq::cpu {
namespace {

// The scale of each element of a run: the same for all, or one per element when channels are innermost.
struct SharedScale {
  float scale;
  float operator()(int64_t) const { return scale; }
};

struct ScalePerElement {
  const float* scale;
  float operator()(int64_t i) const { return scale[i]; }
};

template <typename Scales>
void quantize_log_block(const float* __restrict x, float* __restrict y, int64_t count, Scales scales, int32_t least) {
  for (int64_t i = 0; i < count; ++i) y[i] = fake_quantize_log(x[i], scales(i), least);
}

template <typename Scales>
void terms_of_block(const float* __restrict gradient, const float* __restrict x, int64_t count, Scales scales,
                    int32_t least, float* __restrict of_x, float* __restrict of_scale) {
  for (int64_t i = 0; i < count; ++i) {
    const LogTerms terms = log_terms(gradient[i], x[i], scales(i), least);
    of_x[i] = terms.of_x;
    of_scale[i] = terms.of_scale;
  }
}

// Calls body(scales) with those of the elements of a run from the i-th on.
template <typename Body>
void with_scales(const Job& job, int64_t channel, int64_t i, Body body) {
  if (channels_innermost(job)) {
    body(ScalePerElement{job.scale + channel + i});
  } else {
    body(SharedScale{job.scale[channel]});
  }
}

void forward(const Job& job, int64_t begin, int64_t end) {
  const int32_t least = least_ratio(job.bits);
  with_type(job.dtype, [&](auto tag) {
    using T = decltype(tag);
    for_each_run(job, begin, end, [&](int64_t start, int64_t count, int64_t channel) {
      map_blocks(static_cast<const T*>(job.x) + start, static_cast<T*>(job.y) + start, count,
                 [&](int64_t i, int64_t size, const float* x, float* y) {
                   with_scales(job, channel, i, [&](auto scales) { quantize_log_block(x, y, size, scales, least); });
                 });
    });
  });
}

void backward(const Job& job, int64_t begin, int64_t end, double* sums) {
  const int32_t least = least_ratio(job.bits);
  const bool innermost = channels_innermost(job);
  with_type(job.dtype, [&](auto tag) {
    using T = decltype(tag);
    for_each_run(job, begin, end, [&](int64_t start, int64_t count, int64_t channel) {
      map_gradient_blocks(static_cast<const T*>(job.x) + start, static_cast<const T*>(job.gradient) + start,
                          static_cast<T*>(job.y) + start, count,
                          [&](int64_t i, int64_t size, const float* x, const float* gradient, float* of_x) {
                            float of_scale[kBlock];
                            with_scales(job, channel, i, [&](auto scales) {
                              terms_of_block(gradient, x, size, scales, least, of_x, of_scale);
                            });
                            add_terms(of_scale, size, innermost, sums + channel + (innermost ? i : 0));
                          });
    });
  });
}

}  // namespace

SYNQ_DEFINE_TABLE(FakeQuantizeLogKernels, fake_quantize_log_kernels) = {forward, backward};

}  // namespace synq::cpu
