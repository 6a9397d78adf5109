// Which elements of a stretch of memory are kept, by vectors of counters.
#pragma once

#include <stdint.h>
#include <string.h>

#include "cpu/elements.h"
#include "philox.h"

#if defined(__SSE2__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace synq::cpu {
namespace {

// 32-bit numbers in 64-bit lanes, where their products fit; upper halves may hold anything.
typedef uint64_t WideWords __attribute__((vector_size(SYNQ_VECTOR_BYTES)));
typedef uint32_t NarrowWords __attribute__((vector_size(SYNQ_VECTOR_BYTES)));
typedef int32_t Flags __attribute__((vector_size(SYNQ_VECTOR_BYTES)));
constexpr int kQuads = SYNQ_VECTOR_BYTES / 8;

inline WideWords product(WideWords a, uint32_t factor) {
#if defined(__AVX512F__) && SYNQ_VECTOR_BYTES == 64
  // GCC 12 warns of what the plain form leaves undefined.
  return (WideWords)_mm512_maskz_mul_epu32(0xFF, (__m512i)a, _mm512_set1_epi64(factor));
#elif defined(__AVX2__) && SYNQ_VECTOR_BYTES == 32
  return (WideWords)_mm256_mul_epu32((__m256i)a, _mm256_set1_epi64x(factor));
#elif defined(__SSE2__) && SYNQ_VECTOR_BYTES == 16
  return (WideWords)_mm_mul_epu32((__m128i)a, _mm_set1_epi64x(factor));
#elif defined(__aarch64__) && SYNQ_VECTOR_BYTES == 16
  return (WideWords)vmull_u32(vmovn_u64((uint64x2_t)a), vdup_n_u32(factor));
#else
  return (a & 0xFFFFFFFFu) * factor;
#endif
}

// The even lanes of both, one from each in turn, or the odd ones.
template <int kFirst>
inline WideWords pair_lanes(WideWords a, WideWords b) {
#if defined(__clang__)
  WideWords result;
  for (int i = 0; i < kQuads; i += 2) {
    result[i] = a[i + kFirst];
    result[i + 1] = b[i + kFirst];
  }
  return result;
#else
  WideWords where;
  for (int i = 0; i < kQuads; ++i) where[i] = static_cast<uint64_t>(i / 2 * 2 + kFirst + i % 2 * kQuads);
  return __builtin_shuffle(a, b, where);
#endif
}

class Draws {
 public:
  explicit Draws(Chance chance) : offset_(chance.offset), threshold_(static_cast<int32_t>(chance.threshold)) {
    uint32_t low = static_cast<uint32_t>(chance.seed), high = static_cast<uint32_t>(chance.seed >> 32);
    for (int round = 0; round < kPhiloxRounds; ++round) {
      keys_[round][0] = low;
      keys_[round][1] = high;
      low += kLowKeyStep;
      high += kHighKeyStep;
    }
    // Even lanes hold the first half of the quads and odd lanes the second, so that neighbours come together where two
    // vectors of pairs of words are merged.
    for (int i = 0; i < kQuads; ++i) lanes_[i] = static_cast<uint64_t>(i / 2 + i % 2 * (kQuads / 2));
  }

  // For each of at most kBlock elements from any place on: all bits where it is kept, else none.
  const int32_t* flags(int64_t begin, int64_t count) {
    const int64_t first = (offset_ + begin) / 4;
    const int64_t skipped = offset_ + begin - first * 4;
    for (int64_t i = 0; i < skipped + count; i += 4 * kQuads) draw(first + i / 4, flags_ + i);
    return flags_ + skipped;
  }

 private:
  // Of the quads from the given one on.
  void draw(int64_t quad, int32_t* target) const {
    WideWords a = lanes_ + static_cast<uint64_t>(quad), b = a >> 32, c = {}, d = {};
#pragma GCC unroll 10
    for (int round = 0; round < kPhiloxRounds; ++round) {
      const WideWords first = product(a, kFirstFactor);
      const WideWords second = product(c, kSecondFactor);
      a = (second >> 32) ^ b ^ keys_[round][0];
      b = second;
      c = (first >> 32) ^ d ^ keys_[round][1];
      d = first;
    }
    const WideWords low = WideWords{} + 0xFFFFFFFFu;
    const WideWords front = (a & low) | (b << 32), back = (c & low) | (d << 32);
    store(pair_lanes<0>(front, back), target);
    store(pair_lanes<1>(front, back), target + 2 * kQuads);
  }
  void store(WideWords words, int32_t* target) const {
    const Flags flags = (Flags)((NarrowWords)words >> 8) < threshold_;
    memcpy(target, &flags, sizeof flags);
  }

  WideWords lanes_;
  uint64_t keys_[kPhiloxRounds][2];
  int64_t offset_;
  int32_t threshold_;
  alignas(64) int32_t flags_[kBlock + 4 * kQuads + 4];
};

// Calls body(start, size, flags) for blocks of [begin, end).
template <typename Body>
void for_each_drawn_block(const Chance& chance, int64_t begin, int64_t end, Body body) {
  Draws draws(chance);
  for (int64_t start = begin; start < end; start += kBlock) {
    const int64_t size = end - start < kBlock ? end - start : kBlock;
    body(start, size, draws.flags(start, size));
  }
}

}  // namespace
}  // namespace synq::cpu
