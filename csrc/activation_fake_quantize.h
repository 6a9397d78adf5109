// Interfaces of the kernels of activation functions before fake quantization over one learned grid.
#pragma once

#include <stdint.h>

#include "cpu/dispatch.h"
#include "cpu/fake_quantize.h"
#include "fake_quantize_learned.h"

namespace synq {

// In the order of ACTIVATIONS in synq_fast/ops/_activation_fake_quantize.py.
enum class Activation : int32_t { kGelu = 0, kSilu = 1, kHardswish = 2 };
constexpr int64_t kActivations = 3;

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

struct ActivationFakeQuantizeParams : FakeQuantizeLearnedParams {
  Activation activation;
  bool minifloat;  // whether levels are small floats; bits are then from 3 to 8
};

// Launchers and workspace as those of fake_quantize_learned.h; the layout has one channel.
int activation_fake_quantize_cuda(const ActivationFakeQuantizeParams& params, void* stream);
int activation_fake_quantize_backward_cuda(const ActivationFakeQuantizeParams& params, void* stream);

namespace cpu {

struct ActivationJob : Job {
  Activation activation;
  bool minifloat;
};

struct ActivationFakeQuantizeKernels {
  void (*forward)(const ActivationJob& job, int64_t begin, int64_t end);
  // Writes the gradient of x for the flat indices [begin, end) and adds LearnedTerms to both sums.
  void (*backward)(const ActivationJob& job, int64_t begin, int64_t end, double* of_scale, double* of_zero);
};

SYNQ_DECLARE_TABLES(ActivationFakeQuantizeKernels, activation_fake_quantize_kernels);

}  // namespace cpu
}  // namespace synq
