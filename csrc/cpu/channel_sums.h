// Per-channel sums of two terms per element, in double and in an order that depends on the sizes alone: not on the
// number of threads, and not on the instruction set.
#pragma once

#include <stdint.h>
#include <string.h>

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

// Adds each term to the sum of its own channel.
inline void add_row(const float* __restrict terms, int64_t count, double* __restrict sums) {
  for (int64_t i = 0; i < count; ++i) sums[i] += terms[i];
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
