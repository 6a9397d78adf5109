// Squared differences of neighbouring pixels, and the gradient of their norms.
#include "total_variation.h"

#include "cpu/row_sums.h"

namespace synq::cpu {
namespace {

template <typename T>
void sums_typed(const TotalVariationParams& params, int64_t begin, int64_t end, double* sums, float* scratch) {
  const T* x = static_cast<const T*>(params.x);
  const int64_t step = params.step, length = params.width * step, shorter = length - step;
  for (int64_t row = begin; row < end; ++row, sums += 4) {
    const float* here = as_floats(x + row * length, length, scratch);
    Wide right{}, down{}, diagonal{}, other{};
    add_terms(shorter, right, [&](int64_t i, auto type) {
      const auto d = read(here + i + step, type) - read(here + i, type);
      return d * d;
    });
    if ((row + 1) % params.height != 0) {
      const float* below = as_floats(x + (row + 1) * length, length, scratch + length);
      add_terms(length, down, [&](int64_t i, auto type) {
        const auto d = read(below + i, type) - read(here + i, type);
        return d * d;
      });
      add_terms(shorter, diagonal, [&](int64_t i, auto type) {
        const auto d = read(below + i + step, type) - read(here + i, type);
        return d * d;
      });
      add_terms(shorter, other, [&](int64_t i, auto type) {
        const auto d = read(below + i, type) - read(here + i + step, type);
        return d * d;
      });
    }
    sums[0] = sum_lanes_double(right);
    sums[1] = sum_lanes_double(down);
    sums[2] = sum_lanes_double(diagonal);
    sums[3] = sum_lanes_double(other);
  }
}

// A row and its neighbours; those that do not exist are null.
struct Neighbours {
  const float* up;
  const float* here;
  const float* down;
  const float* factors;
  int64_t step;
};

// Pixels of one row that have the same neighbours.
template <bool kUp, bool kDown, bool kLeft, bool kRight>
SYNQ_INLINE void gradient_of(const Neighbours& rows, int64_t begin, int64_t end, float* y) {
  const float* f = rows.factors;
  const int64_t step = rows.step;
  if (begin >= end) return;
  write_floats(y + begin, end - begin, [&](int64_t place, auto type) {
    const int64_t i = begin + place;
    const auto x = read(rows.here + i, type);
    auto total = type;
    const auto add = [&](float factor, const float* neighbour) {
      total = total + factor * (x - read(neighbour + i, type));
    };
    if constexpr (kRight) add(f[0], rows.here + step);
    if constexpr (kLeft) add(f[0], rows.here - step);
    if constexpr (kDown) add(f[1], rows.down);
    if constexpr (kUp) add(f[1], rows.up);
    if constexpr (kDown && kRight) add(f[2], rows.down + step);
    if constexpr (kUp && kLeft) add(f[2], rows.up - step);
    if constexpr (kDown && kLeft) add(f[3], rows.down - step);
    if constexpr (kUp && kRight) add(f[3], rows.up + step);
    return total;
  });
}

template <bool kUp, bool kDown>
void gradient_of_row(const Neighbours& rows, int64_t length, float* y) {
  const int64_t step = rows.step;
  if (length == step) return gradient_of<kUp, kDown, false, false>(rows, 0, length, y);
  gradient_of<kUp, kDown, false, true>(rows, 0, step, y);
  gradient_of<kUp, kDown, true, true>(rows, step, length - step, y);
  gradient_of<kUp, kDown, true, false>(rows, length - step, length, y);
}

template <typename T>
void backward_typed(const TotalVariationParams& params, int64_t begin, int64_t end, float* scratch) {
  const T* x = static_cast<const T*>(params.x);
  const int64_t length = params.width * params.step, height = params.height;
  const int64_t group_rows = params.planes / params.groups * height;
  for (int64_t row = begin; row < end; ++row) {
    const bool has_up = row % height != 0, has_down = (row + 1) % height != 0;
    Neighbours rows{};
    rows.here = as_floats(x + row * length, length, scratch);
    if (has_up) rows.up = as_floats(x + (row - 1) * length, length, scratch + length);
    if (has_down) rows.down = as_floats(x + (row + 1) * length, length, scratch + 2 * length);
    rows.factors = params.factors + row / group_rows * 4;
    rows.step = params.step;
    T* target = static_cast<T*>(params.y) + row * length;
    float* y;
    if constexpr (std::is_same_v<T, float>) {
      y = target;
    } else {
      y = scratch + 3 * length;
    }
    if (has_up && has_down) {
      gradient_of_row<true, true>(rows, length, y);
    } else if (has_up) {
      gradient_of_row<true, false>(rows, length, y);
    } else if (has_down) {
      gradient_of_row<false, true>(rows, length, y);
    } else {
      gradient_of_row<false, false>(rows, length, y);
    }
    if constexpr (!std::is_same_v<T, float>) store(y, target, length);
  }
}

void sums(const TotalVariationParams& params, int64_t begin, int64_t end, double* sums, float* scratch) {
  with_type(params.dtype, [&](auto tag) { sums_typed<decltype(tag)>(params, begin, end, sums, scratch); });
}

void backward(const TotalVariationParams& params, int64_t begin, int64_t end, float* scratch) {
  with_type(params.dtype, [&](auto tag) { backward_typed<decltype(tag)>(params, begin, end, scratch); });
}

}  // namespace

SYNQ_DEFINE_TABLE(TotalVariationKernels, total_variation_kernels) = {sums, backward};

}  // namespace synq::cpu
