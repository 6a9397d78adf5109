#include "ops/low_pass_op.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/fft_irfft2.h>
#include <ATen/ops/fft_rfft2.h>
#include <ATen/ops/minimum.h>
#include <ATen/ops/rsub.h>
#include <ATen/ops/view_as_real.h>

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

// The square of each frequency's distance from zero along one side, float64.
Tensor squares(int64_t count, int64_t n, at::Device device) {
  const Tensor index = at::arange(count, at::TensorOptions().dtype(at::kDouble).device(device));
  return at::minimum(index, at::rsub(index, n)).square_();
}

// Gains (height, width / 2 + 1, 2): each twice, for the real and the imaginary part.
Tensor build_mask(const MaskKey& key, at::Device device) {
  const Tensor rows = squares(key.height, key.height, device);
  const Tensor distance = rows.unsqueeze(1).add(squares(key.width / 2 + 1, key.width, device));
  const Response& response = key.response;
  const double cutoff = response.cutoff * response.cutoff;
  Tensor gain;
  switch (response.kind) {
    case Response::Kind::kGaussian:
      gain = distance.mul(-0.5 / cutoff).exp_();
      break;
    case Response::Kind::kButterworth:
      gain = distance.div(cutoff).pow_(response.order).add_(1).reciprocal_();
      break;
    default:
      gain = distance.le(cutoff);
  }
  return gain.to(at::kFloat).unsqueeze(2).expand({-1, -1, 2}).contiguous();
}

}  // namespace

Response Response::parse(double cutoff, std::string_view kind, int64_t order) {
  // Its square is divided by.
  require(cutoff >= 1e-100 && cutoff <= 1e100, "low_pass", "cutoff");
  require(order >= 1, "low_pass", "order");
  if (kind == "gaussian") return {Kind::kGaussian, cutoff, 0};
  if (kind == "butterworth") return {Kind::kButterworth, cutoff, order};
  require(kind == "ideal", "low_pass", "kind");
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
  require(name == "spectrum", "low_pass", "method");
  return Method::kSpectrum;
}

Tensor empty_like_images(const Planes& images, at::ScalarType type) {
  // x is contiguous or channels_last, and keeps that.
  return at::empty_like(images.x, images.x.options().dtype(type));
}

Tensor filter_spectrum(const Tensor& x, const Response& response, bool capturing) {
  // Never destroyed; see find_matrix in low_pass.cpp.
  static auto& masks = *new LruCache<MaskKey, Tensor>(32);
  const Tensor signal = x.to(at::kFloat).contiguous();
  const MaskKey key{x.size(-2), x.size(-1), response, x.device()};
  // A graph under capture runs later and has its own memory: its mask is part of it. Otherwise the copy from the CPU
  // has ended before any stream can use the mask.
  const Tensor mask = capturing ? build_mask(key, key.device)
                                : masks.get(key, [&] { return build_mask(key, at::kCPU).to(key.device); });
  const Tensor spectrum = at::fft_rfft2(signal);
  at::view_as_real(spectrum).mul_(mask);
  return at::fft_irfft2(spectrum, at::IntArrayRef{key.height, key.width});
}

}  // namespace synq
