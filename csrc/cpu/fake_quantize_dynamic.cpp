// Ranges, and fake quantization over them, for one instruction set; what fake_quantize.cpp says about shared code holds
// here too.
#include "cpu/fake_quantize_dynamic.h"

#include <string.h>

#include "cpu/fake_quantize_loops.h"

namespace synq::cpu {
namespace {

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

// `low` and `high` are the bounds of the run's channel, or of its first channel when channels are innermost.
template <typename T>
void include_run(const T* run, int64_t count, bool innermost, float* low, float* high) {
  for_each_block(run, count, [&](int64_t i, int64_t size, const float* x) {
    if (!innermost) return find_range_flat(x, size, low, high);
    float* __restrict lows = low + i;
    float* __restrict highs = high + i;
    for (int64_t j = 0; j < size; ++j) {
      lows[j] = lower(x[j], lows[j]);
      highs[j] = higher(x[j], highs[j]);
    }
  });
}

template <typename T>
void find_range_typed(const DynamicJob& job, int64_t begin, int64_t end, float* minimum, float* maximum) {
  const T* x = static_cast<const T*>(job.x);
  for_each_run(job, begin, end, [&](int64_t start, int64_t count, int64_t channel) {
    include_run(x + start, count, channels_innermost(job), minimum + channel, maximum + channel);
  });
}

// Calls run(start, count, channel) for every run of the channels [first, last).
template <typename Run>
void for_each_run_of_channels(const DynamicJob& job, int64_t first, int64_t last, Run run) {
  for (int64_t o = 0; o < job.outer; ++o) {
    const int64_t row = o * job.channels;
    if (job.inner == 1) {
      run(row + first, last - first, first);
    } else {
      for (int64_t c = first; c < last; ++c) run((row + c) * job.inner, job.inner, c);
    }
  }
}

template <typename T>
void quantize_channels_typed(const DynamicJob& job, int64_t first, int64_t last) {
  const bool innermost = job.inner == 1;
  const T* x = static_cast<const T*>(job.x);
  T* y = static_cast<T*>(job.y);
  for (int64_t c = first; c < last; ++c) {
    job.minimum[c] = __builtin_inff();
    job.maximum[c] = -__builtin_inff();
  }
  for_each_run_of_channels(job, first, last, [&](int64_t start, int64_t count, int64_t channel) {
    include_run(x + start, count, innermost, job.minimum + channel, job.maximum + channel);
  });
  for (int64_t c = first; c < last; ++c) {
    Range range = {job.minimum[c], job.maximum[c]};
    if (job.symmetric) range = symmetric_range(range);
    const Affine affine = make_affine(range.low, range.high, job.bits);
    job.minimum[c] = range.low;
    job.maximum[c] = range.high;
    job.scale[c] = affine.scale;
    job.zero_point[c] = affine.zero_point;
  }
  const Grid grid = grid_of(job.bits);
  for_each_run_of_channels(job, first, last, [&](int64_t start, int64_t count, int64_t channel) {
    map_blocks(x + start, y + start, count, [&](int64_t i, int64_t size, const float* from, float* to) {
      if (innermost) {
        quantize_block(from, to, size, PerElement{job.scale + channel + i, job.zero_point + channel + i}, grid);
      } else {
        quantize_block(from, to, size, Shared{{job.scale[channel], job.zero_point[channel]}}, grid);
      }
    });
  });
}

void find_range_any(const DynamicJob& job, int64_t begin, int64_t end, float* minimum, float* maximum) {
  with_type(job.dtype, [&](auto tag) { find_range_typed<decltype(tag)>(job, begin, end, minimum, maximum); });
}

void quantize_channels_any(const DynamicJob& job, int64_t first, int64_t last) {
  with_type(job.dtype, [&](auto tag) { quantize_channels_typed<decltype(tag)>(job, first, last); });
}

}  // namespace

SYNQ_DEFINE_TABLE(FakeQuantizeDynamicKernels, fake_quantize_dynamic_kernels) = {find_range_any, quantize_channels_any};

}  // namespace synq::cpu
