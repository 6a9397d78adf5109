// The CUDA implementations behind synq_fast::fake_quantize and its relatives: allocation, device guard, current stream.
// Nothing here waits for the device, so every op can be captured in a CUDA graph.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <c10/cuda/CUDAGuard.h>
#include <torch/library.h>

#include <limits>
#include <tuple>

#include "ops/arguments.h"
#include "ops/launch.h"

namespace synq {
namespace {

using at::Tensor;
using Optional = std::optional<int64_t>;
using Triple = std::tuple<Tensor, Tensor, Tensor>;

// Holds the contiguous ranges for as long as the launch needs their pointers.
struct Ranges {
  Tensor minimum;
  Tensor maximum;

  Ranges(const char* op, const Tensor& range_min, const Tensor& range_max, const Input& input)
      : minimum(check_range(op, "range_min", range_min, input)),
        maximum(check_range(op, "range_max", range_max, input)) {}

  void fill(FakeQuantizeParams& params) const {
    params.range_min = minimum.const_data_ptr<float>();
    params.range_max = maximum.const_data_ptr<float>();
  }
};

Tensor fake_quantize_cuda_op(const Tensor& x, const Tensor& range_min, const Tensor& range_max, int64_t bits,
                             Optional axis, Optional groups, bool /*clip*/) {
  const c10::cuda::CUDAGuard guard(x.device());
  const Input input = check_input("fake_quantize", x, bits, axis, groups);
  const Ranges ranges("fake_quantize", range_min, range_max, input);
  Tensor y = at::empty_like(input.x);
  if (x.numel() == 0) return y;
  FakeQuantizeParams params = make_params(input, bits);
  ranges.fill(params);
  params.y = y.mutable_data_ptr();
  launch(fake_quantize_cuda, params);
  return y;
}

Tensor fake_quantize_backward_cuda_op(const Tensor& gradient, const Tensor& x, const Tensor& range_min,
                                      const Tensor& range_max, int64_t bits, Optional axis, Optional groups) {
  const c10::cuda::CUDAGuard guard(x.device());
  const Input input = check_input("fake_quantize_backward", x, bits, axis, groups);
  const Ranges ranges("fake_quantize_backward", range_min, range_max, input);
  const Tensor incoming = match_layout("fake_quantize_backward", gradient, input.x);
  Tensor result = at::empty_like(input.x);
  if (x.numel() == 0) return result;
  FakeQuantizeParams params = make_params(input, bits);
  ranges.fill(params);
  params.gradient = incoming.const_data_ptr();
  params.y = result.mutable_data_ptr();
  launch(fake_quantize_backward_cuda, params);
  return result;
}

Triple fake_quantize_dynamic_cuda_op(const Tensor& x, int64_t bits, Optional axis, Optional groups, bool symmetric,
                                     bool /*clip*/) {
  const c10::cuda::CUDAGuard guard(x.device());
  const Input input = check_input("fake_quantize_dynamic", x, bits, axis, groups);
  const auto floats = x.options().dtype(at::kFloat);
  Tensor y = at::empty_like(input.x);
  Tensor range_min = at::empty(input.range_shape, floats);
  Tensor range_max = at::empty(input.range_shape, floats);
  if (x.numel() == 0) {
    const double nan = std::numeric_limits<double>::quiet_NaN();
    return {y, range_min.fill_(nan), range_max.fill_(nan)};
  }
  FakeQuantizeParams params = make_params(input, bits);
  params.symmetric = symmetric;
  const Tensor workspace = at::empty({fake_quantize_dynamic_workspace_cuda(params)}, floats);
  params.y = y.mutable_data_ptr();
  params.out_min = range_min.mutable_data_ptr<float>();
  params.out_max = range_max.mutable_data_ptr<float>();
  params.workspace = workspace.mutable_data_ptr<float>();
  launch(fake_quantize_dynamic_cuda, params);
  return {y, range_min, range_max};
}

Triple quantize_codes_cuda_op(const Tensor& x, const Tensor& range_min, const Tensor& range_max, int64_t bits,
                              Optional axis, Optional groups) {
  const c10::cuda::CUDAGuard guard(x.device());
  const Input input = check_input("quantize_codes", x, bits, axis, groups);
  const Ranges ranges("quantize_codes", range_min, range_max, input);
  Tensor codes = at::empty_like(input.x, input.x.options().dtype(bits <= 8 ? at::kChar : at::kShort));
  Tensor scale = at::empty(input.range_shape, x.options().dtype(at::kFloat));
  Tensor zero_point = at::empty_like(scale);
  if (input.channels == 0) return {codes, scale, zero_point};
  FakeQuantizeParams params = make_params(input, bits);
  ranges.fill(params);
  params.y = codes.mutable_data_ptr();
  params.out_min = scale.mutable_data_ptr<float>();
  params.out_max = zero_point.mutable_data_ptr<float>();
  launch(quantize_codes_cuda, params);
  return {codes, scale, zero_point};
}

}  // namespace

TORCH_LIBRARY_IMPL(synq_fast, CUDA, m) {
  m.impl("fake_quantize", &fake_quantize_cuda_op);
  m.impl("fake_quantize_backward", &fake_quantize_backward_cuda_op);
  m.impl("fake_quantize_dynamic", &fake_quantize_dynamic_cuda_op);
  m.impl("quantize_codes", &quantize_codes_cuda_op);
}

}  // namespace synq
