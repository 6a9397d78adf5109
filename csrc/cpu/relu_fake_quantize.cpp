// ReLU and fake quantization for one instruction set; what fake_quantize.cpp says about shared code holds here too.
#include "cpu/relu_fake_quantize.h"

#include "activation.h"
#include "cpu/channel_sums.h"
#include "cpu/fake_quantize_loops.h"

namespace synq::cpu {
namespace {

// The affine map of each element of a run: the same for all, or one per element when channels are innermost.
struct SharedMap {
  float factor;
  float bias;
  float operator()(float x, int64_t) const { return affine_map(x, factor, bias); }
  float weight(int64_t) const { return factor; }
};

struct MapPerElement {
  const float* factor;
  const float* bias;
  float operator()(float x, int64_t i) const { return affine_map(x, factor[i], bias[i]); }
  float weight(int64_t i) const { return factor[i]; }
};

// What precedes the ReLU: x itself, its map, or the sum of that and a residual.
struct Nothing {
  float operator()(float x, int64_t) const { return x; }
};

template <typename Map>
struct Residual {
  Map map;
  const float* residual;
  float operator()(float x, int64_t i) const { return add(map(x, i), residual[i]); }
  float weight(int64_t i) const { return map.weight(i); }
};

// Calls body(what precedes the ReLU) for elements that begin at index `first` of a row, or of channel `first`
// otherwise; `residual` is null or their own.
template <typename Body>
void with_map(const ReluJob& job, bool innermost, int64_t first, const float* residual, Body body) {
  const auto call = [&](auto map) { residual == nullptr ? body(map) : body(Residual<decltype(map)>{map, residual}); };
  if (innermost) {
    call(MapPerElement{job.weight + first, job.bias + first});
  } else {
    call(SharedMap{job.weight[first], job.bias[first]});
  }
}

// A select would become a masked load of the gradient, which cannot start before x has arrived: twice as slow on
// tensors that exceed the caches.
inline float if_passes(float gradient, bool passes) {
  return float_of(bits_of(gradient) & (0u - static_cast<uint32_t>(passes)));
}

template <typename Before, typename Affines>
void forward(const float* __restrict x, float* __restrict y, int64_t count, Before before, Affines affines, float upper,
             Grid grid) {
  for (int64_t i = 0; i < count; ++i) {
    y[i] = fake_quantize(relu(before(x[i], i), upper), affines(i), grid.low, grid.high);
  }
}

// The gradient before the ReLU.
template <bool kClip, typename Before, typename Affines>
void backward(const float* __restrict gradient, const float* __restrict x, float* __restrict result, int64_t count,
              Before before, Affines affines, float upper, Grid grid) {
  for (int64_t i = 0; i < count; ++i) {
    result[i] = if_passes(gradient[i], gradient_passes(before(x[i], i), upper, affines(i), grid.low, grid.high, kClip));
  }
}

// The same, and the gradient of x.
template <bool kClip, typename Before>
void backward(const float* __restrict gradient, const float* __restrict x, float* __restrict before_relu,
              float* __restrict of_x, int64_t count, Before before, Shared affine, float upper, Grid grid) {
  for (int64_t i = 0; i < count; ++i) {
    const float value =
        if_passes(gradient[i], gradient_passes(before(x[i], i), upper, affine(i), grid.low, grid.high, kClip));
    before_relu[i] = value;
    of_x[i] = mul(value, before.weight(i));
  }
}

// The same, and the terms of weight and bias added to the sums of their columns.
template <bool kClip, bool kKeep, typename Before>
void backward(const float* __restrict gradient, const float* __restrict x, float* __restrict before_relu,
              float* __restrict of_x, float* __restrict of_weight, float* __restrict of_bias, int64_t count,
              Before before, Shared affine, float upper, Grid grid) {
  for (int64_t i = 0; i < count; ++i) {
    const float value =
        if_passes(gradient[i], gradient_passes(before(x[i], i), upper, affine(i), grid.low, grid.high, kClip));
    if constexpr (kKeep) before_relu[i] = value;
    of_x[i] = mul(value, before.weight(i));
    of_weight[i] = add(of_weight[i], mul(x[i], value));
    of_bias[i] = add(of_bias[i], value);
  }
}

template <typename T>
void relu_typed(const ReluJob& job, int64_t begin, int64_t end) {
  const Grid grid = grid_of(job.bits);
  for_each_affine(job, begin, end, [&](int64_t start, int64_t count, auto affines) {
    map_blocks(static_cast<const T*>(job.x) + start, static_cast<T*>(job.y) + start, count,
               [&](int64_t i, int64_t size, const float* x, float* y) {
                 forward(x, y, size, Nothing{}, affines.from(i), job.upper, grid);
               });
  });
}

template <typename T, bool kClip>
void relu_backward_typed(const ReluJob& job, int64_t begin, int64_t end) {
  const Grid grid = grid_of(job.bits);
  for_each_affine(job, begin, end, [&](int64_t start, int64_t count, auto affines) {
    map_gradient_blocks(static_cast<const T*>(job.x) + start, static_cast<const T*>(job.gradient) + start,
                        static_cast<T*>(job.y) + start, count,
                        [&](int64_t i, int64_t size, const float* x, const float* gradient, float* y) {
                          backward<kClip>(gradient, x, y, size, Nothing{}, affines.from(i), job.upper, grid);
                        });
  });
}

template <typename T>
void affine_relu_typed(const ReluJob& job, int64_t begin, int64_t end) {
  const Grid grid = grid_of(job.bits);
  const Shared affine{{job.scale[0], job.zero_point[0]}};
  const bool innermost = channels_innermost(job);
  const T* residual = static_cast<const T*>(job.residual);
  for_each_run(job, begin, end, [&](int64_t start, int64_t count, int64_t channel) {
    Reader<T> summand;
    map_blocks(static_cast<const T*>(job.x) + start, static_cast<T*>(job.y) + start, count,
               [&](int64_t i, int64_t size, const float* x, float* y) {
                 const float* other = residual == nullptr ? nullptr : summand.read(residual + start + i, size);
                 with_map(job, innermost, innermost ? channel + i : channel, other,
                          [&](auto before) { forward(x, y, size, before, affine, job.upper, grid); });
               });
  });
}

// The operands of at most kBlock elements that begin at `start`, as float32, and room for their gradients.
template <typename T>
struct GradientBlock {
  Reader<T> x_reader, gradient_reader, residual_reader;
  Writer<T> of_x_writer, before_relu_writer;
  float unwanted[kBlock];

