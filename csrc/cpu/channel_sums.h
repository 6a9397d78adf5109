// Per-channel sums of two terms per element, in an order that depends on the sizes alone: not on the number of threads,
// and not on the instruction set. Sums are double, except those of at most kSumRows terms within a block.
#pragma once

#include <stdint.h>
#include <string.h>

#include "cpu/elements.h"

namespace synq::cpu {
namespace {

// Adds up a run's terms in eight interleaved sums.
inline void add_run(const float* terms, int64_t count, double* sum) {
  constexpr int64_t kLanes = 8;
  typedef float Floats __attribute__((vector_size(kLanes * sizeof(float))));
  typedef double Doubles __attribute__((vector_size(kLanes * sizeof(double))));
  Doubles lanes = {};
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    Floats values;
    memcpy(&values, terms + i, sizeof values);
    lanes += __builtin_convertvector(values, Doubles);
  }
  double total = 0.0;
  for (int64_t lane = 0; lane < kLanes; ++lane) total += lanes[lane];
  for (; i < count; ++i) total += terms[i];
  *sum += total;
}

// How many terms are added up in float32.
constexpr int64_t kSumRows = 32;

// Sums of a run's terms and of their products with factors, both added up lane by lane.
class ProductSums {
 public:
  // At most kBlock terms.
  void include(const float* terms, const float* factors, int64_t count) {
    Floats lanes = {};
    Floats products = {};
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) {
      Floats values;
      Floats others;
      memcpy(&values, terms + i, sizeof values);
      memcpy(&others, factors + i, sizeof others);
      lanes += values;
      products += values * others;
    }
    sums_ += __builtin_convertvector(lanes, Doubles);
    product_sums_ += __builtin_convertvector(products, Doubles);
    for (; i < count; ++i) {
      rest_ += static_cast<double>(terms[i]);
      product_rest_ += static_cast<double>(terms[i] * factors[i]);
    }
  }

  double sum() const { return total(sums_, rest_); }
  double product_sum() const { return total(product_sums_, product_rest_); }

 private:
  static constexpr int64_t kLanes = kBlock / kSumRows;
  typedef float Floats __attribute__((vector_size(kLanes * sizeof(float))));
  typedef double Doubles __attribute__((vector_size(kLanes * sizeof(double))));

  static double total(const Doubles& lanes, double rest) {
    for (int64_t lane = 0; lane < kLanes; ++lane) rest += lanes[lane];
    return rest;
  }

  Doubles sums_ = {};
  Doubles product_sums_ = {};
  double rest_ = 0.0;
  double product_rest_ = 0.0;
};

// Adds each term to the sum of its own channel.
inline void add_row(const float* __restrict terms, int64_t count, double* __restrict sums) {
  for (int64_t i = 0; i < count; ++i) sums[i] += terms[i];
}

// Calls body(start, count, column, first sums, second sums) for every piece, at most kBlock long, of the rows of
// [begin, end); it adds a term to each of `count` sums of either kind, which end up in those of their channels. The
// columns are `channels` or, up to kBlock of them, a multiple: then column c belongs to channel c % channels.
template <typename Body>
void add_rows(int64_t begin, int64_t end, int64_t columns, int64_t channels, double* first, double* second, Body body) {
  float sums[2][kBlock];
  for (int64_t top = begin / columns; top * columns < end; top += kSumRows) {
    for (int64_t left = 0; left < columns; left += kBlock) {
      const int64_t width = columns - left < kBlock ? columns - left : kBlock;
      for (int64_t i = 0; i < width; ++i) sums[0][i] = sums[1][i] = 0.0f;
      for (int64_t row = top; row < top + kSumRows; ++row) {
        const int64_t origin = row * columns + left;
        const int64_t start = origin < begin ? begin : origin;
        const int64_t stop = origin + width < end ? origin + width : end;
        if (start >= stop) continue;
        const int64_t skipped = start - origin;
        body(start, stop - start, left + skipped, sums[0] + skipped, sums[1] + skipped);
      }
      for (int64_t i = 0; i < width; i += channels) {
        const int64_t count = width - i < channels ? width - i : channels;
        add_row(sums[0] + i, count, first + left);
        add_row(sums[1] + i, count, second + left);
      }
    }
  }
}

inline void add_terms(const float* terms, int64_t count, bool innermost, double* sums) {
  if (innermost) {
    add_row(terms, count, sums);
  } else {
    add_run(terms, count, sums);
  }
}

}  // namespace
}  // namespace synq::cpu
