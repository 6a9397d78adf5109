// One kernel for both devices: what differs between them, and registration.
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/library.h>

#if defined(SYNQ_CUDA)
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#endif

namespace synq {

enum class Device { kCPU, kCUDA };

// Makes the device of a tensor the current one.
template <Device device>
struct Guard {
  explicit Guard(const at::Tensor&) {}
};

#if defined(SYNQ_CUDA)
template <>
struct Guard<Device::kCUDA> : c10::cuda::CUDAGuard {
  explicit Guard(const at::Tensor& x) : c10::cuda::CUDAGuard(x.device()) {}
};
#endif

// Enqueues on the current stream; never waits, so every op can be captured in a CUDA graph.
template <typename Launcher, typename Params>
void launch([[maybe_unused]] Launcher launcher, [[maybe_unused]] const Params& params) {
#if defined(SYNQ_CUDA)
  C10_CUDA_CHECK(static_cast<cudaError_t>(launcher(params, c10::cuda::getCurrentCUDAStream().stream())));
#endif
}

}  // namespace synq

// Registers what function<device>(library) does for every device that is built.
#if defined(SYNQ_CUDA)
#define SYNQ_REGISTER(function)                                        \
  TORCH_LIBRARY_IMPL(synq_fast, CPU, m) { function<Device::kCPU>(m); } \
  TORCH_LIBRARY_IMPL(synq_fast, CUDA, m) { function<Device::kCUDA>(m); }
#else
#define SYNQ_REGISTER(function) \
  TORCH_LIBRARY_IMPL(synq_fast, CPU, m) { function<Device::kCPU>(m); }
#endif
