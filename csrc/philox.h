// Philox 4x32-10 (Salmon et al., SC 2011): what an element draws, for every compiler. cpu/draws.h has it in vectors,
// kernels/_philox.py in Triton.
#pragma once

#include <stdint.h>

#include "layout.h"

namespace synq {

// An element is kept where the 24 upper bits of its word are below the threshold, 2^24 times the probability. A tensor
// may be a part of a longer one: its first element draws what element `offset` of that does.
struct Chance {
  uint64_t seed;
  uint32_t threshold;
  int64_t offset = 0;
};

namespace {

struct Words {
  uint32_t values[4];
};

constexpr int kPhiloxRounds = 10;
constexpr uint32_t kFirstFactor = 0xD2511F53u;
constexpr uint32_t kSecondFactor = 0xCD9E8D57u;
constexpr uint32_t kLowKeyStep = 0x9E3779B9u;
constexpr uint32_t kHighKeyStep = 0xBB67AE85u;

SYNQ_INLINE_EVERYWHERE Words philox(Words counter, uint32_t low_key, uint32_t high_key) {
  uint32_t a = counter.values[0], b = counter.values[1], c = counter.values[2], d = counter.values[3];
#if defined(__CUDA_ARCH__)
#pragma unroll
#endif
  for (int round = 0; round < kPhiloxRounds; ++round) {
    const uint64_t first = static_cast<uint64_t>(kFirstFactor) * a;
    const uint64_t second = static_cast<uint64_t>(kSecondFactor) * c;
    a = static_cast<uint32_t>(second >> 32) ^ b ^ low_key;
    b = static_cast<uint32_t>(second);
    c = static_cast<uint32_t>(first >> 32) ^ d ^ high_key;
    d = static_cast<uint32_t>(first);
    low_key += kLowKeyStep;
    high_key += kHighKeyStep;
  }
  return {{a, b, c, d}};
}

// One of four words in turn: element i draws word i % 4 of counter i / 4.
SYNQ_INLINE_EVERYWHERE Words draw(const Chance& chance, int64_t quad) {
  const uint64_t counter = static_cast<uint64_t>(quad);
  return philox({{static_cast<uint32_t>(counter), static_cast<uint32_t>(counter >> 32), 0, 0}},
                static_cast<uint32_t>(chance.seed), static_cast<uint32_t>(chance.seed >> 32));
}

SYNQ_INLINE_EVERYWHERE bool keeps(const Chance& chance, uint32_t word) { return (word >> 8) < chance.threshold; }

}  // namespace
}  // namespace synq
