// Layouts, ranges and bit widths that the tests of the fake quantization family go through.
#pragma once

#include <stdint.h>

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "cpu/fake_quantize.h"
#include "kernels.h"
#include "memory.h"
#include "quantizer_model.h"

namespace synq::test {

// Memory is (outer, channels, inner).
struct Shape {
  int64_t outer, channels, inner;
};

constexpr Shape kShapes[] = {
    {1, 1, 1},  {1, 1, 2},   {1, 1, 15},  {1, 1, 16},  {1, 1, 17},    // around one vector
    {1, 1, 63}, {1, 1, 129}, {1, 1, 512}, {1, 1, 513}, {1, 1, 1535},  // around the 16-bit block
    {5, 1, 3},                                                        // one channel, named as an axis
    {1, 3, 1},  {7, 5, 1},   {3, 65, 1},  {2, 515, 1},                // channels innermost
    {3, 5, 7},  {2, 3, 33},  {1, 4, 64},  {2, 2, 600},                // rows
    {9, 1, 1},
};

struct Case {
  Shape shape;
  int bits;
  Place place;
  std::vector<Model> models;

  int64_t count() const { return shape.outer * shape.channels * shape.inner; }
  const Model& model_of(int64_t i) const { return models[static_cast<size_t>(i / shape.inner % shape.channels)]; }
};

inline std::vector<Case> make_cases() {
  // Seven, so that a channel read from the wrong block of 512 has another range.
  constexpr float kRanges[][2] = {{-1.0f, 1.5f},  {0.0f, 6.0f}, {-0.2f, 0.1f},    {3.0f, 3.0f},
                                  {-1e30f, 1.0f}, {kNan, 1.0f}, {0.0f, kInfinity}};
  constexpr int kBits[] = {4, 2, 8, 3, 16, 9};
  std::vector<Case> cases;
  for (const Shape& shape : kShapes) {
    for (const Place place : kPlaces) {
      Case one{shape, kBits[cases.size() % std::size(kBits)], place, {}};
      const size_t first = shape.channels > 1 ? 0 : cases.size();
      for (size_t i = first; i < first + static_cast<size_t>(shape.channels); ++i) {
        const auto& range = kRanges[i % std::size(kRanges)];
        one.models.push_back(make_model(range[0], range[1], one.bits));
      }
      cases.push_back(std::move(one));
    }
  }
  return cases;
}

// The inputs of one case in guarded memory.
template <typename T>
struct Inputs {
  Buffer<T> x;
  Buffer<T> gradient;
  Buffer<float> scale;
  Buffer<float> zero_point;

  explicit Inputs(const Case& c, int special = 6)
      : x(random_values<T>(c.count(), 1, special, 2.0f), c.place),
        gradient(random_values<T>(c.count(), 2, special), c.place),
        scale(c.shape.channels, c.place),
        zero_point(c.shape.channels, c.place) {
    for (int64_t i = 0; i < c.shape.channels; ++i) {
      scale[i] = c.models[static_cast<size_t>(i)].scale;
      zero_point[i] = c.models[static_cast<size_t>(i)].zero_point;
    }
  }
};

template <typename T>
T element_type(const Inputs<T>&);

template <typename T>
cpu::Job make_job(const Case& c, const Inputs<T>& in, DType dtype, void* y) {
  return {in.x.data(),
          in.gradient.data(),
          y,
          in.scale.data(),
          in.zero_point.data(),
          c.shape.channels,
          c.shape.inner,
          c.bits,
          dtype};
}

// Calls body(kernels, case, inputs of the element type, dtype) for every case, type and instruction set.
template <typename Tables, typename Body>
void for_each_case(const Tables& tables, const Body& body) {
  const std::vector<Case> cases = make_cases();
  for (const DType dtype : kDTypes) {
    for (const Case& c : cases) {
      cpu::with_type(dtype, [&](auto tag) {
        const Inputs<decltype(tag)> in(c);
        for (const auto& [isa, kernels] : tables) {
          WHERE(isa, name_of(dtype), "outer", c.shape.outer, "channels", c.shape.channels, "inner", c.shape.inner,
                "bits", c.bits, name_of(c.place));
          body(kernels, c, in, dtype);
        }
      });
    }
  }
}

// Checks a kernel that writes one Out for each element: expected_of(model of the element's channel, index).
template <typename Out, typename Expected, typename Run>
void check_elements(const Case& c, const Expected& expected_of, const Run& run) {
  std::vector<Out> expected;
  for (int64_t i = 0; i < c.count(); ++i) expected.push_back(expected_of(c.model_of(i), i));
  check_splits(expected, c.place, run);
}

// A case with finite ranges, long enough for several blocks, for threads and sums.
inline Case plain_case(Place place) {
  return {{3, 5, 401}, 4, place, std::vector<Model>(5, make_model(-1.0f, 1.5f, 4))};
}

inline float lowest(float a, float b) { return std::isnan(a) || std::isnan(b) ? kNan : std::min(a, b); }
inline float largest(float a, float b) { return std::isnan(a) || std::isnan(b) ? kNan : std::max(a, b); }

}  // namespace synq::test
