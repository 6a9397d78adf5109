#include "isa/half.h"

#include "cpu/half.h"

namespace synq::cpu {
namespace {

template <typename T>
void widen_all(const uint16_t* x, float* y, int64_t count) {
  load(reinterpret_cast<const T*>(x), y, count);
}

template <typename T>
void narrow_all(const float* x, uint16_t* y, int64_t count) {
  store(x, reinterpret_cast<T*>(y), count);
}

}  // namespace

SYNQ_DEFINE_TABLE(HalfKernels, half_kernels) = {widen_all<Float16>, widen_all<BFloat16>, narrow_all<Float16>,
                                                narrow_all<BFloat16>};

}  // namespace synq::cpu
