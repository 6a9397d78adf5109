// Launch interface of fake quantization to small floats.
#pragma once

#include "fake_quantize.h"

namespace synq {

// Launchers as those of fake_quantize.h; bits are from 3 to 8.
int fake_quantize_minifloat_cuda(const FakeQuantizeParams& params, void* stream);
int fake_quantize_minifloat_backward_cuda(const FakeQuantizeParams& params, void* stream);  // the clipped gradient

}  // namespace synq
