#include "ops/range_arguments.h"

#include <c10/util/Exception.h>

#include "ops/tensors.h"

namespace synq {
namespace {

void check_input(const char* op, at::Tensor& x) {
  TORCH_CHECK_VALUE(x.numel() > 0, op, ": x is empty, with shape ", x.sizes());
  if (!x.is_non_overlapping_and_dense()) x = make_dense(x);
}

template <typename T>
T* check_state(const char* name, const at::Tensor& state, const at::Tensor& x) {
  constexpr auto kType = c10::CppTypeToScalarType<T>::value;
  TORCH_CHECK_TYPE(state.scalar_type() == kType, "update_range: ", name, " must be ", kType, ", got ",
                   state.scalar_type());
  TORCH_CHECK_VALUE(state.numel() == 1, "update_range: ", name, " must have one element, got shape ", state.sizes());
  TORCH_CHECK_VALUE(state.device() == x.device(), "update_range: ", name, " is on ", state.device(), " but x is on ",
                    x.device(), "; move both to one device");
  return state.mutable_data_ptr<T>();
}

}  // namespace

UpdateRangeParams check_update_range(at::Tensor& x, const at::Tensor& state_min, const at::Tensor& state_max,
                                     const at::Tensor& step, double beta) {
  UpdateRangeParams params{};
  params.dtype = check_dtype("update_range", "x", x);
  params.state_min = check_state<float>("state_min", state_min, x);
  params.state_max = check_state<float>("state_max", state_max, x);
  params.step = check_state<int64_t>("step", step, x);
  TORCH_CHECK_VALUE(beta >= 0 && beta < 1, "update_range: beta must be at least 0 and below 1, got ", beta);
  check_input("update_range", x);
  params.x = x.const_data_ptr();
  params.elements = x.numel();
  params.beta = static_cast<float>(beta);
  params.gain = static_cast<float>(1 - beta);
  // Autograd and views learn from the version that the values have changed.
  for (const at::Tensor& state : {state_min, state_max, step}) state.unsafeGetTensorImpl()->bump_version();
  return params;
}

SearchRangeParams check_search_range(at::Tensor& x, int64_t bits, int64_t candidates, double norm) {
  SearchRangeParams params{};
  params.dtype = check_dtype("search_range", "x", x);
  TORCH_CHECK_VALUE(bits >= 2 && bits <= 16, "search_range: bits must be from 2 to 16, got ", bits);
  TORCH_CHECK_VALUE(candidates >= 1 && candidates <= kMaximumCandidates, "search_range: candidates must be from 1 to ",
                    kMaximumCandidates, ", got ", candidates);
  TORCH_CHECK_VALUE(norm > 0 && norm <= kMaximumNorm, "search_range: norm must be above 0 and at most ", kMaximumNorm,
                    ", got ", norm);
  check_input("search_range", x);
  params.x = x.const_data_ptr();
  params.elements = x.numel();
  params.candidates = static_cast<int32_t>(candidates);
  params.bits = static_cast<int32_t>(bits);
  params.norm = static_cast<float>(norm);
  return params;
}

}  // namespace synq
