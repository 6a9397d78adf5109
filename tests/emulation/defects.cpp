// Kernels with a defect each, beside their right forms: what the emulator must see, for ctypes.
#include "cuda_on_cpu.h"
// clang-format off: the source needs the definitions above
#include "../../csrc/cuda/memory.cuh"
// clang-format on

namespace synq {
namespace {

// Each thread reads what its neighbour stored.
template <bool kBarrier>
__global__ void rotate_kernel(float* y) {
  __shared__ float shared[kThreads];
  shared[threadIdx.x] = static_cast<float>(threadIdx.x);
  if (kBarrier) __syncthreads();
  y[threadIdx.x] = shared[(threadIdx.x + 1) % kThreads];
}

// The second round writes what the first may not have read.
template <bool kBarrier>
__global__ void reuse_kernel(float* y) {
  __shared__ float shared;
  for (int round = 0; round < 2; ++round) {
    if (threadIdx.x == 0) shared = static_cast<float>(round);
    __syncthreads();
    y[round * kThreads + threadIdx.x] = shared;
    if (kBarrier) __syncthreads();
  }
}

// The first block stores, the second only reads.
template <bool kStored>
__global__ void unwritten_kernel(float* y) {
  __shared__ float shared[kThreads];
  if (kStored || blockIdx.x == 0) shared[threadIdx.x] = 1.0f;
  y[blockIdx.x * kThreads + threadIdx.x] = shared[threadIdx.x];
}

// Blocks that count on those before them.
__global__ void ordered_kernel(float* y) {
  if (threadIdx.x == 0) y[blockIdx.x] = blockIdx.x == 0 ? 0.0f : y[blockIdx.x - 1] + 1.0f;
}

__global__ void load_kernel(const float* x, float* y) { *y = load_pack<4>(x).values[0]; }
__global__ void store_kernel(float* y) { store_pack<4>(y, Pack<float, 4>{}); }
__global__ void shared_store_kernel(bool global) {
  __shared__ __align__(kPackBytes) float shared[4];
  global ? store_pack<4>(shared, Pack<float, 4>{}) : store_shared_pack<4>(shared, Pack<float, 4>{});
}
__global__ void index_kernel(int index, float* y) {
  __shared__ float shared[4];
  shared[index] = 1.0f;
  *y = shared[index];
}
__global__ void sum_kernel(int by, int* y) { *y = 0x7fffffff + by; }
__global__ void shift_kernel(int by, int* y) { *y = 1 << by; }
__global__ void null_kernel(float* y) { *y = 1.0f; }
__global__ void divergent_kernel(float* y, int threads) {
  if (static_cast<int>(threadIdx.x) < threads) __syncthreads();
  __shfl_xor_sync(0xffffffffu, 1.0f, 1);
  *y = 1.0f;
}
__global__ void exchange_kernel(float* y, int lanes) {
  if (static_cast<int>(threadIdx.x) >= lanes) return;
  *y = __shfl_xor_sync(0xffffffffu, 1.0f, 1);
}
__global__ void mask_kernel(float* y, unsigned mask) { *y = __shfl_xor_sync(mask, 1.0f, 1); }

}  // namespace
}  // namespace synq

#define SYNQ_LAUNCH(blocks, threads, kernel, ...) synq::launch(synq::kernel, blocks, threads, 0, nullptr, ##__VA_ARGS__)

extern "C" {
int rotate(float* y, bool right) {
  return right ? SYNQ_LAUNCH(1, 256, rotate_kernel<true>, y) : SYNQ_LAUNCH(1, 256, rotate_kernel<false>, y);
}
int reuse(float* y, bool right) {
  return right ? SYNQ_LAUNCH(1, 256, reuse_kernel<true>, y) : SYNQ_LAUNCH(1, 256, reuse_kernel<false>, y);
}
int unwritten(float* y, bool right) {
  return right ? SYNQ_LAUNCH(2, 256, unwritten_kernel<true>, y) : SYNQ_LAUNCH(2, 256, unwritten_kernel<false>, y);
}
int ordered(float* y) { return SYNQ_LAUNCH(64, 32, ordered_kernel, y); }
int load(float* y, bool right) { return SYNQ_LAUNCH(1, 1, load_kernel, y + (right ? 0 : 1), y); }
int store(float* y, bool right) { return SYNQ_LAUNCH(1, 1, store_kernel, y + (right ? 0 : 1)); }
int shared_store(float*, bool right) { return SYNQ_LAUNCH(1, 1, shared_store_kernel, !right); }
int past_the_end(float* y, bool right) { return SYNQ_LAUNCH(1, 1, index_kernel, right ? 3 : 4, y); }
int sum(float* y, bool right) { return SYNQ_LAUNCH(1, 1, sum_kernel, right ? 0 : 1, reinterpret_cast<int*>(y)); }
int shift(float* y, bool right) { return SYNQ_LAUNCH(1, 1, shift_kernel, right ? 30 : 32, reinterpret_cast<int*>(y)); }
int null(float* y, bool right) { return SYNQ_LAUNCH(1, 1, null_kernel, right ? y : nullptr); }
int divergent(float* y, bool right) { return SYNQ_LAUNCH(1, 64, divergent_kernel, y, right ? 64 : 16); }
int exchange(float* y, bool right) { return SYNQ_LAUNCH(1, 32, exchange_kernel, y, right ? 32 : 16); }
int mask(float* y, bool right) { return SYNQ_LAUNCH(1, 32, mask_kernel, y, right ? 0xffffffffu : 0xfffffffeu); }
}
