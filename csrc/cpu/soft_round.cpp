// Soft rounding and its gradients for one instruction set; what fake_quantize.cpp says about shared code holds here
// too.
#include "soft_round.h"

#include <float.h>

#include "affine.h"
#include "cpu/channel_sums.h"
#include "cpu/exp.h"
#include "cpu/fake_quantize_loops.h"
#include "cpu/lanes.h"
#include "cpu/log.h"

namespace synq::cpu {
namespace {

typedef int8_t Codes __attribute__((vector_size(SYNQ_VECTOR_BYTES / 4)));

inline Vector load_codes(const int8_t* source, Whole) {
  Codes codes;
  memcpy(&codes, source, sizeof codes);
  return __builtin_convertvector(codes, Vector);
}

inline Vector load_codes(const int8_t* source, Part part) {
  Codes codes = {};
  memcpy(&codes, source, static_cast<size_t>(part.count));
  return __builtin_convertvector(codes, Vector);
}

struct Share {
  Vector sigmoid;
  Vector h;

  explicit Share(Vector v) : sigmoid(1.0f / (exp(-v) + 1.0f)), h(sigmoid * 1.2f - 0.1f) {
    h = h < 0.0f ? Vector{} : h;
    h = h > 1.0f ? Vector{} + 1.0f : h;
  }

  Vector signed_distance() const { return h * 2.0f - 1.0f; }
};

inline Vector magnitude(Vector value) { return (Vector)((Lanes)value & 0x7fffffff); }

// u^exponent for u from 0 to 1; of NaN some number.
inline Vector power_of(Vector u, Vector exponent) { return exp(exponent * log(u < FLT_MIN ? Vector{} + FLT_MIN : u)); }

// The parameters of a run's channels, one for all or, with channels innermost, one for each element.
struct SharedGrid {
  Affine affine;
  template <typename Lanes>
  Vector scale(int64_t, Lanes) const {
    return broadcast(affine.scale);
  }
  template <typename Lanes>
  Vector zero_point(int64_t, Lanes) const {
    return broadcast(affine.zero_point);
  }
};

struct GridPerElement {
  const float* scales;
  const float* zero_points;
  template <typename Lanes>
  Vector scale(int64_t i, Lanes lanes) const {
    return lanes.load(scales + i, 1.0f);
  }
  template <typename Lanes>
  Vector zero_point(int64_t i, Lanes lanes) const {
    return lanes.load(zero_points + i, 0.0f);
  }
};

// Calls body(start, size, first channel, the grids from there) for every block of every run.
template <typename Body>
void for_each_piece(const SoftRoundParams& params, int64_t begin, int64_t end, Body body) {
  const bool innermost = channels_innermost(params);
  for_each_run(params, begin, end, [&](int64_t start, int64_t count, int64_t channel) {
    for (int64_t i = 0; i < count; i += kBlock) {
      const int64_t size = count - i < kBlock ? count - i : kBlock;
      if (innermost) {
        const int64_t first = channel + i;
        body(start + i, size, first, GridPerElement{params.scale + first, params.zero_point + first});
      } else {
        body(start + i, size, channel, SharedGrid{{params.scale[channel], params.zero_point[channel]}});
      }
    }
  });
}

template <typename V>
inline V clamp_codes(V codes, Grid grid) {
  codes = codes < grid.low ? V{} + grid.low : codes;
  return codes > grid.high ? V{} + grid.high : codes;
}

void forward(const SoftRoundParams& params, int64_t begin, int64_t end, double* penalty) {
  const Grid grid = grid_of(params.bits);
  const Vector exponent = broadcast(*params.exponent);
  for_each_piece(params, begin, end, [&](int64_t start, int64_t size, int64_t, auto grids) {
    const float* v = params.v + start;
    const int8_t* base = params.base + start;
    float* w = params.y + start;
    float terms[kBlock];
    for_each_vector(0, size, [&](int64_t i, auto lanes) {
      const Share share(lanes.load(v + i, 0.0f));
      const Vector codes = clamp_codes(load_codes(base + i, lanes) + share.h, grid);
      lanes.store(w + i, (codes + grids.zero_point(i, lanes)) / grids.scale(i, lanes));
      const Vector power = power_of(magnitude(share.signed_distance()), exponent);
      // NaN is lost in the power.
      lanes.store(terms + i, share.h == share.h ? 1.0f - power : share.h);
    });
    add_run(terms, size, penalty);
  });
}

template <bool kOfWeights, bool kOfPenalty>
void backward_from(const SoftRoundParams& params, int64_t begin, int64_t end, double* of_scale) {
  const Grid grid = grid_of(params.bits);
  const bool innermost = channels_innermost(params);
  const Vector exponent = broadcast(*params.exponent - 1.0f);
  float factor = 0.0f;
  if constexpr (kOfPenalty) factor = 2.0f * *params.exponent * *params.grad_penalty;
  for_each_piece(params, begin, end, [&](int64_t start, int64_t size, int64_t channel, auto grids) {
    const float* v = params.v + start;
    const int8_t* base = params.base + start;
    float* of_v = params.y + start;
    float terms[kBlock];
    for_each_vector(0, size, [&](int64_t i, auto lanes) {
      const Share share(lanes.load(v + i, 0.0f));
      Vector of_h = {};
      if constexpr (kOfWeights) {
        const Vector gradient = lanes.load(params.gradient + start + i, 0.0f);
        const Vector lower = load_codes(base + i, lanes);
        // Between two levels of the grid, which 0 < h < 1 leaves to the base alone.
        of_h = (lower >= grid.low) & (lower < grid.high) ? gradient / grids.scale(i, lanes) : Vector{};
        const Vector codes = clamp_codes(lower + share.h, grid);
        lanes.store(terms + i, gradient * (codes + grids.zero_point(i, lanes)));
      }
      if constexpr (kOfPenalty) {
        const Vector distance = share.signed_distance();
        const Vector slope = power_of(magnitude(distance), exponent) * factor;
        of_h = of_h - (distance > 0.0f ? slope : distance < 0.0f ? -slope : Vector{});
      }
      const Vector slope = share.sigmoid * (1.0f - share.sigmoid) * 1.2f;
      lanes.store(of_v + i, (share.h <= 0.0f) | (share.h >= 1.0f) ? Vector{} : of_h * slope);
    });
    if constexpr (kOfWeights) add_terms(terms, size, innermost, of_scale + channel);
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
