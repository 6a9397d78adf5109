// Soft rounding and its gradients for one instruction set; what fake_quantize.cpp says about shared code holds here
// too.
#include "soft_round.h"

#include <float.h>

#include "affine.h"
#include "cpu/block_sums.h"
#include "cpu/channel_sums.h"
#include "cpu/exp.h"
#include "cpu/fake_quantize_loops.h"
#include "cpu/lanes.h"

namespace synq::cpu {
namespace {

typedef uint32_t Words __attribute__((vector_size(SYNQ_VECTOR_BYTES)));

// u^exponent for 0 <= u <= 1 and an exponent above 0, exact at 1, relative error below 1e-7 (3 + |log2 of it|). Below
// 2^-126 it is that; of NaN some number.
inline Vector power_of(Vector u, Vector exponent) {
  // u = 2^n (1 + t) with 1 + t between sqrt(1/2) and sqrt(2).
  const Lanes bits = (Lanes)(u > FLT_MIN ? u : Vector{} + FLT_MIN);
  const Lanes n = (bits - 0x3f3504f3) >> 23;
  const Vector t = (Vector)(bits - (n << 23)) - 1.0f;
  const Vector t2 = t * t;
  // Minimax polynomial of log2(1 + t) / t, in pairs (Estrin): a chain would leave the arithmetic units waiting.
  const Vector a = multiply_add(Vector{} - 0.72135712f, t, Vector{} + 1.44269477f);
  const Vector b = multiply_add(Vector{} - 0.36008810f, t, Vector{} + 0.48093939f);
  const Vector c = multiply_add(Vector{} - 0.25006144f, t, Vector{} + 0.28670862f);
  const Vector d = multiply_add(Vector{} - 0.14575610f, t, Vector{} + 0.23688193f);
  const Vector quotient = multiply_add(multiply_add(d, t2, c), t2 * t2, multiply_add(b, t2, a));
  const Vector power = exponent * multiply_add(quotient, t, __builtin_convertvector(n, Vector));
  // Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits, from where it becomes an exponent.
  const Vector bounded = power < -126.0f ? Vector{} - 126.0f : power;
  const Vector shifted = bounded + 12582912.0f;
  const Vector f = bounded - (shifted - 12582912.0f);
  const Vector f2 = f * f;
  const Vector low = multiply_add(Vector{} + 6.931472028550421e-1f, f, Vector{} + 1.0f);
  const Vector middle = multiply_add(Vector{} + 5.550332471162809e-2f, f, Vector{} + 2.402264791363012e-1f);
  const Vector high = multiply_add(Vector{} + 1.339887440266574e-3f, f, Vector{} + 9.618437357674640e-3f);
  const Vector highest = multiply_add(Vector{} + 1.535336188319500e-4f, f2, high);
  const Vector result = multiply_add(multiply_add(highest, f2, middle), f2, low);
  return result * (Vector)(((Words)shifted << 23) + 0x3f800000u);
}

inline Vector magnitude(Vector value) { return (Vector)((Lanes)value & 0x7fffffff); }

struct Share {
  Vector sigmoid;
  Vector h;

  explicit Share(Vector v) : sigmoid(1.0f / (exp(-v) + 1.0f)), h(sigmoid * 1.2f - 0.1f) {
    h = h < 0.0f ? Vector{} : h;
    h = h > 1.0f ? Vector{} + 1.0f : h;
  }
};

// The grids of a block, one for all or, with channels innermost, one for each element.
struct SharedGrid {
  Vector scales;
  Vector offsets;
  Vector inverses;

  explicit SharedGrid(Affine affine)
      : scales(broadcast(affine.scale)),
        offsets(broadcast(affine.zero_point)),
        inverses(broadcast(1.0f / affine.scale)) {}
  template <typename Some>
  Vector scale(int64_t, Some) const {
    return scales;
  }
  template <typename Some>
  Vector offset(int64_t, Some) const {
    return offsets;
  }
  template <typename Some>
  Vector inverse(int64_t, Some) const {
    return inverses;
  }
};

struct GridPerElement {
  const float* scales;
  const float* offsets;

  template <typename Some>
  Vector scale(int64_t i, Some lanes) const {
    return lanes.load(scales + i, 1.0f);
  }
  template <typename Some>
  Vector offset(int64_t i, Some lanes) const {
    return lanes.load(offsets + i, 0.0f);
  }
  template <typename Some>
  Vector inverse(int64_t i, Some lanes) const {
    return 1.0f / scale(i, lanes);
  }
};

// Runs below this go together, each element with a copy of its channel's grid.
constexpr int64_t kShortRun = 32;

// Calls body(start, size, the grids of the elements from there, their codes as floats) for every block.
template <typename Body>
void for_each_piece(const SoftRoundParams& params, int64_t begin, int64_t end, Body body) {
  const auto with_codes = [&](int64_t start, int64_t size, auto grids) {
    float codes[kBlock];
    for (int64_t i = 0; i < size; ++i) codes[i] = static_cast<float>(params.base[start + i]);
    body(start, size, grids, codes);
  };
  const bool innermost = channels_innermost(params);
  if (params.channels > 1 && (innermost ? params.channels : params.inner) < kShortRun) {
    for (int64_t start = begin; start < end; start += kBlock) {
      const int64_t size = end - start < kBlock ? end - start : kBlock;
      float scales[kBlock];
      float offsets[kBlock];
      for_each_run(params, start, start + size, [&](int64_t first, int64_t count, int64_t channel) {
        for (int64_t i = 0; i < count; ++i) {
          scales[first - start + i] = params.scale[innermost ? channel + i : channel];
          offsets[first - start + i] = params.zero_point[innermost ? channel + i : channel];
        }
      });
      with_codes(start, size, GridPerElement{scales, offsets});
    }
    return;
  }
  for_each_run(params, begin, end, [&](int64_t start, int64_t count, int64_t channel) {
    const SharedGrid shared({params.scale[channel], params.zero_point[channel]});
    for (int64_t i = 0; i < count; i += kBlock) {
      const int64_t size = count - i < kBlock ? count - i : kBlock;
      if (innermost) {
        with_codes(start + i, size, GridPerElement{params.scale + channel + i, params.zero_point + channel + i});
      } else {
        with_codes(start + i, size, shared);
      }
    }
  });
}

struct Codes {
  Vector low;
  Vector high;

