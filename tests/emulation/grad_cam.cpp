// One library with the CUDA sources of the class activation maps, for ctypes.
#include "cuda_on_cpu.h"
// clang-format off: the sources need the definitions above
#include "../../csrc/cuda/grad_cam.cu"
#include "../../csrc/cuda/cam_map.cu"
// clang-format on

extern "C" {
int64_t coarse_workspace(const synq::CoarseParams* p) { return synq::cam_coarse_workspace_cuda(*p); }
int coarse(const synq::CoarseParams* p) { return synq::cam_coarse_cuda(*p, nullptr); }
int stretch(const synq::MapParams* p) { return synq::cam_stretch_cuda(*p, nullptr); }
int map(const synq::MapParams* p) { return synq::cam_map_cuda(*p, nullptr); }
int64_t workspace(const synq::MapParams* p) { return synq::cam_workspace_cuda(*p); }
int map_backward(const synq::MapParams* p) { return synq::cam_map_backward_cuda(*p, nullptr); }
int loss(const synq::MapParams* p) { return synq::cam_loss_cuda(*p, nullptr); }
int spread(const synq::SpreadParams* p) { return synq::cam_spread_cuda(*p, nullptr); }
int stretch_size() { return sizeof(synq::Stretch); }
}
