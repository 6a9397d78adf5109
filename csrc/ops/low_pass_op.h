// What the CPU and the CUDA implementation of the low-pass filters share.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string_view>

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

// Images as memory holds them: (images, height, width, channels), channels fastest. Contiguous planes have one channel.
struct Images {
  at::Tensor x;
  int64_t images;
  int64_t height;
  int64_t width;
  int64_t channels;
};

// Checks the shape; copies x only if it is neither contiguous nor channels_last.
Images as_images(const at::Tensor& x);

// Uninitialised, with the memory format of the images.
at::Tensor empty_like_images(const Images& images, at::ScalarType type);

// The filter as a product with a mask on the half spectrum, by ATen's transforms; float32. `capturing` says that a CUDA
// graph is being recorded.
at::Tensor filter_spectrum(const at::Tensor& x, const Response& response, bool capturing = false);

}  // namespace synq
