// The CPU kernels that pack codes, on every instruction set that can run here.
#include "pack_codes.h"

#include "code_word.h"
#include "kernels.h"

namespace {

using namespace synq;
using namespace synq::test;

constexpr int kWidths[] = {2, 3, 4, 5, 6, 7, 8};
struct Shape {
  int64_t rows;
  int64_t length;
};
constexpr Shape kShapes[] = {{1, 1}, {1, 8}, {3, 5}, {1, 63}, {5, 27}, {2, 130}, {1, 1000}, {1, 4099}, {3, 2049}};

// Bit by bit.
std::vector<uint8_t> streams_of(const std::vector<uint8_t>& codes, const PackCodesParams& params) {
  std::vector<uint8_t> streams(static_cast<size_t>(params.rows * params.bytes()));
  for (int64_t row = 0; row < params.rows; ++row) {
    for (int64_t i = 0; i < params.length * params.bits; ++i) {
      const uint8_t code = codes[static_cast<size_t>(row * params.length + i / params.bits)];
      const int bit = (code + (1 << (params.bits - 1))) >> (i % params.bits) & 1;
      streams[static_cast<size_t>(row * params.bytes() + i / 8)] |= static_cast<uint8_t>(bit << i % 8);
    }
  }
  return streams;
}

PackCodesParams make_params(const Shape& shape, int bits) {
  PackCodesParams params{};
  params.rows = shape.rows;
  params.length = shape.length;
  params.bits = bits;
  return params;
}

// The codes of a row's groups begin and end here; of bytes likewise.
int64_t place_of(const PackCodesParams& params, int64_t group, bool in_codes) {
  const int64_t row = group / params.groups(), first = group - row * params.groups();
  if (in_codes) return row * params.length + first * kCodesPerGroup;
  return row * params.bytes() + first * params.bits;
}

// Any split of the groups gives what is expected, and no part writes outside its own.
template <typename Kernel>
void check_groups(const PackCodesParams& given, const std::vector<uint8_t>& input, const std::vector<uint8_t>& expected,
                  bool packing, Place place, Kernel kernel) {
  const Buffer<uint8_t> x(input, place);
  const int64_t count = static_cast<int64_t>(expected.size());
  Buffer<uint8_t> y(count, place);
  PackCodesParams params = given;
  params.x = x.data();
  params.y = y.data();
  const int64_t groups = params.rows * params.groups();
  for (const Split& split : splits(groups)) {
    y.clear();
    for (const auto& [begin, end] : split) {
      std::vector<uint8_t> before(y.data(), y.data() + count);
      kernel(params, begin, end);
      const int64_t from = place_of(params, begin, !packing), to = place_of(params, end, !packing);
      CHECK_ALL_EQUAL(y.data(), before.data(), from);
      CHECK_ALL_EQUAL(y.data() + to, before.data() + to, count - to);
    }
    CHECK_ALL_EQUAL(y.data(), expected.data(), count);
    if (place != Place::kEnd) continue;
    y.clear();
    in_threads(split, [&](int64_t begin, int64_t end) { kernel(params, begin, end); });
    CHECK_ALL_EQUAL(y.data(), expected.data(), count);
  }
}

}  // namespace

TEST(codes_become_streams_and_streams_codes) {
  for (const auto& set : SYNQ_TABLES(cpu::pack_codes_kernels)) {
    for (const int bits : kWidths) {
      for (const Place place : kPlaces) {
        for (const Shape& shape : kShapes) {
          WHERE(set.isa, bits, name_of(place), shape.rows, shape.length);
          const PackCodesParams params = make_params(shape, bits);
          std::mt19937 random(static_cast<unsigned>(shape.length));
          std::vector<uint8_t> any, codes;
          for (int64_t i = 0; i < shape.rows * shape.length; ++i) {
            any.push_back(static_cast<uint8_t>(random()));
            // Of a code beyond its width the lowest bits stay.
            const int half = 1 << (bits - 1);
            codes.push_back(static_cast<uint8_t>(((any.back() + half) & (2 * half - 1)) - half));
          }
          const std::vector<uint8_t> streams = streams_of(codes, params);
          check_groups(params, any, streams, true, place, set.table.pack);
          check_groups(params, streams, codes, false, place, set.table.unpack);
        }
      }
    }
  }
}

TEST(what_lies_above_a_packed_word_is_ignored) {
  for (const int bits : kWidths) {
    WHERE(bits);
    with_bits(bits, [&](auto width) {
      using Word = CodeWord<decltype(width)::value>;
      const uint64_t codes = 0x80ff007f01fe5aa5u;
      const uint64_t word = Word::pack(codes);
      const uint64_t above = bits == 8 ? 0 : ~uint64_t{0} << (8 * bits);
      CHECK_EQUAL(word & above, uint64_t{0});
      CHECK_EQUAL(Word::unpack(word | above), Word::unpack(word));
      CHECK_EQUAL(Word::pack(Word::unpack(word)), word);
    });
  }
}
