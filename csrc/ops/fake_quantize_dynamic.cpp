// synq_fast::fake_quantize_dynamic.
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <c10/util/SmallVector.h>

#include <algorithm>
#include <limits>
#include <tuple>
#include <vector>

#include "affine.h"
#include "cpu/fake_quantize.h"
#include "cpu/fake_quantize_dynamic.h"
#include "fake_quantize.h"
#include "ops/affine_table.h"
#include "ops/device.h"
#include "ops/find_ranges.h"
#include "ops/parallel.h"
#include "ops/quantized.h"

namespace synq {
namespace {

using at::Tensor;
using Optional = std::optional<int64_t>;

// What a core keeps between finding the ranges of some channels and quantizing them.
constexpr int64_t kTileElements = 32768;
// Pieces of memory shorter than this are not worth leaving the order of addresses for: two reads in that order are
// faster.
constexpr int64_t kPieceElements = 256;

const cpu::FakeQuantizeDynamicKernels& kernels() {
  using namespace cpu;
  return SYNQ_SELECT(fake_quantize_dynamic_kernels);
}

const cpu::FakeQuantizeKernels& static_kernels() {
  using namespace cpu;
  return SYNQ_SELECT(fake_quantize_kernels);
}

// Channels to quantize at a time so that each is read from memory once; 0 where that does not pay.
int64_t channels_of_tile(const Input& input) {
  if (input.channels == 1) return 0;
  const int64_t fitting = kTileElements / (input.outer * input.inner);
  if (input.outer > 1 && std::max<int64_t>(fitting, 1) * input.inner < kPieceElements) return 0;
  return std::clamp<int64_t>(fitting, 1, input.channels);
}

void quantize_after_all_ranges(const cpu::DynamicJob& job, const Input& input, Tensor& y) {
  const int64_t repeats = repeats_of(input);
  if (repeats == 1) {
    find_ranges(job, input.elements(), job.minimum, job.maximum);
  } else {
    cpu::DynamicJob columns = job;
    columns.channels = input.channels * repeats;
    columns.inner = 1;
    std::vector<float> ranges(2 * columns.channels);
    const float* low = ranges.data();
    const float* high = low + columns.channels;
    find_ranges(columns, input.elements(), ranges.data(), ranges.data() + columns.channels);
    for (int64_t c = 0; c < input.channels; ++c) {
      job.minimum[c] = low[c * repeats];
      job.maximum[c] = high[c * repeats];
      for (int64_t i = 1; i < repeats; ++i) {
        include_ranges(low + c * repeats + i, high + c * repeats + i, 1, job.minimum + c, job.maximum + c);
      }
    }
  }
  for (int64_t c = 0; job.symmetric && c < input.channels; ++c) {
    const Range range = symmetric_range({job.minimum[c], job.maximum[c]});
    job.minimum[c] = range.low;
    job.maximum[c] = range.high;
  }
  const AffineTable table(job.minimum, job.maximum, input, span_of(job.bits));
  const cpu::Job given = make_job<cpu::Job>(input, table, job.bits, y);
  for_each_part(input.elements(), 1,
                [&](int64_t begin, int64_t end) { static_kernels().fake_quantize(given, begin, end); });
}

void quantize(const cpu::DynamicJob& job, const Input& input, Tensor& y) {
  const int64_t width = channels_of_tile(input);
  if (width == 0) return quantize_after_all_ranges(job, input, y);
  const int64_t tiles = (input.channels + width - 1) / width;
  for_each_part(tiles, width * input.length(), [&](int64_t begin, int64_t end) {
    for (int64_t tile = begin; tile < end; ++tile) {
      kernels().quantize_channels(job, tile * width, std::min(input.channels, (tile + 1) * width));
    }
  });
}

template <Device device>
std::tuple<Tensor, Tensor, Tensor> forward(const Tensor& x, int64_t bits, Optional axis, Optional groups,
                                           bool symmetric, bool /*clip*/) {
  const Guard<device> guard(x);
  const Input input = check_input("fake_quantize_dynamic", x, bits, axis, groups);
  const auto floats = floats_like(input.x);
  Tensor range_min = at::empty(input.range_shape, floats);
  Tensor range_max = at::empty(input.range_shape, floats);
  Tensor y = at::empty_like(input.x);
  if (x.numel() == 0) {
    constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
    return {y, range_min.fill_(kNan), range_max.fill_(kNan)};
  }
  float* low = range_min.mutable_data_ptr<float>();
  float* high = range_max.mutable_data_ptr<float>();
  if constexpr (device == Device::kCPU) {
    c10::SmallVector<float, 64> scratch(2 * input.channels);
    const cpu::DynamicJob job{input.x.const_data_ptr(),
                              y.mutable_data_ptr(),
                              low,
                              high,
                              scratch.data(),
                              scratch.data() + input.channels,
                              input.outer,
                              input.channels,
                              input.inner,
                              static_cast<int32_t>(bits),
                              input.dtype,
                              symmetric};
    quantize(job, input, y);
  } else {
    auto params = make_params<FakeQuantizeParams>(input, bits);
    params.symmetric = symmetric;
    const Tensor workspace = at::empty({fake_quantize_dynamic_workspace_cuda(params)}, floats);
    params.y = y.mutable_data_ptr();
    params.out_min = low;
    params.out_max = high;
    params.workspace = workspace.mutable_data_ptr<float>();
    launch(fake_quantize_dynamic_cuda, params);
  }
  return {y, range_min, range_max};
}

template <Device device>
void register_ops(torch::Library& library) {
  library.impl("fake_quantize_dynamic", &forward<device>);
}

SYNQ_REGISTER(register_ops)

}  // namespace
}  // namespace synq
