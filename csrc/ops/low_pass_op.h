// What the CPU and the CUDA implementation of the low-pass filters share.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string_view>

#include "ops/tensors.h"

namespace synq {

// Which frequencies pass: the transfer function of the distance from zero, in cycles per image.
struct Response {
  enum class Kind { kGaussian, kButterworth, kIdeal };

  Kind kind;
  double cutoff;
  int64_t order;  // 0 unless Butterworth

  static Response parse(double cutoff, std::string_view kind, int64_t order);
  double gain(double squared_distance) const;
  // Whether the gain is a product of one factor for each axis.
  bool is_separable() const { return kind == Kind::kGaussian; }
  bool operator==(const Response& other) const {
    return kind == other.kind && cutoff == other.cutoff && order == other.order;
  }
};

enum class Method { kMatrix, kSpectrum };

// nullopt for "auto".
std::optional<Method> parse_method(std::string_view name);

// Uninitialised, with the memory format of the images.
at::Tensor empty_like_images(const Planes& images, at::ScalarType type);

// The filter as a product with a mask on the half spectrum, by ATen's transforms; float32. `capturing` says that a CUDA
// graph is being recorded.
at::Tensor filter_spectrum(const at::Tensor& x, const Response& response, bool capturing = false);

}  // namespace synq
