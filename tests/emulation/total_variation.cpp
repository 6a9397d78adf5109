// The CUDA source of the total variation as a library, for ctypes.
#include "cuda_on_cpu.h"
// clang-format off: the source needs the definitions above
#include "../../csrc/cuda/total_variation.cu"
// clang-format on

using Params = synq::TotalVariationParams;

extern "C" {
int64_t workspace(const Params* p) { return synq::total_variation_workspace_cuda(*p); }
int forward(const Params* p) { return synq::total_variation_cuda(*p, nullptr); }
int backward(const Params* p) { return synq::total_variation_backward_cuda(*p, nullptr); }
}
