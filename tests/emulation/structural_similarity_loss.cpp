// The CUDA source of the structural similarity as a library, for ctypes.
#include "cuda_on_cpu.h"
// clang-format off: the source needs the definitions above
#include "../../csrc/cuda/structural_similarity_loss.cu"
// clang-format on

using Params = synq::StructuralSimilarityParams;

extern "C" {
int64_t workspace(const Params* p) { return synq::structural_similarity_workspace_cuda(*p); }
int forward(const Params* p) { return synq::structural_similarity_loss_cuda(*p, nullptr); }
int backward(const Params* p) { return synq::structural_similarity_loss_backward_cuda(*p, nullptr); }
}
