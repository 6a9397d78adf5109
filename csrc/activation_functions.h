// The activation functions that ops take by a number, for every compiler.
#pragma once

#include <stdint.h>

namespace synq {

// In the order of ACTIVATIONS in synq_fast/ops/_activation_fake_quantize.py.
enum class Activation : int32_t { kGelu = 0, kSilu = 1, kHardswish = 2 };
constexpr int64_t kActivations = 3;

namespace {

template <Activation activation>
struct ActivationTag {
  static constexpr Activation kActivation = activation;
};

// Calls body(tag) with the tag of an activation function.
template <typename Body>
auto with_activation(Activation activation, Body body) {
  switch (activation) {
    case Activation::kSilu:
      return body(ActivationTag<Activation::kSilu>{});
    case Activation::kHardswish:
      return body(ActivationTag<Activation::kHardswish>{});
    default:
      return body(ActivationTag<Activation::kGelu>{});
  }
}

}  // namespace
}  // namespace synq
