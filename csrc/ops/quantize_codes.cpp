// synq_fast::quantize_codes.
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include <tuple>

#include "cpu/fake_quantize.h"
#include "fake_quantize.h"
#include "ops/affine_table.h"
#include "ops/device.h"
#include "ops/parallel.h"
#include "ops/quantized.h"

namespace synq {
namespace {

using at::Tensor;

template <Device device>
std::tuple<Tensor, Tensor, Tensor> quantize(const Tensor& x, const Tensor& range_min, const Tensor& range_max,
                                            int64_t bits, std::optional<int64_t> axis, std::optional<int64_t> groups) {
  const char* op = "quantize_codes";
  const Guard<device> guard(x);
  const Input input = check_input(op, x, bits, axis, groups);
  const Ranges ranges(op, range_min, range_max, input);
  Tensor codes = at::empty_like(input.x, input.x.options().dtype(bits <= 8 ? at::kChar : at::kShort));
  Tensor scale = at::empty(input.range_shape, input.x.options().dtype(at::kFloat));
  Tensor zero_point = at::empty_like(scale);
  float* scales = scale.mutable_data_ptr<float>();
  float* zero_points = zero_point.mutable_data_ptr<float>();
  if constexpr (device == Device::kCPU) {
    using namespace cpu;
    const AffineTable table(op, ranges, input, bits);
    const auto job = make_job<cpu::Job>(input, table, bits, codes);
    const auto kernel = SYNQ_SELECT(fake_quantize_kernels).quantize_codes;
    for_each_part(x.numel(), 1, [&](int64_t begin, int64_t end) { kernel(job, begin, end); });
    for (int64_t i = 0; i < input.channels; ++i) {
      scales[i] = table.channel(i).scale;
      zero_points[i] = table.channel(i).zero_point;
    }
  } else if (input.channels > 0) {
    auto params = make_params<FakeQuantizeParams>(input, ranges, bits);
    params.y = codes.mutable_data_ptr();
    params.out_min = scales;
    params.out_max = zero_points;
    launch(quantize_codes_cuda, params);
  }
  return {codes, scale, zero_point};
}

template <Device device>
void register_ops(torch::Library& library) {
  library.impl("quantize_codes", &quantize<device>);
}

SYNQ_REGISTER(register_ops)

}  // namespace
}  // namespace synq
