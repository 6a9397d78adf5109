// Launch interface of the class activation map kernels. Plain C++: kernels include no torch headers.
#pragma once

#include <stdint.h>

#include "cam.h"
#include "dtype.h"

namespace synq {

// Coarse maps: one image is (channels, positions) in memory, or (positions, channels) when `channels_last`.
struct CoarseParams {
  const void* activations;    // dtype
  const void* gradients;      // dtype
  const float* score;         // (images,); Grad-CAM++ alone
  float* weights;             // (images, channels), unless by_element(kind)
  float* coarse;              // (images, height, width)
  Stretch* stretches;         // (images,): how the map of this size is stretched
  float* workspace;           // cam_coarse_workspace_cuda(params) floats
  int64_t activation_stride;  // elements from image to image
  int64_t gradient_stride;
  int64_t images;
  int64_t channels;
  int64_t height;
  int64_t width;
  int64_t map_height;
  int64_t map_width;
  int32_t channels_last;
  CamKind kind;
  float clamp;  // least weight; Grad-CAM++: denominators nearer to zero count as zero
  float eps;    // added to the spread of the map
  DType dtype;
};

// From coarse maps to resized, stretched ones, and back.
struct MapParams {
  const float* coarse;  // (images, height, width)
  Stretch* stretches;   // (images,); written by cam_coarse_cuda and cam_stretch_cuda, read by the others
  float* map;           // (images, map_height, map_width); the forward alone
  const void* other;    // like map, in `dtype`: the target, or the gradient of the map
  float* workspace;     // cam_workspace_cuda(params) floats; loss and backward
  float* slope;         // (images, height, width): gradient of the coarse map; may be null for the loss
  float* loss;          // one value; the loss alone
  int64_t images;
  int64_t height;
  int64_t width;
  int64_t map_height;
  int64_t map_width;
  float eps;
  DType dtype;
};

// The gradient of the activations: weight times slope of the position, times `factor`.
struct SpreadParams {
  const void* weights;  // float (images, channels), or by_element(kind) gradients in `dtype`, laid out as `result`
  const float* slope;   // (images, positions)
  const float* factor;  // one value, or null for 1
  void* result;         // dtype
  int64_t images;
  int64_t channels;
  int64_t positions;
  int32_t channels_last;
  CamKind kind;
  float clamp;
  DType dtype;
};

// Every launcher enqueues on `stream` (a cudaStream_t) of the current device, never synchronizes, and returns the
// cudaError_t of the launch (0 is success). There is at least one image, activation and pixel; an image has less than
// 2^31 of each.
int64_t cam_coarse_workspace_cuda(const CoarseParams& params);
int cam_coarse_cuda(const CoarseParams& params, void* stream);
int cam_stretch_cuda(const MapParams& params, void* stream);  // the stretches of given coarse maps
int cam_map_cuda(const MapParams& params, void* stream);
int64_t cam_workspace_cuda(const MapParams& params);
int cam_map_backward_cuda(const MapParams& params, void* stream);
int cam_loss_cuda(const MapParams& params, void* stream);
int cam_spread_cuda(const SpreadParams& params, void* stream);

}  // namespace synq
