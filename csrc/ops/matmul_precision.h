// What a caller allows in float32 matrix products on a GPU.
#pragma once

#include <ATen/Context.h>
#include <torch/version.h>

namespace synq {

// Whether TF32 is allowed. From 2.9 on the older switch throws where the newer one was set otherwise.
inline bool matmul_uses_tf32() {
  const at::Context& context = at::globalContext();
#if TORCH_VERSION_MAJOR > 2 || TORCH_VERSION_MINOR >= 10
  return context.float32Precision(at::Float32Backend::CUDA, at::Float32Op::MATMUL) == at::Float32Precision::TF32;
#elif TORCH_VERSION_MINOR == 9
  return context.float32Precision("cuda", "matmul") == "tf32";
#else
  return context.allowTF32CuBLAS();
#endif
}

}  // namespace synq
