// synq_fast::update_range.
#include "update_range.h"

#include <ATen/ops/empty.h>

#include "moving_average.h"
#include "ops/device.h"
#include "ops/find_ranges.h"
#include "ops/tensors.h"

namespace synq {
namespace {

using at::Tensor;

template <typename T>
T* check_state(const char* op, const char* name, const Tensor& state, const Tensor& x) {
  require_type(state.scalar_type() == c10::CppTypeToScalarType<T>::value, op, name);
  require(state.numel() == 1 && state.device() == x.device(), op, name);
  return state.mutable_data_ptr<T>();
}

template <Device device>
void forward(const Tensor& given, const Tensor& state_min, const Tensor& state_max, const Tensor& step, double beta) {
  const char* op = "update_range";
  const Guard<device> guard(given);
  UpdateRangeParams params{};
  params.dtype = check_dtype(op, "x", given);
  require(given.numel() > 0, op, "x");
  params.state_min = check_state<float>(op, "state_min", state_min, given);
  params.state_max = check_state<float>(op, "state_max", state_max, given);
  params.step = check_state<int64_t>(op, "step", step, given);
  require(beta >= 0 && beta < 1, op, "beta");
  const Tensor x = make_dense(given);
  params.x = x.const_data_ptr();
  params.elements = x.numel();
  params.beta = static_cast<float>(beta);
  params.gain = static_cast<float>(1 - beta);
  // Autograd and views learn from the version that the values have changed.
  for (const Tensor& state : {state_min, state_max, step}) state.unsafeGetTensorImpl()->bump_version();
  if constexpr (device == Device::kCPU) {
    float low;
    float high;
    find_range(params.x, params.elements, params.dtype, &low, &high);
    *params.state_min = move_average(*params.state_min, low, params.beta, params.gain);
    *params.state_max = move_average(*params.state_max, high, params.beta, params.gain);
    ++*params.step;
  } else {
    Tensor workspace;
    if (const int64_t size = update_range_workspace_cuda(params)) {
      workspace = at::empty({size}, floats_like(x));
      params.workspace = workspace.template mutable_data_ptr<float>();
    }
    launch(update_range_cuda, params);
  }
}

template <Device device>
void register_ops(torch::Library& library) {
  library.impl("update_range", &forward<device>);
}

SYNQ_REGISTER(register_ops)

}  // namespace
}  // namespace synq