  // Calls body(gradient, x, before_relu, of_x, what precedes the ReLU) and stores the gradients.
  template <typename Body>
  void run(const ReluJob& job, bool innermost, int64_t first, int64_t start, int64_t size, Body body) {
    const float* x = x_reader.read(static_cast<const T*>(job.x) + start, size);
    const float* gradient = gradient_reader.read(static_cast<const T*>(job.gradient) + start, size);
    const float* residual = nullptr;
    if (job.residual != nullptr) residual = residual_reader.read(static_cast<const T*>(job.residual) + start, size);
    T* y = static_cast<T*>(job.y) + start;
    T* of_residual = job.of_residual == nullptr ? nullptr : static_cast<T*>(job.of_residual) + start;
    float* of_x = of_x_writer.open(y);
    float* before_relu = of_residual == nullptr ? unwanted : before_relu_writer.open(of_residual);
    with_map(job, innermost, first, residual, [&](auto before) { body(gradient, x, before_relu, of_x, before); });
    of_x_writer.close(y, size);
    if (of_residual != nullptr) before_relu_writer.close(of_residual, size);
  }
};

template <typename T, bool kClip>
void affine_relu_backward_typed(const ReluJob& job, int64_t begin, int64_t end, double* of_weight, double* of_bias) {
  const Grid grid = grid_of(job.bits);
  const Shared affine{{job.scale[0], job.zero_point[0]}};
  const bool innermost = channels_innermost(job);
  GradientBlock<T> block;
  if (innermost && of_weight != nullptr) {
    add_rows(begin, end, job.channels, job.sums, of_weight, of_bias,
             [&](int64_t start, int64_t size, int64_t column, float* weight_sums, float* bias_sums) {
               block.run(job, true, column, start, size,
                         [&](const float* gradient, const float* x, float* before_relu, float* of_x, auto before) {
                           if (job.of_residual == nullptr) {
                             backward<kClip, false>(gradient, x, before_relu, of_x, weight_sums, bias_sums, size,
                                                    before, affine, job.upper, grid);
                           } else {
                             backward<kClip, true>(gradient, x, before_relu, of_x, weight_sums, bias_sums, size, before,
                                                   affine, job.upper, grid);
                           }
                         });
             });
    return;
  }
  for_each_run(job, begin, end, [&](int64_t run, int64_t count, int64_t channel) {
    ProductSums sums;
    for (int64_t i = 0; i < count; i += kBlock) {
      const int64_t size = count - i < kBlock ? count - i : kBlock;
      block.run(job, innermost, innermost ? channel + i : channel, run + i, size,
                [&](const float* gradient, const float* x, float* before_relu, float* of_x, auto before) {
                  backward<kClip>(gradient, x, before_relu, of_x, size, before, affine, job.upper, grid);
                  if (of_weight != nullptr) sums.include(before_relu, x, size);
                });
    }
    if (of_weight == nullptr) return;
    of_bias[channel] += sums.sum();
    of_weight[channel] += sums.product_sum();
  });
}

void relu_any(const ReluJob& job, int64_t begin, int64_t end) {
  with_type(job.dtype, [&](auto tag) { relu_typed<decltype(tag)>(job, begin, end); });
}

void relu_backward_any(const ReluJob& job, int64_t begin, int64_t end) {
  with_type(job.dtype, [&](auto tag) {
    if (job.clip) {
      relu_backward_typed<decltype(tag), true>(job, begin, end);
    } else {
      relu_backward_typed<decltype(tag), false>(job, begin, end);
    }
  });
}

void affine_relu_any(const ReluJob& job, int64_t begin, int64_t end) {
  with_type(job.dtype, [&](auto tag) { affine_relu_typed<decltype(tag)>(job, begin, end); });
}

void affine_relu_backward_any(const ReluJob& job, int64_t begin, int64_t end, double* of_weight, double* of_bias) {
  with_type(job.dtype, [&](auto tag) {
    if (job.clip) {
      affine_relu_backward_typed<decltype(tag), true>(job, begin, end, of_weight, of_bias);
    } else {
      affine_relu_backward_typed<decltype(tag), false>(job, begin, end, of_weight, of_bias);
    }
  });
}

}  // namespace

SYNQ_DEFINE_TABLE(ReluFakeQuantizeKernels, relu_fake_quantize_kernels) = {relu_any, relu_backward_any, affine_relu_any,
                                                                          affine_relu_backward_any};

}  // namespace synq::cpu
