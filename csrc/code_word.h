// Eight codes of 2 to 8 bits in a word of 64 bits, for every compiler; kernels/_code_words.py has it in Triton.
//
// A word of codes has one in each byte, the first in the lowest. A packed word has them side by side in its lowest
// 8 * kBits bits. On the way codes move together by doubling: pairs, pairs of pairs, halves. `Word` is uint64_t or a
// vector of these.
#pragma once

#include <stdint.h>

#include <type_traits>

#include "layout.h"

namespace synq {
namespace {

constexpr uint64_t every_byte(uint64_t value) { return value * 0x0101010101010101u; }

template <unsigned kBits>
struct CodeWord {
  static constexpr unsigned kGap = 8 - kBits;
  static constexpr uint64_t kHalf = every_byte(uint64_t{1} << (kBits - 1));
  static constexpr uint64_t kCodes = every_byte((uint64_t{1} << kBits) - 1);
  // The lower of two neighbours: codes, pairs, pairs of pairs. The upper one lies beside it once they are together.
  static constexpr uint64_t kCode = ((uint64_t{1} << kBits) - 1) * 0x0001000100010001u;
  static constexpr uint64_t kPair = ((uint64_t{1} << 2 * kBits) - 1) * 0x0000000100000001u;
  static constexpr uint64_t kQuad = (uint64_t{1} << 4 * kBits) - 1;

  // Bits of a code beyond its width are dropped.
  template <typename Word>
  SYNQ_INLINE_EVERYWHERE static Word pack(Word codes) {
    Word word = (codes ^ kHalf) & kCodes;
    if constexpr (kBits < 8) {
      word = (word & kCode) | ((word >> kGap) & (kCode << kBits));
      word = (word & kPair) | ((word >> 2 * kGap) & (kPair << 2 * kBits));
      word = (word & kQuad) | ((word >> 4 * kGap) & (kQuad << 4 * kBits));
    }
    return word;
  }

  // What lies above the packed codes is ignored.
  template <typename Word>
  SYNQ_INLINE_EVERYWHERE static Word unpack(Word word) {
    if constexpr (kBits < 8) {
      word = (word & kQuad) | ((word & (kQuad << 4 * kBits)) << 4 * kGap);
      word = (word & kPair) | ((word & (kPair << 2 * kBits)) << 2 * kGap);
      word = (word & kCode) | ((word & (kCode << kBits)) << kGap);
      // The highest bit keeps the difference from borrowing of the next byte.
      word = ((word | every_byte(128)) - kHalf) ^ every_byte(128);
    } else {
      word = word ^ kHalf;
    }
    return word;
  }
};

template <unsigned kValue>
using Bits = std::integral_constant<unsigned, kValue>;

// Calls call(Bits<bits>()).
template <typename Call>
auto with_bits(int bits, Call call) {
  switch (bits) {
    case 2:
      return call(Bits<2>());
    case 3:
      return call(Bits<3>());
    case 4:
      return call(Bits<4>());
    case 5:
      return call(Bits<5>());
    case 6:
      return call(Bits<6>());
    case 7:
      return call(Bits<7>());
    default:
      return call(Bits<8>());
  }
}

}  // namespace
}  // namespace synq
