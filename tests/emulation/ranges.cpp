// One library with the CUDA sources of the range ops, for ctypes.
#include "cuda_on_cpu.h"
// clang-format off: the sources need the definitions above
#include "../../csrc/cuda/update_range.cu"
#include "../../csrc/cuda/search_range.cu"
// clang-format on

extern "C" {
int64_t update_workspace(const synq::UpdateRangeParams* p) { return synq::update_range_workspace_cuda(*p); }
int64_t search_workspace(const synq::SearchRangeParams* p) { return synq::search_range_workspace_cuda(*p); }
int update(const synq::UpdateRangeParams* p) { return synq::update_range_cuda(*p, nullptr); }
int search(const synq::SearchRangeParams* p) { return synq::search_range_cuda(*p, nullptr); }
}
