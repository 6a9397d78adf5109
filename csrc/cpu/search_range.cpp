// The range search for one instruction set. A tile of x stays in the first-level cache while the candidates go over it.
// Nothing here may instantiate shared inline code, as in fake_quantize.cpp.
#include "cpu/search_range.h"

#include <float.h>
#include <math.h>

#include "candidate.h"
#include "cpu/elements.h"

namespace synq::cpu {
namespace {

constexpr int64_t kTile = 4096;
constexpr int64_t kLanes = 256;  // partial sums of a tile: one order of summation for every instruction set

// 2^(norm log2 |value| + offset), relative error below 1e-6 for norms up to 4; values below `least` count as `least`.
struct Power {
  float norm;
  float offset;
  float least;
  float log2[8];  // norm times the minimax polynomial of log2(1 + t) / t, absolute error 5e-8

  float operator()(float value) const {
    const float magnitude = float_of(bits_of(value) & 0x7fffffffu);
    const uint32_t bits = bits_of(magnitude < least ? least : magnitude);
    // value = 2^exponent (1 + t) with 1 + t between sqrt(1/2) and sqrt(2).
    const int32_t exponent = static_cast<int32_t>(bits - 0x3f3504f3u) >> 23;
    const float t = float_of(bits - (static_cast<uint32_t>(exponent) << 23)) - 1.0f;
    const float t2 = t * t;
    // Pairs first (Estrin): a chain of eight would leave the arithmetic units waiting.
    const float log_low = multiply_add(multiply_add(log2[3], t, log2[2]), t2, multiply_add(log2[1], t, log2[0]));
    const float log_high = multiply_add(multiply_add(log2[7], t, log2[6]), t2, multiply_add(log2[5], t, log2[4]));
    const float base = multiply_add(norm, static_cast<float>(exponent), offset);
    const float power = multiply_add(multiply_add(log_high, t2 * t2, log_low), t, base);
    // Adding 1.5 * 2^23 rounds to an integer and leaves it, here with the exponent's bias, in the lowest bits.
    constexpr float kBiasedMagic = 12582912.0f + 127.0f;
    const float shifted = power + kBiasedMagic;
    const float f = power - (shifted - kBiasedMagic);
    const float f2 = f * f;
    // Minimax polynomial of 2^f, relative error 8e-8.
    const float exp_low = multiply_add(6.9314697e-1f, f, 1.0000001f);
    const float exp_middle = multiply_add(5.5507133e-2f, f, 2.4022120e-1f);
    const float exp_high = multiply_add(1.3276477e-3f, f, 9.6755413e-3f);
    return multiply_add(multiply_add(exp_high, f2, exp_middle), f2, exp_low) * float_of(bits_of(shifted) << 23);
  }
};

// The least value is the one whose power is 2^-125, the lower end of float32.
Power make_power(float norm, float offset) {
  const float least = exp2f((-125.0f - offset) / norm);
  constexpr float kLog2[8] = {1.44269477f, -0.72135712f, 0.48093939f, -0.36008810f,
                              0.28670862f, -0.25006144f, 0.23688193f, -0.14575610f};
  Power power = {norm, offset, least > FLT_MIN ? least : FLT_MIN, {}};
  for (int i = 0; i < 8; ++i) power.log2[i] = norm * kLog2[i];
  return power;
}

// The square of an error in the unit that powers have: far cheaper.
struct Square {
  float unit;

