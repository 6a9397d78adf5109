// Operations with a residual: a second operand laid out as x, and its gradient beside that of x.
#pragma once

#include <type_traits>

#include "memory.cuh"

namespace synq {

struct ResidualArguments {
  const void* residual;
  void* grad_residual;  // null: not wanted
};

// Such an operation derives from this; its Arguments have a member `beside`, and its `apply` takes the residual after
// the gradient and gives the gradient of the residual as its last argument, unless it hides kGivesGradient.
template <typename T>
struct WithResidual {
  static constexpr bool kGivesGradient = true;
  const T* residual;
  T* grad_residual;

  __device__ __forceinline__ explicit WithResidual(const ResidualArguments& given)
      : residual(static_cast<const T*>(given.residual)), grad_residual(static_cast<T*>(given.grad_residual)) {}
};

template <typename Operation>
constexpr bool kHasResidual = std::is_base_of_v<WithResidual<typename Operation::Input>, Operation>;

template <typename Operation, bool = kHasResidual<Operation>>
constexpr bool kGivesResidualGradient = false;
template <typename Operation>
constexpr bool kGivesResidualGradient<Operation, true> = Operation::kGivesGradient;

// The residual's values and gradients of one pack; nothing where there is no residual.
template <typename Operation, int kCount>
struct ResidualPack {
  using T = typename Operation::Input;
  Pack<T, kCount> values;
  Pack<T, kCount> gradients;

  __device__ __forceinline__ ResidualPack(const Operation& operation, int64_t place) {
    if constexpr (kHasResidual<Operation>) values = load_pack<kCount>(operation.residual + place);
  }
  __device__ __forceinline__ void store(const Operation& operation, int64_t place) const {
    if constexpr (kGivesResidualGradient<Operation>) {
      if (operation.grad_residual != nullptr) store_pack<kCount>(operation.grad_residual + place, gradients);
    }
  }
};

// Whether packs of x that begin at element `head` are packs of the residual and of its gradient too.
template <typename Operation>
bool is_residual_aligned(const typename Operation::Arguments& operation, int64_t head) {
  if constexpr (kHasResidual<Operation>) {
    using T = typename Operation::Input;
    const T* gradients = static_cast<const T*>(operation.beside.grad_residual);
    return is_aligned(static_cast<const T*>(operation.beside.residual) + head, kPackBytes) &&
           (gradients == nullptr || is_aligned(gradients + head, kPackBytes));
  }
  return true;
}

}  // namespace synq
