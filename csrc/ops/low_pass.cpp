#include "ops/low_pass.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/fft_irfft2.h>
#include <ATen/ops/fft_rfft2.h>
#include <ATen/ops/view_as_real.h>
#include <c10/util/Exception.h>

#include <cmath>

#include "ops/lru_cache.h"

namespace synq {
namespace {

using at::Tensor;

struct MaskKey {
  int64_t height;
  int64_t width;
  Response response;
  at::Device device;

  bool operator==(const MaskKey& other) const {
    return height == other.height && width == other.width && response == other.response && device == other.device;
  }
};

// Gains (height, width / 2 + 1, 2): each twice, for the real and the imaginary part.
Tensor build_mask(const MaskKey& key) {
  const int64_t columns = key.width / 2 + 1;
  Tensor mask = at::empty({key.height, columns, 2}, at::TensorOptions().dtype(at::kFloat).device(at::kCPU));
  float* values = mask.mutable_data_ptr<float>();
  for (int64_t i = 0; i < key.height; ++i) {
    const double row = static_cast<double>(std::min(i, key.height - i));
    for (int64_t j = 0; j < columns; ++j, values += 2) {
      values[0] = values[1] = static_cast<float>(key.response.gain(row * row + static_cast<double>(j * j)));
    }
  }
  return mask.to(key.device);
}

}  // namespace

Response Response::parse(double cutoff, std::string_view kind, int64_t order) {
  TORCH_CHECK_VALUE(cutoff > 0 && std::isfinite(cutoff), "low_pass: cutoff must be finite and above 0, got ", cutoff);
  TORCH_CHECK_VALUE(order >= 1, "low_pass: order must be at least 1, got ", order);
  if (kind == "gaussian") return {Kind::kGaussian, cutoff, 0};
  if (kind == "butterworth") return {Kind::kButterworth, cutoff, order};
  TORCH_CHECK_VALUE(kind == "ideal", "low_pass: kind must be one of gaussian, butterworth, ideal, got '", kind, "'");
  return {Kind::kIdeal, cutoff, 0};
}

double Response::gain(double squared_distance) const {
  const double ratio = squared_distance / (cutoff * cutoff);
  switch (kind) {
    case Kind::kGaussian:
      return std::exp(-0.5 * ratio);
    case Kind::kButterworth:
      return 1.0 / (1.0 + std::pow(ratio, static_cast<double>(order)));
    default:
      return squared_distance <= cutoff * cutoff ? 1.0 : 0.0;
  }
}

std::optional<Method> parse_method(std::string_view name) {
  if (name == "auto") return std::nullopt;
  if (name == "matrix") return Method::kMatrix;
  TORCH_CHECK_VALUE(name == "spectrum", "low_pass: method must be one of auto, matrix, spectrum, got '", name, "'");
  return Method::kSpectrum;
}

Images as_images(const Tensor& x) {
  const int64_t rank = x.dim();
  TORCH_CHECK_VALUE(rank >= 2, "low_pass: x must have shape (..., H, W), got ", x.sizes());
  Images images{x, 0, x.size(-2), x.size(-1), 1};
  if (!x.is_contiguous()) {
    if (x.is_contiguous(at::MemoryFormat::ChannelsLast)) {
      images.channels = x.size(1);
    } else {
      images.x = x.contiguous();
    }
  }
  if (x.numel() > 0) images.images = x.numel() / (images.height * images.width * images.channels);
  return images;
}

Tensor empty_like_images(const Images& images, at::ScalarType type) {
  // x is contiguous or channels_last, and keeps that.
  return at::empty_like(images.x, images.x.options().dtype(type));
}

Tensor filter_spectrum(const Tensor& x, const Response& response) {
  static LruCache<MaskKey, Tensor> masks(32);
  const Tensor signal = x.to(at::kFloat).contiguous();
  const MaskKey key{x.size(-2), x.size(-1), response, x.device()};
  const Tensor mask = masks.get(key, [&] { return build_mask(key); });
  const Tensor spectrum = at::fft_rfft2(signal);
  at::view_as_real(spectrum).mul_(mask);
  return at::fft_irfft2(spectrum, at::IntArrayRef{key.height, key.width});
}

}  // namespace synq
