// Codes as streams of bits, for one instruction set; what fake_quantize.cpp says about shared code holds here too.
#include "pack_codes.h"

#include <string.h>

#include "code_word.h"

namespace synq::cpu {
namespace {

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "words are read from bytes as they lie");

// Longer vectors lose more by taking words in and out than they gain.
constexpr int64_t kWords = SYNQ_VECTOR_BYTES < 32 ? SYNQ_VECTOR_BYTES / 8 : 4;
typedef uint64_t Words __attribute__((vector_size(kWords * 8)));

// Some codes from the start of a group on, in their row.
struct Run {
  const uint8_t* x;
  uint8_t* y;
  int64_t codes;
};

// Whether no code lies in two bytes: then compilers find the vectors themselves.
template <unsigned kBits>
constexpr bool kInBytes = 8 % kBits == 0;

template <unsigned kBits>
void pack_bytes(const uint8_t* __restrict x, uint8_t* __restrict y, int64_t bytes) {
  constexpr int64_t kPerByte = 8 / kBits;
  for (int64_t i = 0; i < bytes; ++i) {
    unsigned byte = 0;
    for (int64_t j = 0; j < kPerByte; ++j) {
      byte |= ((x[i * kPerByte + j] ^ (1u << (kBits - 1))) & ((1u << kBits) - 1)) << (j * kBits);
    }
    y[i] = static_cast<uint8_t>(byte);
  }
}

template <unsigned kBits>
void unpack_bytes(const uint8_t* __restrict x, uint8_t* __restrict y, int64_t bytes) {
  constexpr int64_t kPerByte = 8 / kBits;
  for (int64_t i = 0; i < bytes; ++i) {
    for (int64_t j = 0; j < kPerByte; ++j) {
      const unsigned value = (x[i] >> (j * kBits)) & ((1u << kBits) - 1);
      y[i * kPerByte + j] = static_cast<uint8_t>(value - (1u << (kBits - 1)));
    }
  }
}

// Packs as many whole groups as it can with stores of 8 bytes, of which the next one overwrites what is too much, and
// returns how many these are. Nothing behind the groups is written.
template <unsigned kBits>
int64_t pack_words(const uint8_t* __restrict x, uint8_t* __restrict y, int64_t groups) {
  int64_t group = 0;
  for (; (group + kWords - 1) * kBits + 8 <= groups * kBits; group += kWords) {
    Words words;
    memcpy(&words, x + group * kCodesPerGroup, sizeof words);
    words = CodeWord<kBits>::pack(words);
    for (int64_t i = 0; i < kWords; ++i) {
      const uint64_t word = words[i];
      memcpy(y + (group + i) * kBits, &word, sizeof word);
    }
  }
  return group;
}

// The same with loads: nothing behind the groups is read.
template <unsigned kBits>
int64_t unpack_words(const uint8_t* __restrict x, uint8_t* __restrict y, int64_t groups) {
  int64_t group = 0;
  for (; (group + kWords - 1) * kBits + 8 <= groups * kBits; group += kWords) {
    Words words;
    for (int64_t i = 0; i < kWords; ++i) {
      uint64_t word;
      memcpy(&word, x + (group + i) * kBits, sizeof word);
      words[i] = word;
    }
    words = CodeWord<kBits>::unpack(words);
    memcpy(y + group * kCodesPerGroup, &words, sizeof words);
  }
  return group;
}

struct Pack {
  template <unsigned kBits>
  static void run(const Run& run) {
    const int64_t groups = run.codes / kCodesPerGroup;
    int64_t group = groups;
    if constexpr (kInBytes<kBits>) {
      pack_bytes<kBits>(run.x, run.y, groups * kBits);
    } else {
      group = pack_words<kBits>(run.x, run.y, groups);
    }
    for (; group < groups; ++group) store<kBits>(run, group, kCodesPerGroup);
    const int64_t rest = run.codes - groups * kCodesPerGroup;
    if (rest > 0) store<kBits>(run, groups, rest);
  }

  template <unsigned kBits>
  static void store(const Run& run, int64_t group, int64_t count) {
    uint64_t word = 0;
    memcpy(&word, run.x + group * kCodesPerGroup, static_cast<size_t>(count));
    word = CodeWord<kBits>::pack(word);
    if (count < kCodesPerGroup) word &= (uint64_t{1} << (count * kBits)) - 1;
    memcpy(run.y + group * kBits, &word, static_cast<size_t>((count * kBits + 7) / 8));
  }

  static Run at(const PackCodesParams& params, int64_t row, int64_t group, int64_t codes) {
    return {params.x + row * params.length + group * kCodesPerGroup,
            params.y + row * params.bytes() + group * params.bits, codes};
  }
};

struct Unpack {
  template <unsigned kBits>
  static void run(const Run& run) {
    const int64_t groups = run.codes / kCodesPerGroup;
    int64_t group = groups;
    if constexpr (kInBytes<kBits>) {
      unpack_bytes<kBits>(run.x, run.y, groups * kBits);
    } else {
      group = unpack_words<kBits>(run.x, run.y, groups);
    }
    for (; group < groups; ++group) store<kBits>(run, group, kCodesPerGroup);
    const int64_t rest = run.codes - groups * kCodesPerGroup;
    if (rest > 0) store<kBits>(run, groups, rest);
  }

  template <unsigned kBits>
  static void store(const Run& run, int64_t group, int64_t count) {
    uint64_t word = 0;
    memcpy(&word, run.x + group * kBits, static_cast<size_t>((count * kBits + 7) / 8));
    word = CodeWord<kBits>::unpack(word);
    memcpy(run.y + group * kCodesPerGroup, &word, static_cast<size_t>(count));
  }

  static Run at(const PackCodesParams& params, int64_t row, int64_t group, int64_t codes) {
    return {params.x + row * params.bytes() + group * params.bits,
            params.y + row * params.length + group * kCodesPerGroup, codes};
  }
};

// Row by row.
template <typename Direction>
void for_groups(const PackCodesParams& params, int64_t begin, int64_t end) {
  with_bits(params.bits, [&](auto bits) {
    const int64_t groups = params.groups();
    for (int64_t next, place = begin; place < end; place = next) {
      const int64_t row = place / groups;
      const int64_t first = place - row * groups;
      next = end < (row + 1) * groups ? end : (row + 1) * groups;
      const int64_t last = (first + next - place) * kCodesPerGroup;
      const int64_t codes = (last < params.length ? last : params.length) - first * kCodesPerGroup;
      Direction::template run<decltype(bits)::value>(Direction::at(params, row, first, codes));
    }
  });
}

}  // namespace

SYNQ_DEFINE_TABLE(PackCodesKernels, pack_codes_kernels) = {for_groups<Pack>, for_groups<Unpack>};

}  // namespace synq::cpu
