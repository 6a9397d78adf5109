// Element types and 128-bit packs.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>

#include "../dtype.h"
#include "launch.cuh"

namespace synq {

constexpr int kPackBytes = 16;

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

// Of what nothing reads again: it leaves the cache before anything else. Plain for single elements.
template <int kCount, typename T>
__device__ __forceinline__ Pack<T, kCount> load_pack_once(const T* pointer) {
#if defined(__CUDA_ARCH__)
  if constexpr (kCount * sizeof(T) == sizeof(uint4)) {
    uint4 word;
    asm("ld.global.cs.v4.b32 {%0, %1, %2, %3}, [%4];"
        : "=r"(word.x), "=r"(word.y), "=r"(word.z), "=r"(word.w)
        : "l"(__cvta_generic_to_global(pointer)));
    Pack<T, kCount> pack;
    memcpy(&pack, &word, sizeof pack);
    return pack;
  } else if constexpr (kCount * sizeof(T) == sizeof(uint2)) {
    uint2 word;
    asm("ld.global.cs.v2.b32 {%0, %1}, [%2];" : "=r"(word.x), "=r"(word.y) : "l"(__cvta_generic_to_global(pointer)));
    Pack<T, kCount> pack;
    memcpy(&pack, &word, sizeof pack);
    return pack;
  }
#endif
  return load_pack<kCount>(pointer);
}

// One instruction each.
__device__ __forceinline__ void store_word(uint4* pointer, uint4 word) {
#if defined(SYNQ_EMULATION)
  emulation::store_global(pointer, word);
#else
  asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(pointer)), "r"(word.x),
               "r"(word.y), "r"(word.z), "r"(word.w)
               : "memory");
#endif
}
__device__ __forceinline__ void store_word(uint2* pointer, uint2 word) {
#if defined(SYNQ_EMULATION)
  emulation::store_global(pointer, word);
#else
  asm volatile("st.global.v2.b32 [%0], {%1, %2};" ::"l"(__cvta_generic_to_global(pointer)), "r"(word.x), "r"(word.y)
               : "memory");
#endif
}
__device__ __forceinline__ void store_word(unsigned* pointer, unsigned word) {
#if defined(SYNQ_EMULATION)
  emulation::store_global(pointer, word);
#else
  asm volatile("st.global.b32 [%0], %1;" ::"l"(__cvta_generic_to_global(pointer)), "r"(word) : "memory");
#endif
}

template <typename Word, typename Packed>
__device__ __forceinline__ void store_words(void* pointer, const Packed& pack) {
  constexpr int kWords = sizeof(Packed) / sizeof(Word);
  Word words[kWords];
  memcpy(words, &pack, sizeof(pack));
#pragma unroll
  for (int i = 0; i < kWords; ++i) store_word(static_cast<Word*>(pointer) + i, words[i]);
}

// To global memory, in stores of 128 bits or one of the whole pack. The compiler splits the copy of a struct into its
// elements wherever the loop is unrolled or a call lies between.
template <int kCount, typename T>
__device__ __forceinline__ void store_pack(T* pointer, const Pack<T, kCount>& pack) {
  if constexpr (kCount == 1) {
    *pointer = pack.values[0];
  } else if constexpr (sizeof(pack) % sizeof(uint4) == 0) {
    store_words<uint4>(pointer, pack);
  } else if constexpr (sizeof(pack) == sizeof(uint2)) {
    store_words<uint2>(pointer, pack);
  } else {
    static_assert(sizeof(pack) == sizeof(unsigned));
    store_words<unsigned>(pointer, pack);
  }
}

// To shared memory, where a store to global memory would fault.
template <int kCount, typename T>
__device__ __forceinline__ void store_shared_pack(T* pointer, const Pack<T, kCount>& pack) {
  *reinterpret_cast<Pack<T, kCount>*>(pointer) = pack;
}

template <typename T>
constexpr int pack_size() {
  return kPackBytes / static_cast<int>(sizeof(T));
}

inline bool is_aligned(const void* pointer, size_t bytes) { return reinterpret_cast<uintptr_t>(pointer) % bytes == 0; }

// Elements before the first 16-byte boundary.
template <typename T>
int64_t elements_to_boundary(const T* pointer) {
  const uintptr_t past = reinterpret_cast<uintptr_t>(pointer) % kPackBytes;
  return past == 0 ? 0 : static_cast<int64_t>((kPackBytes - past) / sizeof(T));
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
