// The CUDA implementation behind synq_fast::low_pass. Nothing here waits for the device, apart from the first use of a
// spectrum's mask, so the op can be captured in a CUDA graph.
#include "low_pass.h"

#include <ATen/core/Tensor.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGraphsC10Utils.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <cmath>
#include <memory>
#include <vector>

#include "ops/low_pass_choice.h"
#include "ops/low_pass_op.h"
#include "ops/lru_cache.h"
#include "ops/matmul_precision.h"
#include "ops/tensors.h"

namespace synq {
namespace {

using at::Tensor;

struct TableKey {
  int64_t n;
  double cutoff;

  bool operator==(const TableKey& other) const { return n == other.n && cutoff == other.cutoff; }
};
using Table = std::shared_ptr<const std::vector<float>>;

// What LowPassAxis::table describes.
Table build_table(int64_t n, const Response& response) {
  std::vector<double> wave(n);
  for (int64_t i = 0; i < n; ++i) wave[i] = std::cos(2 * M_PI * static_cast<double>(i) / static_cast<double>(n));
  std::vector<double> taps(2 * n + 1);
  for (int64_t d = 0; d < n; ++d) {
    double sum = 0;
    for (int64_t k = 0; k < n; ++k) {
      const double frequency = static_cast<double>(std::min(k, n - k));
      sum += response.gain(frequency * frequency) * wave[k * d % n];
    }
    taps[d] = taps[d + n] = sum / static_cast<double>(n);
  }
  taps[2 * n] = taps[0];
  std::vector<float> table;
  table.reserve(low_pass_table_size(n));
  if (n % 2 != 0) {
    for (int64_t d = 0; d <= n; ++d) table.push_back(static_cast<float>(taps[d] / 2));
  } else {
    const int64_t h = n / 2;
    for (int64_t d = 0; d <= h; ++d) table.push_back(static_cast<float>((taps[d] + taps[d + h]) / 4));
    for (int64_t d = 0; d <= h; ++d) table.push_back(static_cast<float>((taps[d] - taps[d + h]) / 4));
  }
  return std::make_shared<const std::vector<float>>(std::move(table));
}

Table find_table(int64_t n, const Response& response) {
  static LruCache<TableKey, Table> tables(64);
  return tables.get({n, response.cutoff}, [&] { return build_table(n, response); });
}

void filter_products(const Images& images, const Response& response, Tensor& y) {
  TORCH_CHECK_VALUE(response.is_separable(), "low_pass: on a GPU the method matrix is for the kind gaussian alone");
  TORCH_CHECK_VALUE(std::max(images.height, images.width) <= kLowPassLongestSide,
                    "low_pass: on a GPU the method matrix takes sides up to ", kLowPassLongestSide, ", got ",
                    images.height, " x ", images.width);
  const Tensor middle = y.scalar_type() == at::kFloat ? y : empty_like_images(images, at::kFloat);
  const Table height = find_table(images.height, response);
  const Table width = find_table(images.width, response);
  LowPassParams params{};
  params.x = images.x.const_data_ptr();
  params.y = y.mutable_data_ptr();
  params.middle = middle.mutable_data_ptr<float>();
  params.images = images.images;
  params.channels = images.channels;
  params.height = {images.height, height->data()};
  params.width = {images.width, width->data()};
  params.tf32 = matmul_uses_tf32();
  params.dtype = check_dtype("low_pass", "x", images.x);
  C10_CUDA_CHECK(static_cast<cudaError_t>(low_pass_cuda(params, c10::cuda::getCurrentCUDAStream().stream())));
}

Tensor low_pass_cuda_op(const Tensor& x, double cutoff, std::string_view kind, int64_t order, std::string_view method) {
  const c10::cuda::CUDAGuard guard(x.device());
  const Response response = Response::parse(cutoff, kind, order);
  check_dtype("low_pass", "x", x);
  const Images images = as_images(x);
  Tensor y = empty_like_images(images, x.scalar_type());
  if (x.numel() == 0) return y;
  const bool prefers_matrix = prefers_matrix_cuda(response.is_separable(), images.height, images.width);
  const Method preferred = prefers_matrix ? Method::kMatrix : Method::kSpectrum;
  if (parse_method(method).value_or(preferred) == Method::kSpectrum) {
    const bool capturing = c10::cuda::currentStreamCaptureStatusMayInitCtx() != c10::cuda::CaptureStatus::None;
    return y.copy_(filter_spectrum(images.x, response, capturing));
  }
  filter_products(images, response, y);
  return y;
}

}  // namespace

TORCH_LIBRARY_IMPL(synq_fast, CUDA, m) { m.impl("low_pass", &low_pass_cuda_op); }

}  // namespace synq
