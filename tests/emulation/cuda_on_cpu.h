// Enough of CUDA's language to run the kernels of csrc/cuda, unchanged, on a CPU: blocks one after another, a block's
// threads as coroutines that change places at __syncthreads. Included before each .cu file by the tests.
#pragma once

#include <cuda_runtime.h>
#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <functional>
#include <type_traits>
#include <vector>

#undef __global__
#undef __device__
#undef __host__
#undef __shared__
#undef __forceinline__
#undef __launch_bounds__
#define __global__
#define __device__
#define __host__
// Static inside a function, and still allowed after `extern`.
#define __shared__ thread_local
#define __forceinline__ inline
#define __launch_bounds__(...)

struct Index {
  unsigned x = 0;
};
inline Index threadIdx, blockIdx, blockDim, gridDim;

namespace emulation {

struct Block {
  ucontext_t scheduler;
  std::vector<ucontext_t> threads;
  std::vector<std::vector<char>> stacks;
  std::vector<bool> done;
  unsigned current = 0;
  std::function<void()> body;
};

inline Block& block() {
  static Block instance;
  return instance;
}

inline int& multiprocessors() {
  static int count = 1;
  return count;
}

inline int64_t launches = 0;

inline void enter() {
  block().body();
  block().done[block().current] = true;
}

// Threads resume in order, and run to the next barrier or to the end.
inline void run_block(unsigned count, const std::function<void()>& body) {
  Block& b = block();
  b.body = body;
  b.threads.resize(count);
  b.stacks.resize(count, std::vector<char>(32 * 1024));
  b.done.assign(count, false);
  for (unsigned i = 0; i < count; ++i) {
    getcontext(&b.threads[i]);
    b.threads[i].uc_stack.ss_sp = b.stacks[i].data();
    b.threads[i].uc_stack.ss_size = b.stacks[i].size();
    b.threads[i].uc_link = &b.scheduler;
    makecontext(&b.threads[i], enter, 0);
  }
  for (bool running = true; running;) {
    running = false;
    for (unsigned i = 0; i < count; ++i) {
      if (b.done[i]) continue;
      b.current = i;
      threadIdx.x = i;
      swapcontext(&b.scheduler, &b.threads[i]);
      running = running || !b.done[i];
    }
  }
}

inline void barrier() {
  Block& b = block();
  swapcontext(&b.threads[b.current], &b.scheduler);
}

}  // namespace emulation

inline void __syncthreads() { emulation::barrier(); }

#define cudaLaunchKernelEx emulated_launch
template <typename... Parameters, typename... Arguments>
cudaError_t emulated_launch(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...), Arguments&&... arguments) {
  if (config->gridDim.x == 0 || config->blockDim.x > 1024 || config->dynamicSmemBytes > 46 * 1024) {
    return cudaErrorInvalidConfiguration;
  }
  ++emulation::launches;
  blockDim.x = config->blockDim.x;
  gridDim.x = config->gridDim.x;
  for (unsigned i = 0; i < config->gridDim.x; ++i) {
    blockIdx.x = i;
    emulation::run_block(config->blockDim.x, [&] { kernel(arguments...); });
  }
  return cudaSuccess;
}
