// One library with the CUDA source of the low-pass filters, for ctypes.
#include "cuda_on_cpu.h"

namespace emulation {
// So little that the images of most tests are several chunks.
inline int64_t& chunk_bytes() {
  static int64_t bytes = 4096;
  return bytes;
}
}  // namespace emulation

// clang-format off: the source needs the definitions above
#include "../../csrc/cuda/low_pass.cu"
#include "../../csrc/cuda/low_pass_matrix.cu"
// clang-format on

namespace synq {
namespace {
alignas(16) thread_local float low_pass_shared[12 * 1024];

// One warp: c = a * b with a (16, 8), b (8, 8), c (16, 8), all by rows. Elements are spread as PTX says.
void multiply_kernel(const float* a, const float* b, float* c) {
  const int group = threadIdx.x / 4, member = threadIdx.x % 4;
  const uint32_t left[4] = {to_tf32(a[group * 8 + member]), to_tf32(a[(group + 8) * 8 + member]),
                            to_tf32(a[group * 8 + member + 4]), to_tf32(a[(group + 8) * 8 + member + 4])};
  const uint32_t right[2] = {to_tf32(b[member * 8 + group]), to_tf32(b[(member + 4) * 8 + group])};
  float sums[4] = {};
  multiply_add(sums, left, right);
  for (int i = 0; i < 4; ++i) c[(group + i / 2 * 8) * 8 + 2 * member + i % 2] = sums[i];
}
}  // namespace
}  // namespace synq

extern "C" {
void set_chunk_bytes(int64_t bytes) { emulation::chunk_bytes() = bytes; }
int64_t low_pass_matrix_size(int64_t n) { return synq::low_pass_matrix_size(n); }
int low_pass_matrix(const synq::LowPassMatrixParams* p) { return synq::low_pass_matrix_cuda(*p, nullptr); }
int64_t low_pass_workspace(const synq::LowPassParams* p) { return synq::low_pass_workspace_cuda(*p); }
int low_pass(const synq::LowPassParams* p) { return synq::low_pass_cuda(*p, nullptr); }
int multiply(const float* a, const float* b, float* c) {
  return synq::launch(synq::multiply_kernel, 1, 32, 0, nullptr, a, b, c);
}
void split(float value, bool finite, float* parts) {
  const synq::Split result = finite ? synq::split_finite(value) : synq::split(value);
  parts[0] = synq::tf32_as_float(result.high);
  parts[1] = synq::tf32_as_float(result.low & synq::kTf32Bits);
}
}
