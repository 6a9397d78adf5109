// Launch interface of GELU before fake quantization over one learned grid.
#pragma once

#include "fake_quantize_learned.h"

namespace synq {

// Launchers and workspace as those of fake_quantize_learned.h; the layout has one channel.
int gelu_fake_quantize_cuda(const FakeQuantizeLearnedParams& params, void* stream);
int gelu_fake_quantize_backward_cuda(const FakeQuantizeLearnedParams& params, void* stream);

}  // namespace synq
