// Launch interface of fake quantization over a logarithmic grid.
#pragma once

#include "fake_quantize_learned.h"

namespace synq {

// Launchers and workspace as those of fake_quantize_learned.h; zero points and their gradients are not read or written.
int fake_quantize_log_cuda(const FakeQuantizeLearnedParams& params, void* stream);
int fake_quantize_log_backward_cuda(const FakeQuantizeLearnedParams& params, void* stream);

}  // namespace synq
