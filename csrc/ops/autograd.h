// What the autograd nodes of all ops share.
#pragma once

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/mul.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <algorithm>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

namespace synq {

// The op of a name such as "synq_fast::low_pass". Look it up once, in a static.
template <typename Signature>
c10::TypedOperatorHandle<Signature> find_op(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

// What backward ops say that have no derivative themselves, in the error that torch raises where a derivative is
// missing; synq_fast/ops/_autograd.py says the same.
[[noreturn]] inline void refuse_second_derivative(const char* name) {
  C10_THROW_ERROR(NotImplementedError, std::string(name) + " can be differentiated once");
}

// The kernels know no forward-mode derivatives; without this they would be zero. The public functions leave them to the
// reference.
[[noreturn]] inline void refuse_forward_mode() {
  C10_THROW_ERROR(NotImplementedError,
                  "this op of synq_fast has no forward-mode derivative in its kernels; call the function of the same "
                  "name in synq_fast.ops, which then runs the reference, or use reverse mode");
}

// Whether the op must record a node for this input; raises where the input has a forward-mode tangent.
inline bool needs_node(const at::Tensor& input) {
  if (input._fw_grad(/*level=*/0).defined()) refuse_forward_mode();
  return at::GradMode::is_enabled() && input.requires_grad();
}

inline bool needs_node(const std::optional<at::Tensor>& input) {
  return input && input->defined() && needs_node(*input);
}

inline bool needs_node(at::TensorList inputs) {
  for (const at::Tensor& input : inputs) {
    if (needs_node(input)) return true;
  }
  return false;
}

inline std::optional<at::Tensor> present(const at::Tensor& value) {
  return value.defined() ? std::optional<at::Tensor>(value) : std::nullopt;
}

// What gradient rules may call; synq_fast/ops/_autograd.py has the same.
inline at::ScalarType dtype_of(const at::Tensor& x) { return x.scalar_type(); }

inline bool is_channels_last(const at::Tensor& images) { return images.dim() == 4 && images.sym_stride(1) == 1; }

inline std::vector<c10::SymInt> strides_of(const at::Tensor& x) { return x.sym_strides().vec(); }

inline at::Tensor scale_images(const at::Tensor& x, const at::Tensor& factors, at::ScalarType dtype) {
  return at::mul(x, factors.unsqueeze(-1).unsqueeze(-1)).to(dtype);
}

}  // namespace synq