  explicit Codes(int bits) : low(broadcast(lowest_code(bits))), high(broadcast(highest_code(bits))) {}
  Vector clamp(Vector codes) const {
    codes = codes < low ? low : codes;
    return codes > high ? high : codes;
  }
};

// Adds a block's terms to the sums of their channels.
inline void add_to_channels(const SoftRoundParams& params, int64_t start, int64_t size, const float* terms,
                            double* sums) {
  const bool innermost = channels_innermost(params);
  for_each_run(params, start, start + size, [&](int64_t first, int64_t count, int64_t channel) {
    if (innermost) {
      add_row(terms + (first - start), count, sums + channel);
    } else {
      sums[channel] += sum_of_block(terms + (first - start), count);
    }
  });
}

// Sigmoids and powers have loops of their own: one loop would leave most of the processor waiting for a long chain.
void forward(const SoftRoundParams& params, int64_t begin, int64_t end, double* penalty) {
  const Codes grid(params.bits);
  const Vector exponent = broadcast(*params.exponent);
  for_each_piece(params, begin, end, [&](int64_t start, int64_t size, auto grids, const float* codes) {
    float shares[kBlock];
    for_each_vector(0, size, [&](int64_t i, auto lanes) {
      const Share share(lanes.load(params.v + start + i, 0.0f));
      lanes.store(shares + i, share.h);
      const Vector code = grid.clamp(lanes.load(codes + i, 0.0f) + share.h);
      lanes.store(params.y + start + i, (code + grids.offset(i, lanes)) / grids.scale(i, lanes));
    });
    float terms[kBlock];
    for_each_vector(0, size, [&](int64_t i, auto lanes) {
      const Vector h = lanes.load(shares + i, 0.0f);
      const Vector term = 1.0f - power_of(magnitude(h * 2.0f - 1.0f), exponent);
      lanes.store(terms + i, h == h ? term : h);
    });
    *penalty += sum_of_block(terms, size);
  });
}

template <bool kOfWeights, bool kOfPenalty>
void backward_from(const SoftRoundParams& params, int64_t begin, int64_t end, double* of_scale) {
  const Codes grid(params.bits);
  const Vector exponent = broadcast(*params.exponent - 1.0f);
  float factor = 0.0f;
  if constexpr (kOfPenalty) factor = 2.0f * *params.exponent * *params.grad_penalty;
  for_each_piece(params, begin, end, [&](int64_t start, int64_t size, auto grids, const float* codes) {
    float shares[kBlock];
    float slopes[kBlock];
    float* of_v = params.y + start;
    for_each_vector(0, size, [&](int64_t i, auto lanes) {
      const Share share(lanes.load(params.v + start + i, 0.0f));
      lanes.store(shares + i, share.h);
      const Vector slope = share.sigmoid * (1.0f - share.sigmoid) * 1.2f;
      lanes.store(slopes + i, (share.h <= 0.0f) | (share.h >= 1.0f) ? Vector{} : slope);
    });
    float penalties[kBlock];
    if constexpr (kOfPenalty) {
      for_each_vector(0, size, [&](int64_t i, auto lanes) {
        const Vector distance = lanes.load(shares + i, 0.0f) * 2.0f - 1.0f;
        const Vector slope = power_of(magnitude(distance), exponent) * factor;
        lanes.store(penalties + i, distance > 0.0f ? slope : distance < 0.0f ? -slope : Vector{});
      });
    }
    float terms[kBlock];
    for_each_vector(0, size, [&](int64_t i, auto lanes) {
      Vector of_h = {};
      if constexpr (kOfWeights) {
        const Vector gradient = lanes.load(params.gradient + start + i, 0.0f);
        const Vector lower = lanes.load(codes + i, 0.0f);
        // Between two levels of the grid, which 0 < h < 1 leaves to the base alone.
        of_h = (lower >= grid.low) & (lower < grid.high) ? gradient * grids.inverse(i, lanes) : Vector{};
        const Vector code = grid.clamp(lower + lanes.load(shares + i, 0.0f));
        lanes.store(terms + i, gradient * (code + grids.offset(i, lanes)));
      }
      if constexpr (kOfPenalty) of_h = of_h - lanes.load(penalties + i, 0.0f);
      const Vector slope = lanes.load(slopes + i, 0.0f);
      // NaN stays in both; elsewhere a slope of zero is a clamp.
      lanes.store(of_v + i, slope == 0.0f ? Vector{} : of_h * slope);
    });
    if constexpr (kOfWeights) add_to_channels(params, start, size, terms, of_scale);
  });
}

void backward(const SoftRoundParams& params, int64_t begin, int64_t end, double* of_scale) {
  if (params.gradient == nullptr) return backward_from<false, true>(params, begin, end, of_scale);
  if (params.grad_penalty == nullptr) return backward_from<true, false>(params, begin, end, of_scale);
  backward_from<true, true>(params, begin, end, of_scale);
}

}  // namespace

SYNQ_DEFINE_TABLE(SoftRoundKernels, soft_round_kernels) = {forward, backward};

}  // namespace synq::cpu