  float operator()(float value) const {
    const float scaled = value * unit;
    return scaled * scaled;
  }
};

struct Weighted {
  const float* weights;
  float operator()(float value, int64_t i) const { return value * weights[i]; }
  Weighted from(int64_t i) const { return {weights + i}; }
};

struct Unweighted {
  float operator()(float value, int64_t) const { return value; }
  Unweighted from(int64_t) const { return {}; }
};

// What lanes add up to, of which only the first `used` are not zero.
inline double total_of(const float* lanes, int64_t used, const Power&) {
  double sum = 0.0;
  for (int64_t j = 0; j < used; ++j) sum += static_cast<double>(lanes[j]);
  return sum;
}

inline double total_of(float* lanes, int64_t, const Square&) {
  constexpr int64_t kFew = 16;
  for (int64_t width = kLanes / 2; width >= kFew; width /= 2) {
    for (int64_t j = 0; j < width; ++j) lanes[j] += lanes[j + width];
  }
  double sum = 0.0;
  for (int64_t j = 0; j < kFew; ++j) sum += static_cast<double>(lanes[j]);
  return sum;
}

template <typename Weights, typename Measure>
void add_errors(const float* __restrict x, int64_t count, Candidate candidate, Measure measure, float low, float high,
                Weights weights, float* __restrict lanes) {
  for (int64_t i = 0; i < count; ++i) lanes[i] += weights(measure(quantization_error(x[i], candidate, low, high)), i);
}

template <typename Weights, typename Measure>
double sum_tile(const float* x, int64_t count, Candidate candidate, Measure measure, float low, float high,
                Weights weights) {
  float lanes[kLanes];
  for (int64_t i = 0; i < kLanes; ++i) lanes[i] = 0.0f;
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    add_errors(x + i, kLanes, candidate, measure, low, high, weights.from(i), lanes);
  }
  add_errors(x + i, count - i, candidate, measure, low, high, weights.from(i), lanes);
  return total_of(lanes, count < kLanes ? count : kLanes, measure);
}

template <typename T, typename Weights, typename Measure>
void sum_typed(const SearchRangeJob& job, int64_t begin, int64_t end, Weights weights, Measure measure, double* sums) {
  const float low = lowest_code(job.bits);
  const float high = highest_code(job.bits);
  for (int32_t c = 0; c < job.count; ++c) sums[c] = 0.0;
  for (int64_t start = begin; start < end; start += kTile) {
    const int64_t count = end - start < kTile ? end - start : kTile;
    const T* x = static_cast<const T*>(job.x) + start;
    const float* tile;
    float buffer[kTile];
    if constexpr (std::is_same_v<T, float>) {
      tile = x;
    } else {
      load(x, buffer, count);
      tile = buffer;
    }
    for (int32_t c = 0; c < job.count; ++c) {
      const Candidate candidate = make_candidate(job.range_min, job.range_max, job.candidates[c], job.bits);
      sums[c] += sum_tile(tile, count, candidate, measure, low, high, weights.from(start));
    }
  }
}

template <typename Measure>
void sum_any(const SearchRangeJob& job, int64_t begin, int64_t end, Measure measure, double* sums) {
  with_type(job.dtype, [&](auto tag) {
    if (job.weights != nullptr) return sum_typed<float>(job, begin, end, Weighted{job.weights}, measure, sums);
    sum_typed<decltype(tag)>(job, begin, end, Unweighted{}, measure, sums);
  });
}

void sum_errors(const SearchRangeJob& job, int64_t begin, int64_t end, double* sums) {
  sum_any(job, begin, end, make_power(job.norm, job.offset), sums);
}

void sum_squares(const SearchRangeJob& job, int64_t begin, int64_t end, double* sums) {
  sum_any(job, begin, end, Square{exp2f(job.offset / job.norm)}, sums);
}

template <typename T>
void count_typed(const HistogramJob& job, int64_t begin, int64_t end, uint32_t* counts) {
  const float last = static_cast<float>(job.bins - 1);
  for_each_block(static_cast<const T*>(job.x) + begin, end - begin, [&](int64_t, int64_t size, const float* x) {
    for (int64_t start = 0; start < size; start += kBlock) {
      const int64_t stop = size - start < kBlock ? size - start : kBlock;
      int32_t bins[kBlock];
      for (int64_t i = 0; i < stop; ++i) {
        const float bin = (x[start + i] - job.range_min) * job.bins_per_unit;
        bins[i] = static_cast<int32_t>(bin > last ? last : bin);
      }
      for (int64_t i = 0; i < stop; ++i) ++counts[bins[i]];
    }
  });
}

void count_any(const HistogramJob& job, int64_t begin, int64_t end, uint32_t* counts) {
  with_type(job.dtype, [&](auto tag) { count_typed<decltype(tag)>(job, begin, end, counts); });
}

}  // namespace

SYNQ_DEFINE_TABLE(SearchRangeKernels, search_range_kernels) = {sum_errors, sum_squares, count_any};

}  // namespace synq::cpu
