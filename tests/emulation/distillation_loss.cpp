// The CUDA sources of the distillation losses, for ctypes.
#include "cuda_on_cpu.h"
// clang-format off: the source needs the definitions above
#include "../../csrc/cuda/distillation_loss.cu"
// clang-format on

extern "C" {
int forward(const synq::DistillationLossParams* p) { return synq::distillation_loss_cuda(*p, nullptr); }
int backward(const synq::DistillationGradientParams* p) { return synq::distillation_loss_backward_cuda(*p, nullptr); }
}
