// The CUDA source of packing as a library, for ctypes.
#include "cuda_on_cpu.h"
// clang-format off: the source needs the definitions above
#include "../../csrc/cuda/pack_codes.cu"
// clang-format on

using Params = synq::PackCodesParams;

extern "C" {
int pack(const Params* p) { return synq::pack_codes_cuda(*p, nullptr); }
int unpack(const Params* p) { return synq::unpack_codes_cuda(*p, nullptr); }
}
