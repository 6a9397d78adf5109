// ReLU and fake quantization for one instruction set; what fake_quantize.cpp says about shared code holds here too.
#include "cpu/relu_fake_quantize.h"

#include "activation.h"
#include "cpu/channel_sums.h"
#include "cpu/fake_quantize_loops.h"

namespace synq::cpu {
namespace {

// The affine map of each element of a run: none, the same for all, or one per element when channels are innermost.
struct NoMap {
  float operator()(float x, int64_t) const { return x; }
  float weight(int64_t) const { return 1.0f; }
};

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

// Calls body(map) for the elements that begin at index `first` of a row, or of channel `first` otherwise.
template <typename Body>
void with_map(const ReluJob& job, bool innermost, int64_t first, Body body) {
  if (innermost) {
    body(MapPerElement{job.weight + first, job.bias + first});
  } else {
    body(SharedMap{job.weight[first], job.bias[first]});
  }
}

template <typename Map, typename Affines>
void forward(const float* __restrict x, float* __restrict y, int64_t count, Map map, Affines affines, float upper,
             Grid grid) {
  for (int64_t i = 0; i < count; ++i) {
    y[i] = fake_quantize(relu(map(x[i], i), upper), affines(i), grid.low, grid.high);
  }
}

// The gradient before the ReLU.
template <bool kClip, typename Map, typename Affines>
void backward(const float* __restrict gradient, const float* __restrict x, float* __restrict result, int64_t count,
              Map map, Affines affines, float upper, Grid grid) {
  for (int64_t i = 0; i < count; ++i) {
    result[i] = activation_gradient(gradient[i], map(x[i], i), upper, affines(i), grid.low, grid.high, kClip);
  }
}

template <typename Map>
void through_map(const float* __restrict before_relu, float* __restrict result, int64_t count, Map map) {
  for (int64_t i = 0; i < count; ++i) result[i] = mul(before_relu[i], map.weight(i));
}

void multiply(const float* __restrict a, float* __restrict b, int64_t count) {
  for (int64_t i = 0; i < count; ++i) b[i] = mul(a[i], b[i]);
}

template <typename T>
void relu_typed(const ReluJob& job, int64_t begin, int64_t end) {
  const Grid grid = grid_of(job.bits);
  for_each_affine(job, begin, end, [&](int64_t start, int64_t count, auto affines) {
    map_blocks(static_cast<const T*>(job.x) + start, static_cast<T*>(job.y) + start, count,
               [&](int64_t i, int64_t size, const float* x, float* y) {
                 forward(x, y, size, NoMap{}, affines.from(i), job.upper, grid);
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
                          backward<kClip>(gradient, x, y, size, NoMap{}, affines.from(i), job.upper, grid);
                        });
  });
}

template <typename T>
void affine_relu_typed(const ReluJob& job, int64_t begin, int64_t end) {
  const Grid grid = grid_of(job.bits);
  const Shared affine{{job.scale[0], job.zero_point[0]}};
  const bool innermost = channels_innermost(job);
  for_each_run(job, begin, end, [&](int64_t start, int64_t count, int64_t channel) {
    map_blocks(static_cast<const T*>(job.x) + start, static_cast<T*>(job.y) + start, count,
               [&](int64_t i, int64_t size, const float* x, float* y) {
                 with_map(job, innermost, innermost ? channel + i : channel,
                          [&](auto map) { forward(x, y, size, map, affine, job.upper, grid); });
               });
  });
}

template <typename T, bool kClip>
void affine_relu_backward_typed(const ReluJob& job, int64_t begin, int64_t end, double* of_weight, double* of_bias) {
  const Grid grid = grid_of(job.bits);
  const Shared affine{{job.scale[0], job.zero_point[0]}};
  const bool innermost = channels_innermost(job);
  for_each_run(job, begin, end, [&](int64_t start, int64_t count, int64_t channel) {
    map_gradient_blocks(static_cast<const T*>(job.x) + start, static_cast<const T*>(job.gradient) + start,
                        static_cast<T*>(job.y) + start, count,
                        [&](int64_t i, int64_t size, const float* x, const float* gradient, float* y) {
                          float before_relu[kBlock];
                          const int64_t first = innermost ? channel + i : channel;
                          with_map(job, innermost, first, [&](auto map) {
                            backward<kClip>(gradient, x, before_relu, size, map, affine, job.upper, grid);
                            through_map(before_relu, y, size, map);
                          });
                          if (of_weight == nullptr) return;
                          add_terms(before_relu, size, innermost, of_bias + first);
                          multiply(x, before_relu, size);
                          add_terms(before_relu, size, innermost, of_weight + first);
                        });
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
