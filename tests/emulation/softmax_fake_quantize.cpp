// The CUDA source of softmax with fake quantization as a library, for ctypes.
#include "cuda_on_cpu.h"
// clang-format off: the source needs the definitions above
#include "../../csrc/cuda/softmax_fake_quantize.cu"
// clang-format on

using Params = synq::SoftmaxFakeQuantizeParams;

extern "C" {
int forward(const Params* p) { return synq::softmax_fake_quantize_cuda(*p, nullptr); }
int64_t workspace(const Params* p) { return synq::softmax_fake_quantize_workspace_cuda(*p); }
int backward(const Params* p) { return synq::softmax_fake_quantize_backward_cuda(*p, nullptr); }
}
