// One library with every CUDA source of the fake quantization family, for ctypes.
#include "cuda_on_cpu.h"
// clang-format off: the sources need the definitions above
#include "../../csrc/cuda/fake_quantize.cu"
#include "../../csrc/cuda/quantize_codes.cu"
#include "../../csrc/cuda/fake_quantize_dynamic.cu"
#include "../../csrc/cuda/fake_quantize_learned.cu"
#include "../../csrc/cuda/relu_fake_quantize.cu"
#include "../../csrc/cuda/fake_quantize_log.cu"
#include "../../csrc/cuda/fake_quantize_minifloat.cu"
#include "../../csrc/cuda/activation_fake_quantize.cu"
// clang-format on

namespace synq {
namespace {
alignas(16) thread_local unsigned char row_bytes[48 * 1024];
}
}  // namespace synq

extern "C" {
int64_t dynamic_workspace(const synq::FakeQuantizeParams* p) { return synq::fake_quantize_dynamic_workspace_cuda(*p); }
int forward(const synq::FakeQuantizeParams* p) { return synq::fake_quantize_cuda(*p, nullptr); }
int backward(const synq::FakeQuantizeParams* p) { return synq::fake_quantize_backward_cuda(*p, nullptr); }
int codes(const synq::FakeQuantizeParams* p) { return synq::quantize_codes_cuda(*p, nullptr); }
int dynamic(const synq::FakeQuantizeParams* p) { return synq::fake_quantize_dynamic_cuda(*p, nullptr); }

int learned(const synq::FakeQuantizeLearnedParams* p) { return synq::fake_quantize_learned_cuda(*p, nullptr); }
int64_t learned_workspace(const synq::FakeQuantizeLearnedParams* p) {
  return synq::fake_quantize_learned_workspace_cuda(*p);
}
int learned_backward(const synq::FakeQuantizeLearnedParams* p) {
  return synq::fake_quantize_learned_backward_cuda(*p, nullptr);
}
int learned_dropped(const synq::FakeQuantizeLearnedParams* p) {
  return synq::fake_quantize_learned_dropped_cuda(*p, nullptr);
}
int learned_dropped_backward(const synq::FakeQuantizeLearnedParams* p) {
  return synq::fake_quantize_learned_dropped_backward_cuda(*p, nullptr);
}

int activation(const synq::ActivationFakeQuantizeParams* p) { return synq::activation_fake_quantize_cuda(*p, nullptr); }
int activation_backward(const synq::ActivationFakeQuantizeParams* p) {
  return synq::activation_fake_quantize_backward_cuda(*p, nullptr);
}

int log_grid(const synq::FakeQuantizeLearnedParams* p) { return synq::fake_quantize_log_cuda(*p, nullptr); }
int log_grid_backward(const synq::FakeQuantizeLearnedParams* p) {
  return synq::fake_quantize_log_backward_cuda(*p, nullptr);
}

int minifloat(const synq::FakeQuantizeParams* p) { return synq::fake_quantize_minifloat_cuda(*p, nullptr); }
int minifloat_backward(const synq::FakeQuantizeParams* p) {
  return synq::fake_quantize_minifloat_backward_cuda(*p, nullptr);
}

int relu(const synq::ReluFakeQuantizeParams* p) { return synq::relu_fake_quantize_cuda(*p, nullptr); }
int relu_backward(const synq::ReluFakeQuantizeParams* p) { return synq::relu_fake_quantize_backward_cuda(*p, nullptr); }
int affine_relu(const synq::ReluFakeQuantizeParams* p) { return synq::affine_relu_fake_quantize_cuda(*p, nullptr); }
int64_t affine_relu_workspace(const synq::ReluFakeQuantizeParams* p) {
  return synq::affine_relu_fake_quantize_workspace_cuda(*p);
}
int affine_relu_backward(const synq::ReluFakeQuantizeParams* p) {
  return synq::affine_relu_fake_quantize_backward_cuda(*p, nullptr);
}
}
