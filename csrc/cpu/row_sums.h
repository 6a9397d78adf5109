// Sums over the elements of rows, and over rows by place, in an order that no instruction set changes.
#pragma once

#include "cpu/elements.h"
#include "cpu/wide.h"

namespace synq::cpu {
namespace {

constexpr int kGroup = 8;  // rows that are added up side by side

// The values as float: the memory itself, or a converted copy in `buffer`.
template <typename T>
SYNQ_INLINE const float* as_floats(const T* x, int64_t count, float* buffer) {
  if constexpr (std::is_same_v<T, float>) {
    return x;
  } else {
    load(x, buffer, count);
    return buffer;
  }
}

// Adds term(i, a value of the vector's type) over all elements to the lanes of `sum`. The last vector overlaps the one
// before it where the elements do not fill it.
template <typename Term>
SYNQ_INLINE void add_terms(int64_t count, Wide& sum, Term term) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) sum += term(i, Wide{});
  if (i == count) return;
  if (count >= kLanes) {
    sum += select(last_lanes(count - i), term(count - kLanes, Wide{}), Wide{});
  } else {
    float lanes[kLanes];
    store(sum, lanes);
    for (int64_t lane = 0; i < count; ++i, ++lane) lanes[lane] += term(i, 0.0f);
    load(lanes, sum);
  }
}

// Runs body(first row, a constant: how many rows) over all rows, in groups as far as they go.
template <typename Body>
SYNQ_INLINE void for_each_group(int64_t rows, Body body) {
  int64_t row = 0;
  for (; row + kGroup <= rows; row += kGroup) body(row, std::integral_constant<int, kGroup>());
  for (; row < rows; ++row) body(row, std::integral_constant<int, 1>());
}

// Rows of floats, `stride` apart.
struct Rows {
  const float* first;
  int64_t stride;

  template <typename V>
  SYNQ_INLINE V get(int row, int64_t i, const V& type) const {
    return read(first + row * stride + i, type);
  }
};

template <int kRows, typename T>
SYNQ_INLINE Rows read_rows(const T* x, int64_t stride, int64_t count, float (&buffer)[kRows][kBlock]) {
  if constexpr (std::is_same_v<T, float>) {
    return {x, stride};
  } else {
    for (int row = 0; row < kRows; ++row) load(x + row * stride, buffer[row], count);
    return {buffer[0], kBlock};
  }
}

// Four sums by lanes, each in registers: an array of them would lie in memory.
struct Four {
  Wide a, b, c, d;

  // Adds term(row, i, a value of the vector's type) over all elements. The last vector overlaps the one before it.
  template <typename Term>
  SYNQ_INLINE void add(int64_t count, Term term) {
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) {
      a += term(0, i, Wide{});
      b += term(1, i, Wide{});
      c += term(2, i, Wide{});
      d += term(3, i, Wide{});
    }
    if (i == count) return;
    if (count >= kLanes) {
      const WideMask rest = last_lanes(count - i);
      i = count - kLanes;
      a += select(rest, term(0, i, Wide{}), Wide{});
      b += select(rest, term(1, i, Wide{}), Wide{});
      c += select(rest, term(2, i, Wide{}), Wide{});
      d += select(rest, term(3, i, Wide{}), Wide{});
    } else {
      float lanes[4][kLanes] = {};
      for (int row = 0; row < 4; ++row) {
        for (int64_t lane = 0; lane < count - i; ++lane) lanes[row][lane] = term(row, i + lane, 0.0f);
      }
      a += read(lanes[0], Wide{});
      b += read(lanes[1], Wide{});
      c += read(lanes[2], Wide{});
      d += read(lanes[3], Wide{});
    }
  }

  SYNQ_INLINE Quad totals() const { return sum_lanes(a, b, c, d); }
};

// totals[row] = finish(the sum of term(row, a value of x, the one of y in the same place)), four rows at a time. One
// row alone is taken four times, which compilers see and compute once.
template <int kRows, typename T, typename Term, typename Finish>
SYNQ_INLINE void total_rows(const T* x, const T* y, int64_t count, float (&totals)[kRows], Term term, Finish finish) {
  constexpr int kSide = kRows < 4 ? kRows : 4;
  float x_buffer[kSide][kBlock];
  float y_buffer[kSide][kBlock];
  for (int first = 0; first < kRows; first += kSide) {
    Four sums{};
    for (int64_t start = 0; start < count; start += kBlock) {
      const int64_t size = count - start < kBlock ? count - start : kBlock;
      const Rows a = read_rows(x + first * count + start, count, size, x_buffer);
      const Rows b = x == y ? a : read_rows(y + first * count + start, count, size, y_buffer);
      sums.add(size, [&](int row, int64_t i, auto type) {
        row = row < kSide ? row : kSide - 1;
        return term(first + row, a.get(row, i, type), b.get(row, i, type));
      });
    }
    const Quad four = finish(sums.totals());
    __builtin_memcpy(totals + first, &four, kSide * sizeof(float));
  }
}

template <int kRows, typename V, typename Term>
SYNQ_INLINE V sum_rows(int64_t i, const V& type, Term term) {
  if constexpr (kRows == kGroup) {
    return ((term(0, i, type) + term(1, i, type)) + (term(2, i, type) + term(3, i, type))) +
           ((term(4, i, type) + term(5, i, type)) + (term(6, i, type) + term(7, i, type)));
  } else {
    return term(0, i, type);
  }
}

// total[i] += the sum over rows of term(row, i, a value of the vector's type), as a tree.
template <int kRows, typename Term>
SYNQ_INLINE void add_rows(float* total, int64_t count, Term term) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    store(read(total + i, Wide{}) + sum_rows<kRows>(i, Wide{}, term), total + i);
  }
  if (i == count) return;
  if (count >= kLanes) {
    const int64_t last = count - kLanes;
    const Wide before = read(total + last, Wide{});
    store(select(last_lanes(count - i), before + sum_rows<kRows>(last, Wide{}, term), before), total + last);
  } else {
    for (; i < count; ++i) total[i] += sum_rows<kRows>(i, 0.0f, term);
  }
}

}  // namespace
}  // namespace synq::cpu
