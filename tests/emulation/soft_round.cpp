// The CUDA source of soft rounding as a library, for ctypes.
#include "cuda_on_cpu.h"
// clang-format off: the source needs the definitions above
#include "../../csrc/cuda/soft_round.cu"
// clang-format on

using Params = synq::SoftRoundParams;

extern "C" {
int64_t workspace(const Params* p) { return synq::soft_round_workspace_cuda(*p); }
int forward(const Params* p) { return synq::soft_round_cuda(*p, nullptr); }
int backward(const Params* p) { return synq::soft_round_backward_cuda(*p, nullptr); }
}
