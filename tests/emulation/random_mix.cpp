// The CUDA source of the random mixture as a library, for ctypes.
#include "cuda_on_cpu.h"
// clang-format off: the source needs the definitions above
#include "../../csrc/cuda/random_mix.cu"
// clang-format on

extern "C" {
int forward(const synq::RandomMixParams* p) { return synq::random_mix_cuda(*p, nullptr); }
int backward(const synq::RandomMixParams* p) { return synq::random_mix_backward_cuda(*p, nullptr); }
}
