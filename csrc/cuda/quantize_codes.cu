// Integer codes, scale and zero point with a given range.
#include "../fake_quantize.h"
#include "affine_map.cuh"

namespace synq {
namespace {

struct CodeArguments : GridArguments {
  float* scale;
  float* zero_point;
  int64_t channels;
};

template <typename T, typename Code>
struct QuantizeCodes : GridOperation {
  using Input = T;
  using Output = Code;
  using Arguments = CodeArguments;
  static constexpr bool kReadsGradient = false;
  float* scale;
  float* zero_point;
  int64_t channels;

  __device__ __forceinline__ explicit QuantizeCodes(const Arguments& given)
      : GridOperation(given), scale(given.scale), zero_point(given.zero_point), channels(given.channels) {}
  __device__ __forceinline__ void prepare(int64_t thread, int64_t threads) const {
    for (int64_t c = thread; c < channels; c += threads) {
      const Affine affine = factors(c);
      scale[c] = affine.scale;
      zero_point[c] = affine.zero_point;
    }
  }
  __device__ __forceinline__ Code apply(float x, T, const Affine& affine) const {
    const float code = quantize(x, affine, low, high);
    return static_cast<Code>(code == code ? static_cast<int>(code) : 0);
  }
};

}  // namespace

int quantize_codes_cuda(const FakeQuantizeParams& params, void* stream) {
  const CodeArguments arguments = {
      {params.range_min, params.range_max, params.bits}, params.out_min, params.out_max, params.channels};
  return with_element_type(params.dtype, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    if (params.bits <= 8) return launch_affine_map<QuantizeCodes<T, int8_t>>(params, arguments, stream);
    return launch_affine_map<QuantizeCodes<T, int16_t>>(params, arguments, stream);
  });
}

}  // namespace synq
