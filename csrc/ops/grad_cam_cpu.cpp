// The CPU implementations behind synq_fast::grad_cam and synq_fast::cam_alignment_loss.
#include "cpu/grad_cam.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <c10/util/SmallVector.h>
#include <torch/library.h>

#include <atomic>
#include <memory>
#include <new>
#include <tuple>
#include <utility>

#include "cpu/cam_map.h"
#include "ops/cam_tensors.h"
#include "ops/parallel.h"

namespace synq {
namespace {

using at::Tensor;
using MaybeTensor = std::optional<Tensor>;
using Triple = std::tuple<Tensor, Tensor, Tensor>;

constexpr std::align_val_t kAlignment{64};
struct Deleter {
  void operator()(float* memory) const { ::operator delete(memory, kAlignment); }
};
using Scratch = std::unique_ptr<float, Deleter>;

const cpu::GradCamKernels& coarse_kernels() {
  using namespace cpu;
  return SYNQ_SELECT(grad_cam_kernels);
}

const cpu::CamMapKernels& map_kernels() {
  using namespace cpu;
  return SYNQ_SELECT(cam_map_kernels);
}

// An axis together with the memory it points to.
struct OwnedAxis {
  c10::SmallVector<float, 512> weights;
  c10::SmallVector<int64_t, 64> starts;
  cpu::Axis axis;

  OwnedAxis(int64_t positions, int64_t pixels)
      : weights(pixels + cpu::kAxisPadding),
        starts(positions + 1),
        axis{positions, pixels, weights.data(), starts.data()} {
    cpu::fill_axis(positions, pixels, weights.data(), starts.data());
  }
  OwnedAxis(const OwnedAxis&) = delete;
};

// A job on maps together with its axes.
struct Resizing {
  OwnedAxis rows;
  OwnedAxis columns;
  cpu::MapJob job;

