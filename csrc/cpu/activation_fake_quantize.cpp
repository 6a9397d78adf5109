// Activation functions with fake quantization for one instruction set; what fake_quantize.cpp says about shared code
// holds here too.
#include "cpu/activation_fake_quantize.h"

#include "cpu/block_sums.h"
#include "cpu/fake_quantize_loops.h"
#include "cpu/functions.h"
#include "cpu/lanes.h"
#include "learned_levels.h"

namespace synq::cpu {
namespace {

template <typename Levels>
void round_block(const float* __restrict values, float* __restrict y, int64_t count, Affine pair, Levels levels) {
  for (int64_t i = 0; i < count; ++i) y[i] = levels.rounded(values[i], pair);
}

template <typename Curve, typename Levels, typename T>
void forward_typed(const ActivationJob& job, int64_t begin, int64_t end, Levels levels) {
  const Affine pair{job.scale[0], job.zero_point[0]};
  Reader<T> reader;
  Writer<T> writer;
  for (int64_t start = begin; start < end; start += kBlock) {
    const int64_t size = end - start < kBlock ? end - start : kBlock;
    const float* x = reader.read(static_cast<const T*>(job.x) + start, size);
    float* y = writer.open(static_cast<T*>(job.y) + start);
    float values[kBlock];
    for_each_vector(0, size,
                    [&](int64_t i, auto lanes) { lanes.store(values + i, Curve::value(lanes.load(x + i, 0.0f))); });
    round_block(values, y, size, pair, levels);
    writer.close(static_cast<T*>(job.y) + start, size);
  }
}

template <typename Levels>
void terms_of_block(const float* __restrict gradient, const float* __restrict values, const float* __restrict slopes,
                    int64_t count, Affine pair, Levels levels, float* __restrict of_x, float* __restrict of_scale,
                    float* __restrict of_zero) {
  for (int64_t i = 0; i < count; ++i) {
    const LearnedTerms terms = levels.terms(gradient[i], values[i], pair);
    of_x[i] = terms.of_x * slopes[i];
    of_scale[i] = terms.of_scale;
    of_zero[i] = terms.of_zero;
  }
}

template <typename Curve, typename Levels, typename T>
void backward_typed(const ActivationJob& job, int64_t begin, int64_t end, Levels levels, double* scale_sum,
                    double* zero_sum) {
  const Affine pair{job.scale[0], job.zero_point[0]};
  map_gradient_blocks(static_cast<const T*>(job.x) + begin, static_cast<const T*>(job.gradient) + begin,
                      static_cast<T*>(job.y) + begin, end - begin,
                      [&](int64_t, int64_t size, const float* x, const float* gradient, float* of_x) {
                        float values[kBlock];
                        float slopes[kBlock];
                        for_each_vector(0, size, [&](int64_t i, auto lanes) {
                          const Point point = Curve::point(lanes.load(x + i, 0.0f));
                          lanes.store(values + i, point.value);
                          lanes.store(slopes + i, point.slope);
                        });
                        float of_scale[kBlock];
                        float of_zero[kBlock];
                        terms_of_block(gradient, values, slopes, size, pair, levels, of_x, of_scale, of_zero);
                        *scale_sum += sum_of_block(of_scale, size);
                        *zero_sum += sum_of_block(of_zero, size);
                      });
}

// Calls body(curve, levels, element).
template <typename Body>
void with_kernel_types(const ActivationJob& job, Body body) {
  with_activation(job.activation, [&](auto tag) {
    with_levels(job.minifloat, job.bits, [&](auto levels) {
      with_type(job.dtype, [&](auto element) { body(Curve<decltype(tag)::kActivation>{}, levels, element); });
    });
  });
}

void forward(const ActivationJob& job, int64_t begin, int64_t end) {
  with_kernel_types(job, [&](auto curve, auto levels, auto element) {
    forward_typed<decltype(curve), decltype(levels), decltype(element)>(job, begin, end, levels);
  });
}

void backward(const ActivationJob& job, int64_t begin, int64_t end, double* of_scale, double* of_zero) {
  with_kernel_types(job, [&](auto curve, auto levels, auto element) {
    backward_typed<decltype(curve), decltype(levels), decltype(element)>(job, begin, end, levels, of_scale, of_zero);
  });
}

}  // namespace

SYNQ_DEFINE_TABLE(ActivationFakeQuantizeKernels, activation_fake_quantize_kernels) = {forward, backward};

}  // namespace synq::cpu
