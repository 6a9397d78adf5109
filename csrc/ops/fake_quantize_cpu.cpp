// The CPU implementations behind synq_fast::fake_quantize and its relatives.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <c10/util/SmallVector.h>
#include <torch/library.h>

#include <limits>
#include <tuple>

#include "affine.h"
#include "cpu/fake_quantize.h"
#include "ops/arguments.h"
#include "ops/find_ranges.h"
#include "ops/parallel.h"

namespace synq {
namespace {

using at::Tensor;
using Axis = std::optional<int64_t>;

const cpu::FakeQuantizeKernels& kernels() {
  using namespace cpu;
  return SYNQ_SELECT(fake_quantize_kernels);
}

// Scale and zero point of each channel, apart from each other so that vectors of them can be loaded.
struct AffineTable {
  c10::SmallVector<float, 64> values;
  int64_t channels;

  AffineTable(const float* minimum, const float* maximum, int64_t count, int64_t bits)
      : values(2 * count), channels(count) {
    for (int64_t i = 0; i < count; ++i) {
      const Affine affine = make_affine(minimum[i], maximum[i], static_cast<int>(bits));
      values[i] = affine.scale;
      values[channels + i] = affine.zero_point;
    }
  }
  const float* scale() const { return values.data(); }
  const float* zero_point() const { return values.data() + channels; }
};

AffineTable check_ranges(const char* op, const Tensor& range_min, const Tensor& range_max, const Input& input,
                         int64_t bits) {
  const Tensor minimum = check_range(op, "range_min", range_min, input);
  const Tensor maximum = check_range(op, "range_max", range_max, input);
  const float* low = minimum.const_data_ptr<float>();
  const float* high = maximum.const_data_ptr<float>();
  for (int64_t i = 0; i < input.channels; ++i) {
    TORCH_CHECK_VALUE(!(low[i] > high[i]), op, ": range_min must not exceed range_max, got ", low[i], " > ", high[i],
                      input.channels > 1 ? c10::str(" in channel ", i) : "");
  }
  return {low, high, input.channels, bits};
}

cpu::Job make_job(const Input& input, const AffineTable& table, int64_t bits, Tensor& y) {
  cpu::Job job{};
  job.x = input.x.const_data_ptr();
  job.y = y.mutable_data_ptr();
  job.scale = table.scale();
  job.zero_point = table.zero_point();
  job.channels = input.channels;
  job.inner = input.inner;
  job.bits = static_cast<int32_t>(bits);
  job.dtype = input.dtype;
  return job;
}

template <typename Kernel>
void run(Kernel kernel, const cpu::Job& job, int64_t count) {
  for_each_part(count, 1, [&](int64_t begin, int64_t end) { kernel(job, begin, end); });
}

Tensor fake_quantize_cpu(const Tensor& x, const Tensor& range_min, const Tensor& range_max, int64_t bits, Axis axis,
                         bool /*clip*/) {
  const Input input = check_input("fake_quantize", x, bits, axis);
  const AffineTable table = check_ranges("fake_quantize", range_min, range_max, input, bits);
  Tensor y = at::empty_like(input.x);
  run(kernels().fake_quantize, make_job(input, table, bits, y), x.numel());
  return y;
}

Tensor fake_quantize_backward_cpu(const Tensor& gradient, const Tensor& x, const Tensor& range_min,
                                  const Tensor& range_max, int64_t bits, Axis axis) {
  const Input input = check_input("fake_quantize_backward", x, bits, axis);
  const AffineTable table = check_ranges("fake_quantize_backward", range_min, range_max, input, bits);
  const Tensor incoming = match_layout(gradient, input.x);
  Tensor result = at::empty_like(input.x);
  cpu::Job job = make_job(input, table, bits, result);
  job.gradient = incoming.const_data_ptr();
  run(kernels().fake_quantize_backward, job, x.numel());
  return result;
}

std::tuple<Tensor, Tensor, Tensor> fake_quantize_dynamic_cpu(const Tensor& x, int64_t bits, Axis axis, bool /*clip*/) {
  const Input input = check_input("fake_quantize_dynamic", x, bits, axis);
  const auto options = input.x.options().dtype(at::kFloat).memory_format(std::nullopt);
  Tensor range_min = at::empty(input.range_shape, options);
  Tensor range_max = at::empty(input.range_shape, options);
  float* low = range_min.mutable_data_ptr<float>();
  float* high = range_max.mutable_data_ptr<float>();
  if (x.numel() == 0) {
    std::fill_n(low, input.channels, std::numeric_limits<float>::quiet_NaN());
    std::fill_n(high, input.channels, std::numeric_limits<float>::quiet_NaN());
    return {at::empty_like(input.x), range_min, range_max};
  }
  cpu::Job job{};
  job.x = input.x.const_data_ptr();
  job.channels = input.channels;
  job.inner = input.inner;
  job.dtype = input.dtype;
  find_ranges(job, x.numel(), low, high);
  const AffineTable table(low, high, input.channels, bits);
  Tensor y = at::empty_like(input.x);
  run(kernels().fake_quantize, make_job(input, table, bits, y), x.numel());
  return {y, range_min, range_max};
}

std::tuple<Tensor, Tensor, Tensor> quantize_codes_cpu(const Tensor& x, const Tensor& range_min, const Tensor& range_max,
                                                      int64_t bits, Axis axis) {
  const Input input = check_input("quantize_codes", x, bits, axis);
  const AffineTable table = check_ranges("quantize_codes", range_min, range_max, input, bits);
  Tensor codes = at::empty_like(input.x, input.x.options().dtype(bits <= 8 ? at::kChar : at::kShort));
  run(kernels().quantize_codes, make_job(input, table, bits, codes), x.numel());
  Tensor scale = at::empty(input.range_shape, input.x.options().dtype(at::kFloat));
  Tensor zero_point = at::empty_like(scale);
  std::copy_n(table.scale(), input.channels, scale.mutable_data_ptr<float>());
  std::copy_n(table.zero_point(), input.channels, zero_point.mutable_data_ptr<float>());
  return {codes, scale, zero_point};
}

}  // namespace

TORCH_LIBRARY_IMPL(synq_fast, CPU, m) {
  m.impl("fake_quantize", &fake_quantize_cpu);
  m.impl("fake_quantize_backward", &fake_quantize_backward_cpu);
  m.impl("fake_quantize_dynamic", &fake_quantize_dynamic_cpu);
  m.impl("quantize_codes", &quantize_codes_cpu);
}

}  // namespace synq
