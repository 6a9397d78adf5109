// Codes as streams of bits, and back.
//
// Where all rows make one stream and memory is aligned, a thread handles two groups at a time: 16 codes in one access,
// their bytes in as few as the width allows. What is left, and everything else, goes byte by byte, a group a thread.
#include "../pack_codes.h"

#include "../code_word.h"
#include "memory.cuh"

namespace synq {
namespace {

struct Streams {
  const uint8_t* x;
  uint8_t* y;
  int64_t rows;
  int64_t length;
  int64_t groups;  // of a row
  int64_t bytes;   // of a row
  int64_t pairs;   // of groups that are handled together, from the first on
};

// The packed bytes of two groups, as words of the widest type that always lies aligned.
template <unsigned kBits>
struct PackedPair {
  static constexpr int kBytes = 2 * kBits;
  static constexpr int kAligned = kBytes & -kBytes;
  using Piece =
      std::conditional_t<kAligned == 2, uint16_t,
                         std::conditional_t<kAligned == 4, unsigned, std::conditional_t<kAligned == 8, uint2, uint4>>>;
  static constexpr int kPieces = kBytes / static_cast<int>(sizeof(Piece));

  __device__ __forceinline__ static void store(uint64_t first, uint64_t second, uint8_t* target) {
    uint64_t words[2] = {first, second};
    if constexpr (kBits < 8) {
      words[0] |= second << 8 * kBits;
      words[1] = second >> (64 - 8 * kBits);
    }
    Piece pieces[sizeof(words) / sizeof(Piece)];
    memcpy(pieces, words, sizeof(words));
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
      if constexpr (sizeof(Piece) == sizeof(uint16_t)) {
        reinterpret_cast<Piece*>(target)[i] = pieces[i];
      } else {
        store_word(reinterpret_cast<Piece*>(target) + i, pieces[i]);
      }
    }
  }

  // Each word may have bits of the other above its own.
  __device__ __forceinline__ static void load(const uint8_t* source, uint64_t& first, uint64_t& second) {
    uint64_t words[2] = {0, 0};
    Piece pieces[sizeof(words) / sizeof(Piece)] = {};
#pragma unroll
    for (int i = 0; i < kPieces; ++i) pieces[i] = reinterpret_cast<const Piece*>(source)[i];
    memcpy(words, pieces, sizeof(words));
    first = words[0];
    second = words[1];
    if constexpr (kBits < 8) second = words[1] << (64 - 8 * kBits) | words[0] >> 8 * kBits;
  }
};

// At most 8 bytes as a word.
__device__ __forceinline__ uint64_t load_bytes(const uint8_t* source, int count) {
  uint64_t word = 0;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    if (i < count) word |= static_cast<uint64_t>(source[i]) << 8 * i;
  }
  return word;
}

__device__ __forceinline__ void store_bytes(uint64_t word, uint8_t* target, int count) {
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    if (i < count) target[i] = static_cast<uint8_t>(word >> 8 * i);
  }
}

struct Packing {
  template <unsigned kBits>
  __device__ __forceinline__ static void pair(const Streams& streams, int64_t place) {
    uint64_t words[2];
    const uint4 codes = reinterpret_cast<const uint4*>(streams.x)[place];
    memcpy(words, &codes, sizeof(words));
    PackedPair<kBits>::store(CodeWord<kBits>::pack(words[0]), CodeWord<kBits>::pack(words[1]),
                             streams.y + place * PackedPair<kBits>::kBytes);
  }
  template <unsigned kBits>
  __device__ __forceinline__ static void group(const Streams& streams, int64_t codes, int64_t packed, int count) {
    uint64_t word = CodeWord<kBits>::pack(load_bytes(streams.x + codes, count));
    if (count < kCodesPerGroup) word &= (uint64_t{1} << count * kBits) - 1;
    store_bytes(word, streams.y + packed, (count * static_cast<int>(kBits) + 7) / 8);
  }
};

struct Unpacking {
  template <unsigned kBits>
  __device__ __forceinline__ static void pair(const Streams& streams, int64_t place) {
    uint64_t words[2];
    PackedPair<kBits>::load(streams.x + place * PackedPair<kBits>::kBytes, words[0], words[1]);
    words[0] = CodeWord<kBits>::unpack(words[0]);
    words[1] = CodeWord<kBits>::unpack(words[1]);
    uint4 codes;
    memcpy(&codes, words, sizeof(codes));
    store_word(reinterpret_cast<uint4*>(streams.y) + place, codes);
  }
  template <unsigned kBits>
  __device__ __forceinline__ static void group(const Streams& streams, int64_t codes, int64_t packed, int count) {
    const uint64_t word = load_bytes(streams.x + packed, (count * static_cast<int>(kBits) + 7) / 8);
    store_bytes(CodeWord<kBits>::unpack(word), streams.y + codes, count);
  }
};

template <typename Direction, unsigned kBits>
__global__ void __launch_bounds__(kThreads, kMinimumBlocks) streams_kernel(const Streams streams) {
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const int64_t threads = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t pair = thread; pair < streams.pairs; pair += threads) Direction::template pair<kBits>(streams, pair);
  for (int64_t place = 2 * streams.pairs + thread; place < streams.rows * streams.groups; place += threads) {
    const int64_t row = streams.rows == 1 ? 0 : place / streams.groups;
    const int64_t group = place - row * streams.groups;
    const int64_t left = streams.length - group * kCodesPerGroup;
    Direction::template group<kBits>(streams, row * streams.length + group * kCodesPerGroup,
                                     row * streams.bytes + group * kBits,
                                     static_cast<int>(left < kCodesPerGroup ? left : kCodesPerGroup));
  }
}

template <typename Direction>
int launch_streams(const PackCodesParams& params, void* stream) {
  return with_bits(params.bits, [&](auto bits) {
    constexpr unsigned kBits = decltype(bits)::value;
    Streams streams = {params.x, params.y, params.rows, params.length, params.groups(), params.bytes(), 0};
    const bool packing = std::is_same_v<Direction, Packing>;
    const bool aligned = is_aligned(packing ? params.x : params.y, sizeof(uint4)) &&
                         is_aligned(packing ? params.y : params.x, PackedPair<kBits>::kAligned);
    if (aligned && params.rows == 1) streams.pairs = params.length / (2 * kCodesPerGroup);
    const int64_t work = std::max(streams.pairs, params.rows * streams.groups - 2 * streams.pairs);
    return launch_striding(streams_kernel<Direction, kBits>, ceil_divide(work, kThreads), kThreads, 0, stream, streams);
  });
}

}  // namespace

int pack_codes_cuda(const PackCodesParams& params, void* stream) { return launch_streams<Packing>(params, stream); }

int unpack_codes_cuda(const PackCodesParams& params, void* stream) { return launch_streams<Unpacking>(params, stream); }

}  // namespace synq
