// Philox beside what its authors publish, its vectors beside the plain form, and the kernels of random_mix.
#include "random_mix.h"

#include "isa/draws.h"
#include "kernels.h"

namespace {

using namespace synq;
using namespace synq::test;

struct Vector {
  Words counter;
  uint32_t low_key, high_key;
  Words expected;
};

// Random123, tests/kat_vectors, philox4x32 10.
constexpr Vector kPublished[] = {
    {{{0, 0, 0, 0}}, 0, 0, {{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}}},
    {{{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}},
     0xffffffff,
     0xffffffff,
     {{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}}},
    {{{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}},
     0xa4093822,
     0x299f31d0,
     {{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}}},
};

constexpr Chance kChances[] = {{0, 1u << 23, 6},
                               {0x243f6a8885a308d3u, 14680064},
                               {~uint64_t{0}, 0, 3},
                               {uint64_t{1} << 63, 1u << 24, int64_t{1} << 40},
                               {7, 1u << 22, (int64_t{1} << 34) - 517}};

bool is_kept(const Chance& chance, int64_t i) {
  const int64_t place = chance.offset + i;
  return keeps(chance, draw(chance, place / 4).values[place % 4]);
}

template <typename T>
RandomMixParams make_params(const int64_t& seed, const Chance& chance, DType dtype, const Buffer<T>& a,
                            const Buffer<T>& b, T* y) {
  RandomMixParams params{};
  params.a = a.data();
  params.b = b.data();
  params.y = y;
  params.seed = &seed;
  params.elements = a.count();
  params.threshold = chance.threshold;
  params.offset = chance.offset;
  params.dtype = dtype;
  return params;
}

}  // namespace

TEST(published_vectors) {
  for (const Vector& vector : kPublished) {
    const Words words = philox(vector.counter, vector.low_key, vector.high_key);
    for (int i = 0; i < 4; ++i) CHECK_EQUAL(words.values[i], vector.expected.values[i]);
  }
}

TEST(vectors_draw_what_elements_draw) {
  // The counter's lower half ends within the last but one.
  const int64_t starts[] = {0, 1, 2, 3, 509, 4 * (int64_t{1} << 32) - 37, int64_t{1} << 61};
  for (const auto& set : SYNQ_TABLES(cpu::draws_kernels)) {
    for (const Chance& chance : kChances) {
      for (const int64_t start : starts) {
        for (const int64_t count : {0, 1, 3, 4, 31, 512, 515, 1100}) {
          WHERE(set.isa, chance.seed, chance.threshold, start, count);
          std::vector<int32_t> expected;
          for (int64_t i = start; i < start + count; ++i) expected.push_back(is_kept(chance, i) ? -1 : 0);
          Buffer<int32_t> flags(count);
          set.table.flags(chance, start, start + count, flags.data());
          CHECK_ALL_EQUAL(flags.data(), expected.data(), count);
        }
      }
    }
  }
}

TEST(a_mixture_and_its_gradients) {
  for (const auto& set : SYNQ_TABLES(cpu::random_mix_kernels)) {
    for (const DType dtype : kDTypes) {
      for (const Place place : kPlaces) {
        for (const int64_t count : {1, 5, 64, 513, 1999}) {
          const Chance chance = kChances[static_cast<size_t>(count) % std::size(kChances)];
          const int64_t seed = static_cast<int64_t>(chance.seed);
          WHERE(set.isa, name_of(dtype), name_of(place), count);
          cpu::with_type(dtype, [&](auto tag) {
            using T = decltype(tag);
            const Buffer<T> a(random_values<T>(count, 1, 6), place), b(random_values<T>(count, 2, 6), place);
            std::vector<T> mixed, of_a, of_b;
            for (int64_t i = 0; i < count; ++i) {
              const bool kept = is_kept(chance, i);
              mixed.push_back(kept ? a[i] : b[i]);
              of_a.push_back(kept ? a[i] : from_float<T>(0.0f));
              of_b.push_back(kept ? from_float<T>(0.0f) : a[i]);
            }
            check_splits(mixed, place, [&](T* y, int64_t begin, int64_t end) {
              set.table.forward(make_params(seed, chance, dtype, a, b, y), begin, end);
            });
            for (const bool first : {true, false}) {
              check_splits(first ? of_a : of_b, place, [&](T* y, int64_t begin, int64_t end) {
                RandomMixParams params = make_params(seed, chance, dtype, a, b, y);
                params.gradient = a.data();
                (first ? params.grad_a : params.grad_b) = y;
                set.table.backward(params, begin, end);
              });
            }
          });
        }
      }
    }
  }
}
