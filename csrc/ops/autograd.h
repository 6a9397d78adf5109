// What the autograd nodes of all ops share.
#pragma once

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <optional>
#include <string>

namespace synq {

// The op of a name such as "synq_fast::low_pass". Look it up once, in a static.
template <typename Signature>
c10::TypedOperatorHandle<Signature> find_op(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

// What backward ops say that have no derivative themselves, in the error that torch raises where a derivative is
// missing; synq_fast/ops/_op.py says the same.
[[noreturn]] inline void refuse_second_derivative(const char* name) {
  C10_THROW_ERROR(NotImplementedError, std::string(name) + " can be differentiated once");
}

inline bool needs_node(const at::Tensor& input) { return at::GradMode::is_enabled() && input.requires_grad(); }

inline bool needs_node(const std::optional<at::Tensor>& input) {
  return input && input->defined() && needs_node(*input);
}

}  // namespace synq
