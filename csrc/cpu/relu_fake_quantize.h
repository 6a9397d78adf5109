// CPU kernels of ReLU and fake quantization in one pass, alone and after a per-channel affine map.
#pragma once

#include "cpu/dispatch.h"
#include "cpu/fake_quantize.h"

namespace synq::cpu {

// Memory and intervals as in Job. Without an affine map, scale and zero_point have one value per channel; with one,
// they have one value in all. Where channels are innermost, the map may be repeated so that rows are long: `channels`
// is then its length, a multiple of `sums`.
struct ReluJob {
  const void* x;
  const void* gradient;  // backward only
  const void* residual;  // like x, or null; with an affine map only
  void* y;
  void* of_residual;    // like x: the gradient of the residual, or null; backward only
  const float* weight;  // (channels,) or null
  const float* bias;    // (channels,) or null
  const float* scale;
  const float* zero_point;
  int64_t channels;
  int64_t sums;  // how many channels have sums
  int64_t inner;
  float upper;  // NaN: no upper bound
  int32_t bits;
  DType dtype;
  bool clip;  // backward only
};

struct ReluFakeQuantizeKernels {
  void (*relu)(const ReluJob& job, int64_t begin, int64_t end);
  void (*relu_backward)(const ReluJob& job, int64_t begin, int64_t end);
  void (*affine_relu)(const ReluJob& job, int64_t begin, int64_t end);
  // Where the sums are not null, adds the gradients of weight and bias to those of their channels.
  void (*affine_relu_backward)(const ReluJob& job, int64_t begin, int64_t end, double* of_weight, double* of_bias);
};

SYNQ_DECLARE_TABLES(ReluFakeQuantizeKernels, relu_fake_quantize_kernels);

}  // namespace synq::cpu
