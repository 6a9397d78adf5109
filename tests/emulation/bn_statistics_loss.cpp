// The CUDA sources of the losses on batch-normalisation statistics, for ctypes.
#include "cuda_on_cpu.h"
// clang-format off: the source needs the definitions above
#include "../../csrc/cuda/bn_statistics_loss.cu"
// clang-format on

extern "C" {
int64_t workspace(const synq::BnStatisticsParams* p) { return synq::bn_statistics_workspace_cuda(*p); }
int forward(const synq::BnStatisticsParams* p) { return synq::bn_statistics_cuda(*p, nullptr); }
int backward(const synq::BnGradientParams* p) { return synq::bn_statistics_backward_cuda(*p, nullptr); }
int total(const double* weighted, int64_t layers, float* loss) {
  return synq::bn_statistics_total_cuda(weighted, layers, loss, nullptr);
}
}
