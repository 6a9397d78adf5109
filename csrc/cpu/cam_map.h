// CPU kernels from a coarse map to the resized, stretched one: the map, its gradient, the loss.
#pragma once

#include <stdint.h>

#include "cpu/axis.h"
#include "cpu/dispatch.h"
#include "dtype.h"

namespace synq::cpu {

struct MapJob {
  const float* coarse;  // (images, positions of rows, positions of columns)
  Axis rows;
  Axis columns;
  float eps;
  float* map;         // (images, pixels of rows, pixels of columns)
  const void* other;  // like map, in `dtype`: the target, or the gradient of the map
  DType dtype;
  double factor;  // loss: what the squared differences are multiplied by
  float* slope;   // like coarse: its gradient; may be null for the loss
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
