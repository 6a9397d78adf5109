// Calling a launcher on the current stream.
#pragma once

#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAStream.h>

namespace synq {

template <typename Launcher, typename Params>
void launch(Launcher launcher, const Params& params) {
  C10_CUDA_CHECK(static_cast<cudaError_t>(launcher(params, c10::cuda::getCurrentCUDAStream().stream())));
}

}  // namespace synq
