// Folding the lines of a tile about their symmetries, and unfolding them.
//
// One halving of a line of length L = 2 h writes, in place of the line,
//   [0, h)           x[i] + x[i + h], a line of length h that repeats; it is folded again,
//   h + i            even values of the line that changes sign after h: s[i] - s[h - i] with s[i] = x[i] - x[i + h],
//   L - i            odd values: s[i] + s[h - i].
// What is left after the last halving is folded into x[i] + x[m - i] at i and x[i] - x[m - i] at m - i.
#pragma once

#include "cpu/low_pass.h"
#include "cpu/vector.h"

namespace synq::cpu {
namespace {

constexpr int64_t kTile = 2 * kLanes;  // lines side by side

template <int kVectors, typename Body>
inline void for_each_vector(Body body) {
  for (int v = 0; v < kVectors; ++v) body(v * kLanes);
}

// The sum at `first` and the difference at `second`, of rows a and b.
template <int kVectors>
inline void butterfly(const float* a, const float* b, float* first, float* second) {
  for_each_vector<kVectors>([&](int64_t v) {
    const Vector p = load_vector(a + v), q = load_vector(b + v);
    store_vector(first + v, p + q);
    store_vector(second + v, p - q);
  });
}

template <int kVectors>
inline void fold_ends(float* tile, int64_t length) {
  for (int64_t i = 1; 2 * i < length; ++i) {
    float* a = tile + i * kTile;
    float* b = tile + (length - i) * kTile;
    butterfly<kVectors>(a, b, a, b);
  }
}

template <int kVectors>
void halve(const float* x, int64_t stride, float* y, int64_t length) {
  const int64_t h = length / 2;
  butterfly<kVectors>(x, x + h * stride, y, y + h * kTile);
  for (int64_t i = 1; 2 * i < h; ++i) {
    const float* rows = x + i * stride;
    const float* mirrored = x + (h - i) * stride;
    float* even = y + (h + i) * kTile;
    float* odd = y + (length - i) * kTile;
    for_each_vector<kVectors>([&](int64_t v) {
      const Vector a = load_vector(rows + v), b = load_vector(rows + h * stride + v);
      const Vector c = load_vector(mirrored + v), d = load_vector(mirrored + h * stride + v);
      const Vector s = a - b, r = c - d;
      store_vector(y + i * kTile + v, a + b);
      store_vector(y + (h - i) * kTile + v, c + d);
      store_vector(even + v, s - r);
      store_vector(odd + v, s + r);
    });
  }
  if (h % 2 == 0) {
    const int64_t q = h / 2;
    butterfly<kVectors>(x + q * stride, x + (q + h) * stride, y + q * kTile, y + (q + h) * kTile);
  }
}

template <int kVectors>
void unhalve(const float* x, float* y, int64_t stride, int64_t length) {
  const int64_t h = length / 2;
  butterfly<kVectors>(x, x + h * kTile, y, y + h * stride);
  for (int64_t i = 1; 2 * i < h; ++i) {
    float* rows = y + i * stride;
    float* mirrored = y + (h - i) * stride;
    const float* even = x + (h + i) * kTile;
    const float* odd = x + (length - i) * kTile;
    for_each_vector<kVectors>([&](int64_t v) {
      const Vector a = load_vector(x + i * kTile + v), c = load_vector(x + (h - i) * kTile + v);
      const Vector e = load_vector(even + v), o = load_vector(odd + v);
      const Vector s = e + o, r = o - e;
      store_vector(rows + v, a + s);
      store_vector(rows + h * stride + v, a - s);
      store_vector(mirrored + v, c + r);
      store_vector(mirrored + h * stride + v, c - r);
    });
  }
  if (h % 2 == 0) {
    const int64_t q = h / 2;
    butterfly<kVectors>(x + q * kTile, x + (q + h) * kTile, y + q * stride, y + (q + h) * stride);
  }
}

template <int kVectors>
void move(const float* x, int64_t from_stride, float* y, int64_t to_stride, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    for_each_vector<kVectors>(
        [&](int64_t v) { store_vector(y + i * to_stride + v, load_vector(x + i * from_stride + v)); });
  }
}

template <int kVectors>
void fold_any(const float* x, int64_t stride, float* tile, const FilterAxis& axis) {
  if (axis.levels > 0) {
    halve<kVectors>(x, stride, tile, axis.n);
  } else if (x != tile) {
    move<kVectors>(x, stride, tile, kTile, axis.n);
  }
  for (int64_t level = 1; level < axis.levels; ++level) halve<kVectors>(tile, kTile, tile, axis.n >> level);
  fold_ends<kVectors>(tile, axis.n >> axis.levels);
}

template <int kVectors>
void unfold_any(float* tile, float* y, int64_t stride, const FilterAxis& axis) {
  fold_ends<kVectors>(tile, axis.n >> axis.levels);
  for (int64_t level = axis.levels - 1; level > 0; --level) unhalve<kVectors>(tile, tile, kTile, axis.n >> level);
  if (axis.levels > 0) {
    unhalve<kVectors>(tile, y, stride, axis.n);
  } else if (y != tile) {
    move<kVectors>(tile, kTile, y, stride, axis.n);
  }
}

// x has rows `stride` apart and may be the tile itself.
inline void fold(const float* x, int64_t stride, float* tile, const FilterAxis& axis, int vectors) {
  return vectors == 1 ? fold_any<1>(x, stride, tile, axis) : fold_any<2>(x, stride, tile, axis);
}

// Changes the tile; y may be the tile itself.
inline void unfold(float* tile, float* y, int64_t stride, const FilterAxis& axis, int vectors) {
  return vectors == 1 ? unfold_any<1>(tile, y, stride, axis) : unfold_any<2>(tile, y, stride, axis);
}

}  // namespace
}  // namespace synq::cpu
