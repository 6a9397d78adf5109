// CPU kernels from a coarse map to the resized, stretched one: the map, its gradient, the loss.
#pragma once

#include <stdint.h>

#include "cam.h"
#include "cpu/dispatch.h"
#include "dtype.h"

namespace synq::cpu {

struct MapJob {
  const float* coarse;  // (images, height, width)
  int64_t height;
  int64_t width;
  int64_t map_height;
  int64_t map_width;
  const Tap* rows;     // (map_height,)
  const Tap* columns;  // (map_width,)
  float eps;
  float* map;         // (images, map_height, map_width)
  const void* other;  // like map, in `dtype`: the target, or the gradient of the map
  DType dtype;
  double factor;  // loss: what the squared differences are multiplied by
  float* slope;   // (images, height, width): gradient of the coarse map; may be null for the loss
};

struct CamMapKernels {
  // Floats that a call needs as `scratch`.
  int64_t (*scratch)(const MapJob& job);
  void (*map)(const MapJob& job, int64_t image, float* scratch);
  void (*backward)(const MapJob& job, int64_t image, float* scratch);
  double (*loss)(const MapJob& job, int64_t image, float* scratch);
};

SYNQ_DECLARE_TABLES(CamMapKernels, cam_map_kernels);

}  // namespace synq::cpu
