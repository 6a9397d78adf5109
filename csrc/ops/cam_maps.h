// What the class activation map ops share: checks, parameters of the kernels, the gradient of the activations.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/util/SmallVector.h>

#include <atomic>
#include <cmath>
#include <limits>
#include <memory>
#include <new>
#include <optional>

#include "cam.h"
#include "cpu/cam_map.h"
#include "cpu/grad_cam.h"
#include "grad_cam.h"
#include "layout.h"
#include "ops/device.h"
#include "ops/parallel.h"
#include "ops/tensors.h"

namespace synq {

// Each image is dense; any distance between images. Copied only where an image is neither contiguous nor
// channels_last, or where the order of the gradients differs from that of the activations.
struct CamInput : ImageLayout {
  at::Tensor activations;
  at::Tensor gradients;
  int64_t height;
  int64_t width;
  DType dtype;

  CamInput(const char* op, const at::Tensor& activations, const at::Tensor& gradients);

  int64_t image_elements() const { return channels * positions; }
  int64_t activation_stride() const { return samples > 1 ? activations.stride(0) : 0; }
  int64_t gradient_stride() const { return samples > 1 ? gradients.stride(0) : 0; }
};

struct CamSettings {
  CamKind kind;
  float clamp;
  float eps;

  CamSettings(const char* op, int64_t kind, double clamp, double eps);
};

// Checks a map (B, 1, H, W) that lies beside the activations and returns it contiguous.
at::Tensor check_map(const char* op, const char* name, const at::Tensor& map, int64_t images, const at::Tensor& beside);

// The gradient of activations that is to be written: weights are (B, C), or (B, C, h, w) with one per activation.
struct Spread {
  at::Tensor weights;  // contiguous, or laid out like result
  at::Tensor result;   // (B, C, h, w)
  CamKind kind;
  float clamp;
  bool channels_last;
  DType dtype;

  Spread(const char* op, const at::Tensor& weights, const at::Tensor& coarse, const CamSettings& settings,
         bool channels_last, at::ScalarType dtype);

  template <typename Work>
  void fill(Work& work, const float* slope) {
    work.weights = weights.const_data_ptr();
    work.slope = slope;
    work.result = result.mutable_data_ptr();
    work.channels = result.size(1);
    work.positions = result.size(2) * result.size(3);
    work.channels_last = channels_last;
    work.kind = kind;
    work.clamp = clamp;
    work.dtype = dtype;
  }
};

inline const cpu::GradCamKernels& coarse_kernels() {
  using namespace cpu;
  return SYNQ_SELECT(grad_cam_kernels);
}

inline const cpu::CamMapKernels& map_kernels() {
  using namespace cpu;
  return SYNQ_SELECT(cam_map_kernels);
}

cpu::CoarseJob make_coarse_job(const CamInput& input, const CamSettings& settings, at::Tensor& weights,
                               at::Tensor& coarse);

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

  Resizing(const at::Tensor& coarse, int64_t height, int64_t width, float eps)
      : rows(coarse.size(2), height), columns(coarse.size(3), width), job{} {
    job.coarse = coarse.const_data_ptr<float>();
    job.rows = rows.axis;
    job.columns = columns.axis;
    job.eps = eps;
  }
};

// Calls body(image, scratch memory) for every image. Threads take image after image, so that one that wakes late or is
// disturbed leaves more to the others.
template <typename Body>
void for_each_image(int64_t images, int64_t weight, const cpu::MapJob& job, const Body& body) {
  constexpr std::align_val_t kAlignment{64};
  const auto release = [=](float* memory) { ::operator delete(memory, kAlignment); };
  std::atomic<int64_t> next{0};
  for_each_part(images, weight, [&](int64_t, int64_t) {
    int64_t image = next++;
    if (image >= images) return;
    const std::unique_ptr<float, decltype(release)> scratch(
        static_cast<float*>(::operator new(sizeof(float) * map_kernels().scratch(job), kAlignment)), release);
    for (; image < images; image = next++) body(image, scratch.get());
  });
}

void spread_on_cpu(Spread& spread, const float* slope);

// Kernels on a GPU count within an image in 32 bits.
inline void check_size(const char* op, const char* argument, int64_t elements) {
  require(elements < std::numeric_limits<int32_t>::max() / 2, op, argument);
}

// Memory for how the maps are stretched.
at::Tensor make_stretches(const at::Tensor& coarse);

CoarseParams make_coarse_params(const char* op, const CamInput& input, const CamSettings& settings, int64_t height,
                                int64_t width, at::Tensor& weights, at::Tensor& coarse, at::Tensor& stretches);

MapParams make_map_params(const at::Tensor& coarse, at::Tensor& stretches, int64_t height, int64_t width, float eps);

template <Device device>
void coarse_on_gpu(CoarseParams params, const at::Tensor& coarse) {
  const at::Tensor workspace = at::empty({cam_coarse_workspace_cuda(params)}, coarse.options());
  params.workspace = workspace.mutable_data_ptr<float>();
  launch(cam_coarse_cuda, params);
}

// `factor`: one value on the device, or null for 1.
template <Device device>
void spread_on_gpu(const char* op, Spread& spread, const at::Tensor& slope, const float* factor) {
  SpreadParams params{};
  spread.fill(params, slope.const_data_ptr<float>());
  params.factor = factor;
  params.images = spread.result.size(0);
  check_size(op, "weights", params.channels * params.positions);
  launch(cam_spread_cuda, params);
}

}  // namespace synq
