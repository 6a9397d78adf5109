// The CUDA source of the patch similarity entropy as a library, for ctypes.
#include "cuda_on_cpu.h"
// clang-format off: the source needs the definitions above
#include "../../csrc/cuda/patch_similarity_entropy.cu"
// clang-format on

using Params = synq::PatchSimilarityParams;

extern "C" {
int64_t splits(const Params* p) { return p->splits(); }
int normalize(const Params* p) { return synq::patch_similarity_normalize_cuda(*p, nullptr); }
int entropy(const Params* p) { return synq::patch_similarity_entropy_cuda(*p, nullptr); }
int slopes(const Params* p) { return synq::patch_similarity_slopes_cuda(*p, nullptr); }
int project(const Params* p) { return synq::patch_similarity_project_cuda(*p, nullptr); }
}
