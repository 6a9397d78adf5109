// What the elements of a pack draw, and operations that keep elements by chance.
#pragma once

#include <type_traits>

#include "../philox.h"
#include "memory.cuh"

namespace synq {

struct ChanceArguments {
  const int64_t* seed;
  uint32_t threshold;
  int64_t offset;

  __device__ __forceinline__ Chance load() const { return {static_cast<uint64_t>(*seed), threshold, offset}; }
};

// Such an operation derives from this; its Arguments have a member `chance`, and its `apply` takes whether the element
// is kept as its last argument.
struct WithChance {
  Chance chance;

  __device__ __forceinline__ explicit WithChance(const ChanceArguments& given) : chance(given.load()) {}
};

template <typename Operation>
constexpr bool kHasChance = std::is_base_of_v<WithChance, Operation>;

// A bit for each element of a quad.
__device__ __forceinline__ unsigned quad_flags(const Chance& chance, int64_t quad) {
  const Words words = draw(chance, quad);
  unsigned flags = 0;
#pragma unroll
  for (int i = 0; i < 4; ++i) flags |= static_cast<unsigned>(keeps(chance, words.values[i])) << i;
  return flags;
}

// A bit for each of the kCount elements from `place` on.
template <int kCount>
__device__ __forceinline__ unsigned pack_flags(const Chance& chance, int64_t place) {
  const int64_t drawn = chance.offset + place;
  const int64_t first = drawn / 4;
  const int skipped = static_cast<int>(drawn - first * 4);
  unsigned flags = quad_flags(chance, first);
#pragma unroll
  for (int i = 1; i < kCount / 4; ++i) flags |= quad_flags(chance, first + i) << 4 * i;
  // The same for all packs: memory, or what is drawn, may begin off a boundary.
  if (kCount > 1 && skipped > 0) flags |= quad_flags(chance, first + kCount / 4) << kCount;
  return flags >> skipped;
}

// What a pack draws; nothing where the operation leaves nothing to chance.
template <typename Operation, int kCount>
struct DrawnPack {
  unsigned flags = 0;

  __device__ __forceinline__ DrawnPack(const Operation& operation, int64_t place) {
    if constexpr (kHasChance<Operation>) flags = pack_flags<kCount>(operation.chance, place);
  }
  __device__ __forceinline__ bool keeps(int i) const { return flags >> i & 1; }
};

}  // namespace synq
