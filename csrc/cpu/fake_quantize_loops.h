// Loops that the CPU kernels of the fake quantization family share.
#pragma once

#include <stdint.h>

#include "affine.h"
#include "cpu/elements.h"

namespace synq::cpu {
namespace {

struct Grid {
  float low;
  float high;
};

inline Grid grid_of(int bits) { return {lowest_code(bits), highest_code(bits)}; }

// The affine pair of each element of a run: the same for all, or one per element when channels are innermost.
struct Shared {
  Affine affine;
  Affine operator()(int64_t) const { return affine; }
  Shared from(int64_t) const { return *this; }
};

struct PerElement {
  const float* scale;
  const float* zero_point;
  Affine operator()(int64_t i) const { return {scale[i], zero_point[i]}; }
  PerElement from(int64_t i) const { return {scale + i, zero_point + i}; }
};

// Calls run(start, count, channel) for every stretch of [begin, end) that lies in one channel, or, when channels are
// innermost, in one row of channels. Job is any of the family's job structs.
template <typename Job, typename Run>
void for_each_run(const Job& job, int64_t begin, int64_t end, Run run) {
  if (job.channels == 1) {
    if (begin < end) run(begin, end - begin, int64_t{0});
    return;
  }
  const int64_t length = job.inner == 1 ? job.channels : job.inner;
  int64_t row = begin / length;
  for (int64_t start = begin; start < end; ++row) {
    const int64_t next = (row + 1) * length;
    const int64_t stop = next < end ? next : end;
    run(start, stop - start, job.inner == 1 ? start - row * length : row % job.channels);
    start = stop;
  }
}

template <typename Job>
bool channels_innermost(const Job& job) {
  return job.inner == 1 && job.channels > 1;
}

// Calls body(start, count, affine pairs) for every run.
template <typename Job, typename Body>
void for_each_affine(const Job& job, int64_t begin, int64_t end, Body body) {
  const bool innermost = channels_innermost(job);
  for_each_run(job, begin, end, [&](int64_t start, int64_t count, int64_t channel) {
    if (innermost) {
      body(start, count, PerElement{job.scale + channel, job.zero_point + channel});
    } else {
      body(start, count, Shared{{job.scale[channel], job.zero_point[channel]}});
    }
  });
}

// Calls body(offset, size, x, y) with float32 blocks; what it leaves in y is stored.
template <typename T, typename Body>
void map_blocks(const T* x, T* y, int64_t count, Body body) {
  for_each_block(x, count, [&](int64_t i, int64_t size, const float* input) {
    if constexpr (std::is_same_v<T, float>) {
      body(i, size, input, y + i);
    } else {
      float result[kBlock];
      body(i, size, input, result);
      store(result, y + i, size);
    }
  });
}

// The same with a gradient beside x: body(offset, size, x, gradient, y). No block is longer than kBlock.
template <typename T, typename Body>
void map_gradient_blocks(const T* x, const T* gradient, T* y, int64_t count, Body body) {
  for (int64_t i = 0; i < count; i += kBlock) {
    const int64_t size = count - i < kBlock ? count - i : kBlock;
    if constexpr (std::is_same_v<T, float>) {
      body(i, size, x + i, gradient + i, y + i);
    } else {
      float input[kBlock];
      float incoming[kBlock];
      float result[kBlock];
      load(x + i, input, size);
      load(gradient + i, incoming, size);
      body(i, size, static_cast<const float*>(input), static_cast<const float*>(incoming), result);
      store(result, y + i, size);
    }
  }
}

template <typename Affines>
void quantize_block(const float* __restrict x, float* __restrict y, int64_t count, Affines affines, Grid grid) {
  for (int64_t i = 0; i < count; ++i) y[i] = fake_quantize(x[i], affines(i), grid.low, grid.high);
}

}  // namespace
}  // namespace synq::cpu
