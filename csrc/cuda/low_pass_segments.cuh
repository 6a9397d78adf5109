// What folding a line leaves: up to four products a fourth as long, and how their matrices lie in memory.
//
// Matrices are A(i, j) = u(i - j) +- u(i + j). A job is 32 rows of one of them, in steps of 8 columns; of a step each
// lane of a warp has two packs, its elements of the first and of the last 16 rows (mma.cuh).
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "launch.cuh"

namespace synq {

constexpr int kJobRows = 32;
constexpr int kStepColumns = 8;
constexpr int kPacksOfStep = kJobRows / 16 * 32;

struct Segment {
  int begin;
  int size;
  int table;  // where its u begins
  int first_job;
  int first_step;
  bool odd;
};

struct Segments {
  int n;
  int count;
  int jobs;
  int steps;
  Segment items[4];
};

__host__ __device__ constexpr int steps_of(int size) { return (size + kStepColumns - 1) / kStepColumns; }

inline void add_segment(Segments& all, int begin, int size, int table, bool odd) {
  if (size == 0) return;
  const int jobs = (size + kJobRows - 1) / kJobRows;
  all.items[all.count++] = {begin, size, table, all.jobs, all.steps, odd};
  all.jobs += jobs;
  all.steps += jobs * steps_of(size);
}

inline Segments segments_of(int64_t n) {
  Segments all = {};
  all.n = static_cast<int>(n);
  const int h = all.n / 2;
  if (all.n % 2 != 0) {
    add_segment(all, 0, h + 1, 0, false);
    add_segment(all, h + 1, h, 0, true);
    return all;
  }
  add_segment(all, 0, h / 2 + 1, 0, false);
  add_segment(all, h / 2 + 1, (h - 1) / 2, 0, true);
  add_segment(all, h, (h + 1) / 2, h + 1, false);
  add_segment(all, h + (h + 1) / 2, h / 2, h + 1, true);
  return all;
}

}  // namespace synq
