// The CUDA source of attention on learned grids as a library, for ctypes.
#include "cuda_on_cpu.h"
// clang-format off: the source needs the definitions above
#include "../../csrc/cuda/quantized_attention.cu"
// clang-format on

using Params = synq::QuantizedAttentionParams;

extern "C" {
int forward(const Params* p) { return synq::quantized_attention_cuda(*p, nullptr); }
int64_t workspace(const Params* p) { return synq::quantized_attention_workspace_cuda(*p); }
int backward(const Params* p) { return synq::quantized_attention_backward_cuda(*p, nullptr); }
}
