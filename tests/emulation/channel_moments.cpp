// The CUDA source of the channels' moments, for ctypes.
#include "cuda_on_cpu.h"
// clang-format off: the source needs the definitions above
#include "../../csrc/cuda/channel_moments.cu"
// clang-format on

extern "C" {
int64_t moments_workspace(const synq::ChannelMomentsParams* p) { return synq::channel_moments_workspace_cuda(*p); }
int moments(const synq::ChannelMomentsParams* p) { return synq::channel_moments_cuda(*p, nullptr); }
int moments_backward(const synq::ChannelMomentsParams* p) { return synq::channel_moments_backward_cuda(*p, nullptr); }
}
