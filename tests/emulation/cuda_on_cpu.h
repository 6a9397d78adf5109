// Enough of CUDA's language to run the kernels of csrc/cuda, unchanged, on a CPU: blocks one after another, a block's
// threads as coroutines that change places at barriers. Blocks and threads come in random order, shared memory is
// poisoned before each block, and what a GPU would fault on ends the launch (faults.h).
// Included before each .cu file by the tests.
#pragma once

#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <type_traits>
#include <vector>

#include "coroutine.h"
#include "faults.h"
#include "schedule.h"
#include "shared_memory.h"

#undef __global__
#undef __device__
#undef __host__
#undef __shared__
#undef __forceinline__
#undef __launch_bounds__
#undef __grid_constant__
#define __global__
#define __device__
#define __host__
// Static inside a function, and still allowed after `extern`.
#define __shared__ thread_local
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define SYNQ_EMULATION

struct Index {
  unsigned x = 0, y = 0, z = 0;
};
inline Index threadIdx, blockIdx, blockDim, gridDim;
constexpr int warpSize = 32;

namespace emulation {

enum class State { kReady, kAtBlockBarrier, kAtWarpBarrier, kDone };

struct Block {
  Resumption scheduler;
  std::vector<Coroutine> threads;
  std::vector<State> states;
  std::vector<uint64_t> exchange;
  std::vector<unsigned> order;
  unsigned current = 0;
  std::function<void()> body;
};

inline Block& block() {
  static Block instance;
  return instance;
}

// Each number of multiprocessors is a device of its own; each device holds this many blocks on one of them.
constexpr int kBlocksPerMultiprocessor = 16;
// Few enough that small tensors have parts of several steps.
constexpr int64_t kReductionParts = 16;

inline int& multiprocessors() {
  static int count = 1;
  return count;
}

// A store to global memory by its own instruction, which faults on any other.
template <typename T>
void store_global(T* pointer, T value) {
  if (shared_memory().contains(pointer)) fault("a store to global memory with an address in shared memory");
  *pointer = value;
}

inline int64_t launches = 0;

// Runs the threads of one block after another with this index.
inline void enter() {
  for (Block& b = block();;) {
    b.body();
    b.states[b.current] = State::kDone;
    change_places(b.threads[b.current].resumption, b.scheduler);
  }
}

// Forgets threads that stopped in the middle.
inline cudaError_t abandon(cudaError_t error) {
  for (Coroutine& thread : block().threads) thread.started = false;
  return error;
}

// Releases threads [first, last) once all that still run wait at the barrier.
inline void release(unsigned first, unsigned last, State barrier) {
  Block& b = block();
  for (unsigned i = first; i < last; ++i) {
    if (b.states[i] != barrier && b.states[i] != State::kDone) return;
  }
  for (unsigned i = first; i < last; ++i) {
    if (b.states[i] == barrier) b.states[i] = State::kReady;
  }
}

// Returns an error when the threads wait for each other forever, or when one of them faults.
inline cudaError_t run_block(unsigned count, const std::function<void()>& body) {
  Block& b = block();
  b.body = body;
  if (b.threads.size() < count) b.threads.resize(count);
  b.states.assign(count, State::kReady);
  b.exchange.assign(count, 0);
  b.order = random_order(count);
  faults().any = false;
  faults().scheduler = &b.scheduler;
  poison_shared_memory();
  for (bool finished = false; !finished;) {
    bool moved = false;
    finished = true;
    shuffle(b.order);
    for (const unsigned i : b.order) {
      if (b.states[i] == State::kReady) {
        b.current = i;
        threadIdx.x = i;
        faults().in_thread = true;
        go_on(b.scheduler, b.threads[i], enter);
        faults().in_thread = false;
        if (faults().any) return abandon(cudaErrorAssert);
        moved = true;
      }
      finished = finished && b.states[i] == State::kDone;
    }
    if (!finished && !moved) return abandon(cudaErrorLaunchTimeout);
    for (unsigned first = 0; first < count; first += warpSize) {
      release(first, first + warpSize < count ? first + warpSize : count, State::kAtWarpBarrier);
    }
    release(0, count, State::kAtBlockBarrier);
  }
  return cudaSuccess;
}

inline void wait(State barrier) {
  Block& b = block();
  b.states[b.current] = barrier;
  change_places(b.threads[b.current].resumption, b.scheduler);
}

// The value that another lane of the warp gives; its own where that lane does not exist. Every lane that the mask names
// must be there.
template <typename T>
T exchange(unsigned mask, T value, unsigned lane) {
  static_assert(sizeof(T) <= sizeof(uint64_t));
  Block& b = block();
  const unsigned self = b.current;
  const unsigned first = self / warpSize * warpSize;
  const unsigned source = first + lane;
  if ((mask >> (self - first) & 1) == 0) fault("an exchange by a lane that its mask leaves out");
  std::memcpy(&b.exchange[self], &value, sizeof value);
  wait(State::kAtWarpBarrier);
  for (unsigned i = first; i < first + warpSize && i < b.states.size(); ++i) {
    if ((mask >> (i - first) & 1) != 0 && b.states[i] == State::kDone) fault("an exchange with a lane that has left");
  }
  T result = value;
  if (lane < warpSize && source < b.states.size()) std::memcpy(&result, &b.exchange[source], sizeof result);
  wait(State::kAtWarpBarrier);
  return result;
}

inline float as_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// Ten bits of mantissa; halves go away from zero, infinities and NaN stay.
inline uint32_t to_tf32(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return std::isfinite(value) ? (bits + 0x1000u) & 0xffffe000u : bits & 0xffffe000u;
}

// mma.m16n8k8 with TF32 operands; who holds what is said in csrc/cuda/mma.cuh. Drops the operands' bits beyond TF32 and
// rounds each sum to float32.
inline void multiply_add_16x8x8(float (&sums)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  uint32_t held_a[warpSize][4], held_b[warpSize][2];
  for (unsigned lane = 0; lane < warpSize; ++lane) {
    for (int i = 0; i < 4; ++i) held_a[lane][i] = 0;
    for (int i = 0; i < 2; ++i) held_b[lane][i] = 0;
  }
  Block& block_now = block();
  const unsigned self = block_now.current;
  const unsigned first = self / warpSize * warpSize;
  // Two operands fit into one word of the exchange.
  for (int part = 0; part < 3; ++part) {
    const uint32_t* given = part < 2 ? a + 2 * part : b;
    std::memcpy(&block_now.exchange[self], given, sizeof(uint64_t));
    wait(State::kAtWarpBarrier);
    for (unsigned lane = 0; lane < warpSize; ++lane) {
      uint32_t* held = part < 2 ? held_a[lane] + 2 * part : held_b[lane];
      std::memcpy(held, &block_now.exchange[first + lane], sizeof(uint64_t));
    }
    wait(State::kAtWarpBarrier);
  }
  const unsigned group = self % warpSize / 4, member = self % 4;
  for (unsigned i = 0; i < 4; ++i) {
    const unsigned row = group + i / 2 * 8, column = 2 * member + i % 2;
    for (unsigned k = 0; k < 8; ++k) {
      const uint32_t left = held_a[row % 8 * 4 + k % 4][row / 8 + 2 * (k / 4)];
      const uint32_t right = held_b[column * 4 + k % 4][k / 4];
      sums[i] += as_float(left & 0xffffe000u) * as_float(right & 0xffffe000u);
    }
  }
}

}  // namespace emulation

