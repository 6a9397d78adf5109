// Fake quantization for one instruction set; the table at the end is named after it.
// Nothing here may instantiate shared inline code (the standard library, torch): the linker keeps one copy of it, and
// that could be the copy compiled for an instruction set that the running machine lacks.
#include "cpu/fake_quantize.h"

#include <string.h>

#include "affine.h"
#include "cpu/elements.h"

namespace synq::cpu {
namespace {

struct Grid {
  float low;
  float high;
};

Grid grid_of(const Job& job) { return {lowest_code(job.bits), highest_code(job.bits)}; }

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
// innermost, in one row of channels.
template <typename Run>
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

template <typename Body>
void for_each_affine(const Job& job, int64_t begin, int64_t end, Body body) {
  const bool innermost = job.inner == 1 && job.channels > 1;
  for_each_run(job, begin, end, [&](int64_t start, int64_t count, int64_t channel) {
    if (innermost) {
      body(start, count, PerElement{job.scale + channel, job.zero_point + channel});
    } else {
      body(start, count, Shared{{job.scale[channel], job.zero_point[channel]}});
    }
  });
}

template <typename Affines>
void forward(const float* __restrict x, float* __restrict y, int64_t count, Affines affines, Grid grid) {
  for (int64_t i = 0; i < count; ++i) y[i] = fake_quantize(x[i], affines(i), grid.low, grid.high);
}

template <typename Affines>
void backward(const float* __restrict gradient, const float* __restrict x, float* __restrict result, int64_t count,
              Affines affines, Grid grid) {
  for (int64_t i = 0; i < count; ++i) {
    result[i] = clipped_gradient(gradient[i], x[i], affines(i), grid.low, grid.high);
  }
}

template <typename Code, typename Affines>
void codes(const float* __restrict x, Code* __restrict y, int64_t count, Affines affines, Grid grid) {
  for (int64_t i = 0; i < count; ++i) {
    const float code = quantize(x[i], affines(i), grid.low, grid.high);
    y[i] = static_cast<Code>(static_cast<int32_t>(code == code ? code : 0.0f));
  }
}

template <typename T>
void fake_quantize_typed(const Job& job, int64_t begin, int64_t end) {
  const Grid grid = grid_of(job);
  for_each_affine(job, begin, end, [&](int64_t start, int64_t count, auto affines) {
    T* y = static_cast<T*>(job.y) + start;
    for_each_block(static_cast<const T*>(job.x) + start, count, [&](int64_t i, int64_t size, const float* x) {
      if constexpr (std::is_same_v<T, float>) {
        forward(x, y, size, affines, grid);
      } else {
        float result[kBlock];
        forward(x, result, size, affines.from(i), grid);
        store(result, y + i, size);
      }
    });
  });
}

template <typename T>
void backward_typed(const Job& job, int64_t begin, int64_t end) {
  const Grid grid = grid_of(job);
  for_each_affine(job, begin, end, [&](int64_t start, int64_t count, auto affines) {
    const T* gradient = static_cast<const T*>(job.gradient) + start;
    T* y = static_cast<T*>(job.y) + start;
    for_each_block(static_cast<const T*>(job.x) + start, count, [&](int64_t i, int64_t size, const float* x) {
      if constexpr (std::is_same_v<T, float>) {
        backward(gradient, x, y, size, affines, grid);
      } else {
        float incoming[kBlock];
        float result[kBlock];
        load(gradient + i, incoming, size);
        backward(incoming, x, result, size, affines.from(i), grid);
        store(result, y + i, size);
      }
    });
  });
}

template <typename T, typename Code>
void codes_typed(const Job& job, int64_t begin, int64_t end) {
  const Grid grid = grid_of(job);
  for_each_affine(job, begin, end, [&](int64_t start, int64_t count, auto affines) {
    Code* y = static_cast<Code*>(job.y) + start;
    for_each_block(static_cast<const T*>(job.x) + start, count,
                   [&](int64_t i, int64_t size, const float* x) { codes(x, y + i, size, affines.from(i), grid); });
  });
}

// A comparison with NaN is false, so the plain select keeps a NaN once it is in and `v != v` lets it in.
inline float lower(float v, float least) { return (v < least) | (v != v) ? v : least; }
inline float higher(float v, float most) { return (v > most) | (v != v) ? v : most; }

void find_range_flat(const float* x, int64_t count, float* minimum, float* maximum) {
  typedef float Vector __attribute__((vector_size(SYNQ_VECTOR_BYTES)));
  constexpr int64_t kLanes = SYNQ_VECTOR_BYTES / 4;
  constexpr int kChains = 4;
  float least = *minimum;
  float most = *maximum;
  int64_t i = 0;
  if (count >= kChains * kLanes) {
    Vector low[kChains];
    Vector high[kChains];
    for (int k = 0; k < kChains; ++k) {
      low[k] = Vector{} + least;
      high[k] = Vector{} + most;
    }
    for (; i + kChains * kLanes <= count; i += kChains * kLanes) {
      for (int k = 0; k < kChains; ++k) {
        Vector v;
        memcpy(&v, x + i + k * kLanes, sizeof v);
        low[k] = (v < low[k]) | (v != v) ? v : low[k];
        high[k] = (v > high[k]) | (v != v) ? v : high[k];
      }
    }
    for (int k = 0; k < kChains; ++k) {
      for (int64_t lane = 0; lane < kLanes; ++lane) {
        least = lower(low[k][lane], least);
        most = higher(high[k][lane], most);
      }
    }
  }
  for (; i < count; ++i) {
    least = lower(x[i], least);
    most = higher(x[i], most);
  }
  *minimum = least;
  *maximum = most;
}

template <typename T>
void find_range_typed(const Job& job, int64_t begin, int64_t end, float* minimum, float* maximum) {
  const bool innermost = job.inner == 1 && job.channels > 1;
  for_each_run(job, begin, end, [&](int64_t start, int64_t count, int64_t channel) {
    for_each_block(static_cast<const T*>(job.x) + start, count, [&](int64_t i, int64_t size, const float* x) {
      if (!innermost) return find_range_flat(x, size, minimum + channel, maximum + channel);
      float* __restrict low = minimum + channel + i;
      float* __restrict high = maximum + channel + i;
      for (int64_t j = 0; j < size; ++j) {
        low[j] = lower(x[j], low[j]);
        high[j] = higher(x[j], high[j]);
      }
    });
  });
}

void fake_quantize_any(const Job& job, int64_t begin, int64_t end) {
  with_type(job.dtype, [&](auto tag) { fake_quantize_typed<decltype(tag)>(job, begin, end); });
}

void backward_any(const Job& job, int64_t begin, int64_t end) {
  with_type(job.dtype, [&](auto tag) { backward_typed<decltype(tag)>(job, begin, end); });
}

void codes_any(const Job& job, int64_t begin, int64_t end) {
  with_type(job.dtype, [&](auto tag) {
    if (job.bits <= 8) {
      codes_typed<decltype(tag), int8_t>(job, begin, end);
    } else {
      codes_typed<decltype(tag), int16_t>(job, begin, end);
    }
  });
}

void find_range_any(const Job& job, int64_t begin, int64_t end, float* minimum, float* maximum) {
  with_type(job.dtype, [&](auto tag) { find_range_typed<decltype(tag)>(job, begin, end, minimum, maximum); });
}

}  // namespace

SYNQ_DEFINE_TABLE(FakeQuantizeKernels, fake_quantize_kernels) = {fake_quantize_any, backward_any, codes_any,
                                                                 find_range_any};

}  // namespace synq::cpu
