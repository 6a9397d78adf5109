// The CUDA sources of the losses on batch-normalisation statistics, for ctypes.
#include "cuda_on_cpu.h"
// clang-format off: the sources need the definitions above
#include "../../csrc/cuda/bn_statistics_loss.cu"
#include "../../csrc/cuda/bn_statistics_gradient.cu"
// clang-format on

extern "C" {
int64_t workspace(const synq::BnStatisticsParams* p) { return synq::bn_statistics_workspace_cuda(*p); }
int forward(const synq::BnStatisticsParams* p) { return synq::bn_statistics_cuda(*p, nullptr); }
int backward(const synq::BnGradientParams* p) { return synq::bn_statistics_backward_cuda(*p, nullptr); }
}