  Resizing(const Tensor& coarse, int64_t height, int64_t width, double eps)
      : rows(coarse.size(2), height), columns(coarse.size(3), width), job{} {
    job.coarse = coarse.const_data_ptr<float>();
    job.rows = rows.axis;
    job.columns = columns.axis;
    job.eps = static_cast<float>(eps);
  }
};

// Calls body(image, scratch memory) for every image. Threads take image after image, so that one that wakes late or is
// disturbed leaves more to the others.
template <typename Body>
void for_each_image(int64_t images, int64_t weight, const cpu::MapJob& job, const Body& body) {
  std::atomic<int64_t> next{0};
  for_each_part(images, weight, [&](int64_t, int64_t) {
    int64_t image = next++;
    if (image >= images) return;
    const Scratch scratch(static_cast<float*>(::operator new(sizeof(float) * map_kernels().scratch(job), kAlignment)));
    for (; image < images; image = next++) body(image, scratch.get());
  });
}

cpu::CoarseJob make_coarse_job(const CamInput& input, CamKind kind, double clamp, Tensor& weights, Tensor& coarse) {
  cpu::CoarseJob job{};
  job.activations = input.activations.const_data_ptr();
  job.gradients = input.gradients.const_data_ptr();
  job.activation_stride = input.activation_stride();
  job.gradient_stride = input.gradient_stride();
  job.channels = input.channels;
  job.positions = input.positions();
  job.channels_last = input.channels_last;
  job.kind = kind;
  job.clamp = static_cast<float>(clamp);
  job.dtype = input.dtype;
  job.weights = weights.mutable_data_ptr<float>();
  job.coarse = coarse.mutable_data_ptr<float>();
  return job;
}

Triple grad_cam_cpu(const Tensor& activations, const Tensor& gradients, const MaybeTensor& score, int64_t kind_number,
                    int64_t height, int64_t width, double clamp, double eps) {
  const CamInput input = check_cam("grad_cam", activations, gradients);
  const CamKind kind = check_kind("grad_cam", kind_number);
  const Tensor scores = check_score("grad_cam", score, kind, input);
  const auto options = activations.options().dtype(at::kFloat);
  Tensor map = at::empty({input.images, 1, height, width}, options);
  Tensor weights = at::empty({input.images, by_element(kind) ? 0 : input.channels}, options);
  Tensor coarse = at::empty({input.images, 1, input.height, input.width}, options);
  if (map.numel() == 0) return {map, weights, coarse};
  cpu::CoarseJob job = make_coarse_job(input, kind, clamp, weights, coarse);
  c10::SmallVector<float, 64> factors;
  if (scores.defined()) {
    factors.resize(input.images);
    const float* values = scores.const_data_ptr<float>();
    for (int64_t i = 0; i < input.images; ++i) factors[i] = score_factor(values[i]);
    job.factor = factors.data();
  }
  Resizing resizing(coarse, height, width, eps);
  resizing.job.map = map.mutable_data_ptr<float>();
  for_each_image(input.images, input.image_elements() + height * width, resizing.job,
                 [&](int64_t image, float* scratch) {
                   coarse_kernels().coarse(job, image);
                   map_kernels().map(resizing.job, image, scratch);
                 });
  return {map, weights, coarse};
}

Tensor spread_cpu(Spread spread, const float* slope, CamKind kind, double clamp, bool channels_last) {
  const int64_t positions = spread.result.size(2) * spread.result.size(3);
  cpu::SpreadJob job{};
  job.weights = spread.weights.const_data_ptr();
  job.slope = slope;
  job.result = spread.result.mutable_data_ptr();
  job.channels = spread.result.size(1);
  job.positions = positions;
  job.channels_last = channels_last;
  job.kind = kind;
  job.clamp = static_cast<float>(clamp);
  job.dtype = spread.dtype;
  const int64_t length = channels_last ? job.channels : positions;
  if (spread.result.numel() == 0) return spread.result;
  for_each_part(spread.result.numel() / length, length,
                [&](int64_t begin, int64_t end) { coarse_kernels().spread(job, begin, end); });
  return spread.result;
}

Tensor grad_cam_backward_cpu(const Tensor& gradient, const Tensor& weights, const Tensor& coarse, int64_t kind_number,
                             double clamp, double eps, bool channels_last, at::ScalarType dtype) {
  const char* op = "grad_cam_backward";
  const CamKind kind = check_kind(op, kind_number);
  const Tensor incoming = check_map(op, "grad", gradient, coarse.size(0), coarse);
  TORCH_CHECK_TYPE(incoming.scalar_type() == at::kFloat, op, ": grad must be float32, got ", incoming.scalar_type());
  Spread spread = make_spread(op, weights, coarse, kind, channels_last, dtype);
  if (spread.result.numel() == 0) return spread.result;
  const Tensor small = coarse.contiguous();
  Tensor slope = at::empty(small.sizes(), small.options());
  Resizing resizing(small, incoming.size(2), incoming.size(3), eps);
  resizing.job.other = incoming.const_data_ptr();
  resizing.job.dtype = DType::kFloat32;
  resizing.job.slope = slope.mutable_data_ptr<float>();
  for_each_image(small.size(0), incoming.size(2) * incoming.size(3), resizing.job,
                 [&](int64_t image, float* scratch) { map_kernels().backward(resizing.job, image, scratch); });
  return spread_cpu(std::move(spread), slope.const_data_ptr<float>(), kind, clamp, channels_last);
}

Triple cam_alignment_loss_cpu(const Tensor& activations, const Tensor& gradients, const Tensor& target_map,
                              double clamp, double eps, bool with_gradient) {
  const char* op = "cam_alignment_loss";
  const CamInput input = check_cam(op, activations, gradients);
  const Tensor target = check_map(op, "target_map", target_map, input.images, activations);
  const auto options = activations.options().dtype(at::kFloat);
  Tensor weights = at::empty({input.images, input.channels}, options);
  Tensor slope = at::empty({with_gradient ? input.images : 0, 1, input.height, input.width}, options);
  if (input.images == 0) return {at::zeros({}, options), weights, slope};
  Tensor coarse = at::empty({input.images, 1, input.height, input.width}, options);
  const cpu::CoarseJob job = make_coarse_job(input, CamKind::kGradCam, clamp, weights, coarse);
  Resizing resizing(coarse, target.size(2), target.size(3), eps);
  resizing.job.other = target.const_data_ptr();
  resizing.job.dtype = check_dtype(op, "target_map", target);
  resizing.job.factor = 1.0 / static_cast<double>(target.numel());
  if (with_gradient) resizing.job.slope = slope.mutable_data_ptr<float>();
  c10::SmallVector<double, 64> losses(input.images);
  for_each_image(input.images, input.image_elements() + target.size(2) * target.size(3), resizing.job,
                 [&](int64_t image, float* scratch) {
                   coarse_kernels().coarse(job, image);
                   losses[image] = map_kernels().loss(resizing.job, image, scratch);
                 });
  double sum = 0.0;
  for (const double value : losses) sum += value;
  Tensor loss = at::empty({}, options);
  *loss.mutable_data_ptr<float>() = static_cast<float>(sum);
  return {loss, weights, slope};
}

Tensor cam_alignment_loss_backward_cpu(const Tensor& gradient, const Tensor& weights, const Tensor& slope,
                                       bool channels_last, at::ScalarType dtype) {
  const char* op = "cam_alignment_loss_backward";
  TORCH_CHECK_VALUE(gradient.numel() == 1, op, ": grad must hold one value, got shape ", gradient.sizes());
  Spread spread = make_spread(op, weights, slope, CamKind::kGradCam, channels_last, dtype);
  const float factor = gradient.item<float>();
  const Tensor dense = slope.contiguous();
  const float* slopes = dense.const_data_ptr<float>();
  c10::SmallVector<float, 4096> scaled(slopes, slopes + dense.numel());
  for (float& value : scaled) value *= factor;
  return spread_cpu(std::move(spread), scaled.data(), CamKind::kGradCam, 0.0, channels_last);
}

}  // namespace

TORCH_LIBRARY_IMPL(synq_fast, CPU, m) {
  m.impl("grad_cam", &grad_cam_cpu);
  m.impl("grad_cam_backward", &grad_cam_backward_cpu);
  m.impl("cam_alignment_loss", &cam_alignment_loss_cpu);
  m.impl("cam_alignment_loss_backward", &cam_alignment_loss_backward_cpu);
}

}  // namespace synq
