// Integer codes, scale and zero point with a given range.
#include "affine_map.cuh"

namespace synq {
namespace {

template <typename T, typename Code>
struct QuantizeCodes {
  using Input = T;
  using Output = Code;
  static constexpr bool kReadsGradient = false;
  static constexpr bool kWritesQuantizer = true;

  static __device__ __forceinline__ Code apply(float x, T, Affine affine, float low, float high) {
    const float code = quantize(x, affine, low, high);
    return static_cast<Code>(code == code ? static_cast<int>(code) : 0);
  }
};

}  // namespace

int quantize_codes_cuda(const FakeQuantizeParams& params, void* stream) {
  return with_element_type(params.dtype, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    if (params.bits <= 8) return launch_affine_map<QuantizeCodes<T, int8_t>>(params, stream);
    return launch_affine_map<QuantizeCodes<T, int16_t>>(params, stream);
  });
}

}  // namespace synq
