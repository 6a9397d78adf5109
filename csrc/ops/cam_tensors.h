// Checks and layout shared by the CPU and the CUDA implementations of the class activation map ops.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "cam.h"
#include "ops/tensors.h"

namespace synq {

struct CamInput {
  at::Tensor activations;  // each image dense, contiguous or channels_last; any distance between images
  at::Tensor gradients;    // likewise, in the same order
  int64_t images;
  int64_t channels;
  int64_t height;
  int64_t width;
  bool channels_last;
  DType dtype;

  int64_t positions() const { return height * width; }
  int64_t image_elements() const { return channels * positions(); }
  int64_t activation_stride() const { return images > 1 ? activations.stride(0) : 0; }
  int64_t gradient_stride() const { return images > 1 ? gradients.stride(0) : 0; }
};

// Checks activations and their gradients; copies only what is neither contiguous nor channels_last within an image, or
// gradients whose order differs from that of the activations.
CamInput check_cam(const char* op, const at::Tensor& activations, const at::Tensor& gradients);

CamKind check_kind(const char* op, int64_t kind);

// The score of each image of Grad-CAM++, contiguous float32.
at::Tensor check_score(const char* op, const std::optional<at::Tensor>& score, CamKind kind, const CamInput& input);

// Checks a map (B, 1, H, W) that lies beside the activations and returns it contiguous.
at::Tensor check_map(const char* op, const char* name, const at::Tensor& map, int64_t images, const at::Tensor& beside);

// The gradient of activations that is to be written: weights are (B, C), or (B, C, h, w) with one per activation.
struct Spread {
  at::Tensor weights;  // contiguous, or laid out like result
  at::Tensor result;   // (B, C, h, w)
  DType dtype;
};
Spread make_spread(const char* op, const at::Tensor& weights, const at::Tensor& coarse, CamKind kind,
                   bool channels_last, at::ScalarType dtype);

}  // namespace synq
