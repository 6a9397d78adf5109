// What the tests of kernels share: the tables that can run here, splits of an index range, threads, numbers.
#pragma once

#include <stdint.h>

#include <atomic>
#include <cmath>
#include <functional>
#include <limits>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "check.h"
#include "cpu/dispatch.h"
#include "cpu/elements.h"
#include "cpu/isa.h"
#include "memory.h"

namespace synq::test {

template <typename Table>
struct Named {
  std::string isa;
  const Table& table;
};

// The kernel tables that were compiled and that this processor can run.
template <typename Table, typename... More>
std::vector<Named<Table>> runnable(const Table& basic, const More&... more) {
  const Table* tables[] = {&basic, &more...};
  std::vector<Named<Table>> result;
  for (const std::string& isa : cpu::supported_isas()) result.push_back({isa, *tables[result.size()]});
  return result;
}

#if defined(SYNQ_X86)
#define SYNQ_TABLES(name) (::synq::test::runnable(name##_default, name##_avx2, name##_avx512))
#else
#define SYNQ_TABLES(name) (::synq::test::runnable(name##_default))
#endif

using Interval = std::pair<int64_t, int64_t>;
using Split = std::vector<Interval>;

// Ways to split [0, count): whole, near the edges, at random, and into single elements where that is not too many. The
// parts come in no particular order, and some are empty.
inline std::vector<Split> splits(int64_t count, int random_splits = 3) {
  std::mt19937 random(static_cast<unsigned>(count));
  std::vector<std::vector<int64_t>> cuts{{}, {1}, {count - 1}, {count / 2, count / 2}};
  for (int i = 0; i < random_splits; ++i) {
    cuts.emplace_back();
    for (int k = 0; k < 5; ++k) cuts.back().push_back(static_cast<int64_t>(random() % (count + 1)));
  }
  if (count <= 70) {
    cuts.emplace_back();
    for (int64_t i = 0; i < count; ++i) cuts.back().push_back(i);
  }
  std::vector<Split> result;
  for (auto& inner : cuts) {
    std::sort(inner.begin(), inner.end());
    Split split;
    int64_t begin = 0;
    for (const int64_t cut : inner) {
      const int64_t end = std::max(begin, std::min(cut, count));
      split.emplace_back(begin, end);
      begin = end;
    }
    split.emplace_back(begin, count);
    std::shuffle(split.begin(), split.end(), random);
    result.push_back(std::move(split));
  }
  return result;
}

// Runs body(begin, end) for every part, each in a thread of its own, all let go at once.
template <typename Body>
void in_threads(const Split& split, const Body& body) {
  std::atomic<size_t> ready{0};
  std::vector<std::thread> threads;
  for (const Interval& part : split) {
    threads.emplace_back([&, part] {
      ++ready;
      while (ready < split.size()) std::this_thread::yield();
      body(part.first, part.second);
    });
  }
  for (std::thread& thread : threads) thread.join();
}

// Any split into parts, in any order, gives the expected elements, and no part writes outside its own.
// run(y, begin, end) writes the elements [begin, end) of y.
template <typename T, typename Run>
void check_splits(const std::vector<T>& expected, Place place, const Run& run) {
  const int64_t count = static_cast<int64_t>(expected.size());
  Buffer<T> y(count, place);
  for (const Split& split : splits(count)) {
    y.clear();
    std::vector<bool> written(expected.size());
    for (const auto& [begin, end] : split) {
      run(y.data(), begin, end);
      std::fill(written.begin() + begin, written.begin() + end, true);
      int64_t start = 0;
      for (int64_t i = 0; i <= count; ++i) {
        if (i < count && !written[static_cast<size_t>(i)]) continue;
        if (!y.is_untouched(start, i)) {
          WHERE("part", begin, end);
          CHECK(y.is_untouched(start, i));
        }
        start = i + 1;
      }
    }
    CHECK_ALL_EQUAL(y.data(), expected.data(), count);
  }
}

// What run writes when it is called once for all elements, to compare splits with.
template <typename T, typename Run>
std::vector<T> in_one_part(int64_t count, Place place, const Run& run) {
  Buffer<T> y(count, place);
  run(y.data(), int64_t{0}, count);
  return std::vector<T>(y.data(), y.data() + count);
}

// Threads on the parts of any split write what one call writes.
template <typename T, typename Run>
void check_threads(int64_t count, Place place, const Run& run) {
  const std::vector<T> expected = in_one_part<T>(count, place, run);
  for (const Split& split : splits(count)) {
    Buffer<T> y(count, place);
    in_threads(split, [&](int64_t begin, int64_t end) { run(y.data(), begin, end); });
    CHECK_ALL_EQUAL(y.data(), expected.data(), count);
  }
}

constexpr DType kDTypes[] = {DType::kFloat32, DType::kFloat16, DType::kBFloat16};

inline const char* name_of(DType dtype) {
  return dtype == DType::kFloat32 ? "float32" : dtype == DType::kFloat16 ? "float16" : "bfloat16";
}

inline float to_float(float value) { return value; }
inline float to_float(cpu::Float16 value) { return cpu::widen(value); }
inline float to_float(cpu::BFloat16 value) { return cpu::widen(value); }

template <typename T>
T from_float(float value) {
  if constexpr (std::is_same_v<T, float>) {
    return value;
  } else {
    return cpu::narrow(value, T{});
  }
}

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Normally distributed values; every `special` elements on average one that needs care. None if `special` is 0.
template <typename T>
std::vector<T> random_values(int64_t count, unsigned seed, int special = 0, float scale = 1.0f) {
  constexpr float kSpecial[] = {0.0f,   -0.0f,      kNan,      kInfinity, -kInfinity, 1e-41f,
                                -1e-6f, 3.4028e38f, -65504.0f, 0.5f,      -1.5f,      1.17549435e-38f};
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0f, scale);
  std::vector<T> values;
  for (int64_t i = 0; i < count; ++i) {
    const bool pick = special > 0 && random() % special == 0;
    values.push_back(from_float<T>(pick ? kSpecial[random() % std::size(kSpecial)] : normal(random)));
  }
  return values;
}

}  // namespace synq::test
