// Element types, 128-bit packs and the launch configuration shared by the kernels.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "../dtype.h"

namespace synq {

constexpr int kThreads = 256;
// Resident blocks a multiprocessor must have room for: at most 64 registers a thread. Without it, ptxas for sm_80 aims
// lower and spills.
constexpr int kMinimumBlocks = 4;
constexpr int kPackBytes = 16;
// Two full waves of 256 threads: enough to hide latency, few enough that each thread reuses its quantizer.
constexpr int64_t kBlocksPerMultiprocessor = 16;

__device__ __forceinline__ float to_float(float value) { return value; }
__device__ __forceinline__ float to_float(__half value) { return __half2float(value); }
__device__ __forceinline__ float to_float(__nv_bfloat16 value) { return __bfloat162float(value); }

template <typename T>
__device__ __forceinline__ T from_float(float value);
template <>
__device__ __forceinline__ float from_float<float>(float value) {
  return value;
}
template <>
__device__ __forceinline__ __half from_float<__half>(float value) {
  return __float2half_rn(value);
}
template <>
__device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float value) {
  return __float2bfloat16_rn(value);
}

template <typename T, int kCount>
struct alignas(sizeof(T) * kCount) Pack {
  T values[kCount];
};

template <int kCount, typename T>
__device__ __forceinline__ Pack<T, kCount> load_pack(const T* pointer) {
  return *reinterpret_cast<const Pack<T, kCount>*>(pointer);
}

template <int kCount, typename T>
__device__ __forceinline__ void store_pack(T* pointer, const Pack<T, kCount>& pack) {
  *reinterpret_cast<Pack<T, kCount>*>(pointer) = pack;
}

template <typename T>
constexpr int pack_size() {
  return kPackBytes / static_cast<int>(sizeof(T));
}

inline int64_t ceil_divide(int64_t value, int64_t divisor) { return (value + divisor - 1) / divisor; }

inline bool is_aligned(const void* pointer, size_t bytes) { return reinterpret_cast<uintptr_t>(pointer) % bytes == 0; }

// Elements before the first 16-byte boundary.
template <typename T>
int64_t elements_to_boundary(const T* pointer) {
  const uintptr_t past = reinterpret_cast<uintptr_t>(pointer) % kPackBytes;
  return past == 0 ? 0 : static_cast<int64_t>((kPackBytes - past) / sizeof(T));
}

// Blocks that fill the current device.
inline int64_t resident_blocks() {
  int device = 0;
  int multiprocessors = 1;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
  return kBlocksPerMultiprocessor * multiprocessors;
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

template <typename T>
struct Tag {
  using Type = T;
};

template <typename Function>
int with_element_type(DType dtype, Function&& function) {
  switch (dtype) {
    case DType::kFloat32:
      return function(Tag<float>());
    case DType::kFloat16:
      return function(Tag<__half>());
    case DType::kBFloat16:
      return function(Tag<__nv_bfloat16>());
  }
  return cudaErrorInvalidValue;
}

}  // namespace synq