inline void __syncthreads() { emulation::wait(emulation::State::kAtBlockBarrier); }
inline void __syncwarp(unsigned = 0xffffffffu) { emulation::wait(emulation::State::kAtWarpBarrier); }

template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int distance, int = warpSize) {
  return emulation::exchange(mask, value, (threadIdx.x % warpSize) ^ static_cast<unsigned>(distance));
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int = warpSize) {
  return emulation::exchange(mask, value, threadIdx.x % warpSize + delta);
}
template <typename T>
T __shfl_sync(unsigned mask, T value, int lane, int = warpSize) {
  return emulation::exchange(mask, value, static_cast<unsigned>(lane) % warpSize);
}

#define cudaLaunchKernelEx emulated_launch
template <typename... Parameters, typename... Arguments>
cudaError_t emulated_launch(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...), Arguments&&... arguments) {
  if (config->gridDim.x == 0 || config->blockDim.x > 1024 || config->dynamicSmemBytes > 46 * 1024) {
    return cudaErrorInvalidConfiguration;
  }
  ++emulation::launches;
  blockDim.x = config->blockDim.x;
  gridDim = {config->gridDim.x, config->gridDim.y, config->gridDim.z};
  for (const unsigned i : emulation::random_order(gridDim.x * gridDim.y * gridDim.z)) {
    blockIdx = {i % gridDim.x, i / gridDim.x % gridDim.y, i / gridDim.x / gridDim.y};
    const cudaError_t error = emulation::run_block(config->blockDim.x, [&] { kernel(arguments...); });
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

extern "C" {
inline cudaError_t CUDARTAPI cudaGetDevice(int* device) {
  *device = emulation::multiprocessors();
  return cudaSuccess;
}

inline cudaError_t CUDARTAPI cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
  *value = emulation::multiprocessors();
  return cudaSuccess;
}

inline cudaError_t CUDARTAPI cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void*, int, size_t) {
  *blocks = emulation::kBlocksPerMultiprocessor;
  return cudaSuccess;
}

__attribute__((used)) inline void set_seed(uint64_t seed) { emulation::seed() = seed; }
__attribute__((used)) inline void set_multiprocessors(int count) { emulation::multiprocessors() = count; }
__attribute__((used)) inline int64_t launch_count() { return emulation::launches; }
}
