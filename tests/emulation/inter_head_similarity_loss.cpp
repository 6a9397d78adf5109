// The CUDA source of the inter-head similarity as a library, for ctypes.
#include "cuda_on_cpu.h"
// clang-format off: the source needs the definitions above
#include "../../csrc/cuda/inter_head_similarity_loss.cu"
// clang-format on

namespace synq {
namespace {
// What the kernels declare without a size; the anonymous namespace is that of their file.
alignas(16) thread_local float pairs_shared[12 * 1024];
}  // namespace
}  // namespace synq

using Params = synq::InterHeadSimilarityParams;

extern "C" {
int64_t workspace(const Params* p) { return p->items(); }
int forward(const Params* p) { return synq::inter_head_similarity_loss_cuda(*p, nullptr); }
int backward(const Params* p) { return synq::inter_head_similarity_loss_backward_cuda(*p, nullptr); }
}
