// Launch interface of activation functions before fake quantization over one learned grid.
#pragma once

#include "activation_functions.h"
#include "fake_quantize_learned.h"

namespace synq {

struct ActivationFakeQuantizeParams : FakeQuantizeLearnedParams {
  Activation activation;
  bool minifloat;  // whether levels are small floats; bits are then from 3 to 8
};

// Launchers and workspace as those of fake_quantize_learned.h; the layout has one channel.
int activation_fake_quantize_cuda(const ActivationFakeQuantizeParams& params, void* stream);
int activation_fake_quantize_backward_cuda(const ActivationFakeQuantizeParams& params, void* stream);

}  // namespace synq
