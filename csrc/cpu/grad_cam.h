// CPU kernels of class activation maps.
#pragma once

#include <stdint.h>

#include "cam.h"
#include "cpu/dispatch.h"
#include "dtype.h"

namespace synq::cpu {

// One image is (channels, positions) in memory, or (positions, channels) when `channels_last`.
struct CoarseJob {
  const void* activations;
  const void* gradients;
  const float* factor;        // (images,), score_factor(score); Grad-CAM++ alone
  int64_t activation_stride;  // elements from image to image
  int64_t gradient_stride;
  int64_t channels;
  int64_t positions;
  bool channels_last;
  CamKind kind;
  float clamp;  // least weight; Grad-CAM++: denominators nearer to zero count as zero
  DType dtype;
  float* weights;  // (images, channels), unless by_element(kind)
  float* coarse;   // (images, positions)
};

// The gradient of the activations: weight times the slope of their position.
struct SpreadJob {
  const void* weights;  // float (images, channels), or by_element(kind) gradients in `dtype`, laid out as `result`
  const float* slope;   // (images, positions)
  void* result;         // dtype
  int64_t channels;
  int64_t positions;
  bool channels_last;
  CamKind kind;
  float clamp;
  DType dtype;
};

struct GradCamKernels {
  // Weights and coarse map of one image.
  void (*coarse)(const CoarseJob& job, int64_t image);
  // Rows [begin, end) of the result: (image, channel), or (image, position) when channels_last.
  void (*spread)(const SpreadJob& job, int64_t begin, int64_t end);
};

SYNQ_DECLARE_TABLES(GradCamKernels, grad_cam_kernels);

}  // namespace synq::cpu
