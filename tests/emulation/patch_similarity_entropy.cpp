// The CUDA source of the patch similarity entropy as a library, for ctypes.
#include "cuda_on_cpu.h"
// clang-format off: the source needs the definitions above
#include "../../csrc/cuda/patch_similarity_entropy.cu"
// clang-format on

using Params = synq::PatchSimilarityParams;

extern "C" {
int64_t splits(const Params* p) { return p->splits(); }
int64_t tiles(const Params* p) { return p->tiles(); }
int entropy(const Params* p) { return synq::patch_similarity_entropy_cuda(*p, nullptr); }
int gradient(const Params* p) { return synq::patch_similarity_gradient_cuda(*p, nullptr); }
}
