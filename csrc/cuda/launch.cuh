// Launches, and grids of as many blocks as the device holds of a kernel at once.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <map>
#include <mutex>
#include <numeric>
#include <shared_mutex>
#include <tuple>

namespace synq {

constexpr int kThreads = 256;
// Resident blocks a multiprocessor must have room for: at most 64 registers a thread. Without it, ptxas for sm_80 aims
// lower and spills.
constexpr int kMinimumBlocks = 4;
// Parts that a reduction over a whole tensor is divided into, all channels together: several for every block that
// today's devices hold. A constant, so that the order of a sum, and with it its bits, is the same on every device.
#if defined(SYNQ_EMULATION)
constexpr int64_t kReductionParts = emulation::kReductionParts;
#else
constexpr int64_t kReductionParts = 2048;
#endif

inline int64_t ceil_divide(int64_t value, int64_t divisor) { return (value + divisor - 1) / divisor; }

// Blocks of a kernel that the current device holds at once; asked of the runtime once per kernel, device and shape of
// a block. At least one: a kernel that cannot run fails when it is launched.
inline int64_t resident_blocks(const void* kernel, int threads, size_t shared_bytes) {
  using Key = std::tuple<const void*, int, int, size_t>;
  static std::shared_mutex mutex;
  static std::map<Key, int64_t> known;
  int device = 0;
  if (cudaGetDevice(&device) != cudaSuccess) return 1;
  const Key key(kernel, device, threads, shared_bytes);
  {
    const std::shared_lock<std::shared_mutex> lock(mutex);
    const auto found = known.find(key);
    if (found != known.end()) return found->second;
  }
  int multiprocessors = 0;
  int blocks = 0;
  if (cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device) != cudaSuccess ||
      cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, threads, shared_bytes) != cudaSuccess) {
    return 1;
  }
  const int64_t resident = std::max<int64_t>(static_cast<int64_t>(multiprocessors) * blocks, 1);
  const std::unique_lock<std::shared_mutex> lock(mutex);
  known.emplace(key, resident);
  return resident;
}

template <typename... Parameters>
int64_t resident_blocks(void (*kernel)(Parameters...), int threads, size_t shared_bytes = 0) {
  return resident_blocks(reinterpret_cast<const void*>(kernel), threads, shared_bytes);
}

template <typename... Parameters, typename... Arguments>
int launch(void (*kernel)(Parameters...), int64_t blocks, int threads, size_t shared_bytes, void* stream,
           Arguments... arguments) {
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = shared_bytes;
  config.stream = static_cast<cudaStream_t>(stream);
  return cudaLaunchKernelEx(&config, kernel, arguments...);
}

// A kernel whose blocks stride over `items`: no more blocks than there are items, nor than the device holds.
template <typename... Parameters, typename... Arguments>
int launch_striding(void (*kernel)(Parameters...), int64_t items, int threads, size_t shared_bytes, void* stream,
                    Arguments... arguments) {
  const int64_t blocks = std::min(items, resident_blocks(kernel, threads, shared_bytes));
  return launch(kernel, blocks, threads, shared_bytes, stream, arguments...);
}

// The grid of an elementwise kernel whose threads stride over packs.
struct MapGrid {
  int64_t blocks;
  bool periodic;  // the distance between a thread's elements is a multiple of the period
};

// `period` is after how many elements the channels repeat. The distance is made a multiple of it wherever the device
// holds such a grid, so that a thread computes its channels' factors once. No result depends on the grid.
inline MapGrid map_grid(int64_t packs, int64_t block_elements, int64_t period, int64_t resident) {
  const int64_t needed = std::max<int64_t>(ceil_divide(packs, kThreads), 1);
  const int64_t multiple = period / std::gcd(period, block_elements);
  const bool periodic = needed > resident && multiple <= resident;
  return {periodic ? resident / multiple * multiple : std::min(needed, resident), periodic};
}

}  // namespace synq
