// The CPU kernels of the fake quantization family, on every instruction set that can run here.
#include "cpu/fake_quantize.h"

#include <algorithm>

#include "kernels.h"
#include "memory.h"
#include "quantizer_model.h"

namespace {

using namespace synq;
using namespace synq::test;
using Kernel = void (*)(const cpu::Job&, int64_t, int64_t);

struct Shape {
  int64_t outer, channels, inner;
};

const Shape kShapes[] = {
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

std::vector<Case> make_cases() {
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

  explicit Inputs(const Case& c)
      : x(random_values<T>(c.count(), 1, 6, 2.0f), c.place),
        gradient(random_values<T>(c.count(), 2, 9), c.place),
        scale(c.shape.channels, c.place),
        zero_point(c.shape.channels, c.place) {
    for (int64_t i = 0; i < c.shape.channels; ++i) {
      scale[i] = c.models[static_cast<size_t>(i)].scale;
      zero_point[i] = c.models[static_cast<size_t>(i)].zero_point;
    }
  }

  cpu::Job job(const Case& c, DType dtype, void* y) const {
    return {x.data(),         gradient.data(), y,      scale.data(), zero_point.data(),
            c.shape.channels, c.shape.inner,   c.bits, dtype};
  }
};

// Any split into parts, in any order, gives the expected elements, and no part writes outside its own.
template <typename T, typename Run>
void check_splits(const std::vector<T>& expected, Place place, const Run& run) {
  const int64_t count = static_cast<int64_t>(expected.size());
  Buffer<T> y(count, place);
  for (const Split& split : splits(count)) {
    y.clear();
    std::vector<bool> written(expected.size());
    for (const auto& [begin, end] : split) {
      run(y.data(), begin, end);
      std::fill(written.begin() + begin, written.begin() + end, true);
      int64_t start = 0;
      for (int64_t i = 0; i <= count; ++i) {
        if (i < count && !written[static_cast<size_t>(i)]) continue;
        if (!y.is_untouched(start, i)) {
          WHERE("part", begin, end);
          CHECK(y.is_untouched(start, i));
        }
        start = i + 1;
      }
    }
    CHECK_ALL_EQUAL(y.data(), expected.data(), count);
  }
}

template <typename T, typename Out, typename Expected>
void check_kernel(Kernel kernel, const Case& c, DType dtype, const Inputs<T>& in, const Expected& expected_of) {
  std::vector<Out> expected;
  for (int64_t i = 0; i < c.count(); ++i) expected.push_back(expected_of(c.model_of(i), i));
  check_splits(expected, c.place, [&](Out* y, int64_t begin, int64_t end) { kernel(in.job(c, dtype, y), begin, end); });
}

// Calls body(kernels, case, inputs of the element type, dtype) for everything there is.
template <typename Body>
void for_each_case(const Body& body) {
  const std::vector<Case> cases = make_cases();
  for (const DType dtype : kDTypes) {
    for (const Case& c : cases) {
      cpu::with_type(dtype, [&](auto tag) {
        const Inputs<decltype(tag)> in(c);
        for (const auto& [isa, kernels] : SYNQ_TABLES(cpu::fake_quantize_kernels)) {
          WHERE(isa, name_of(dtype), "outer", c.shape.outer, "channels", c.shape.channels, "inner", c.shape.inner,
                "bits", c.bits, name_of(c.place));
          body(kernels, c, in, dtype);
        }
      });
    }
  }
}

template <typename T>
T element_type(const Inputs<T>&);

float lowest(float a, float b) { return std::isnan(a) || std::isnan(b) ? kNan : std::min(a, b); }
float largest(float a, float b) { return std::isnan(a) || std::isnan(b) ? kNan : std::max(a, b); }

}  // namespace

TEST(values) {
  for_each_case([](const auto& kernels, const Case& c, const auto& in, DType dtype) {
    using T = decltype(element_type(in));
    check_kernel<T, T>(kernels.fake_quantize, c, dtype, in, [&](const Model& model, int64_t i) {
      return from_float<T>(value_of(model, to_float(in.x[i])));
    });
  });
}

TEST(gradients) {
  for_each_case([](const auto& kernels, const Case& c, const auto& in, DType dtype) {
    using T = decltype(element_type(in));
    check_kernel<T, T>(kernels.fake_quantize_backward, c, dtype, in, [&](const Model& model, int64_t i) {
      return is_outside(model, to_float(in.x[i])) ? from_float<T>(0.0f) : in.gradient[i];
    });
  });
}

TEST(codes) {
  for_each_case([](const auto& kernels, const Case& c, const auto& in, DType dtype) {
    using T = decltype(element_type(in));
    const auto check = [&](auto code) {
      using Code = decltype(code);
      check_kernel<T, Code>(kernels.quantize_codes, c, dtype, in, [&](const Model& model, int64_t i) {
        const double exact = code_of(model, to_float(in.x[i]));
        return static_cast<Code>(std::isnan(exact) ? 0.0 : exact);
      });
    };
    c.bits <= 8 ? check(int8_t{}) : check(int16_t{});
  });
}

TEST(ranges) {
  for_each_case([](const auto& kernels, const Case& c, const auto& in, DType dtype) {
    const size_t channels = static_cast<size_t>(c.shape.channels);
    std::vector<float> expected_low(channels, kInfinity);
    std::vector<float> expected_high(channels, -kInfinity);
    for (int64_t i = 0; i < c.count(); ++i) {
      const size_t channel = static_cast<size_t>(i / c.shape.inner) % channels;
      expected_low[channel] = lowest(expected_low[channel], to_float(in.x[i]));
      expected_high[channel] = largest(expected_high[channel], to_float(in.x[i]));
    }
    Buffer<float> low(c.shape.channels, c.place);
    Buffer<float> high(c.shape.channels, c.place);
    for (const Split& split : splits(c.count())) {
      low.fill(kInfinity);
      high.fill(-kInfinity);
      for (const auto& [begin, end] : split) {
        kernels.find_range(in.job(c, dtype, nullptr), begin, end, low.data(), high.data());
      }
      // Which zero of -0 and +0 is the smaller depends on the order of comparison.
      for (int64_t i = 0; i < c.shape.channels; ++i) {
        CHECK_EQUAL(low[i] + 0.0f, expected_low[static_cast<size_t>(i)] + 0.0f);
        CHECK_EQUAL(high[i] + 0.0f, expected_high[static_cast<size_t>(i)] + 0.0f);
      }
    }
  });
}

TEST(nan_at_any_place_is_in_the_range) {
  for (const auto& [isa, kernels] : SYNQ_TABLES(cpu::fake_quantize_kernels)) {
    for (int64_t place = 0; place < 200; ++place) {
      WHERE(isa, "NaN at", place);
      Buffer<float> x(random_values<float>(200, 3), Place::kEnd);
      x[place] = kNan;
      cpu::Job job{};
      job.x = x.data();
      job.channels = 1;
      job.inner = 200;
      job.dtype = DType::kFloat32;
      float low = kInfinity;
      float high = -kInfinity;
      kernels.find_range(job, 0, 200, &low, &high);
      CHECK_EQUAL(low, kNan);
      CHECK_EQUAL(high, kNan);
    }
  }
}

TEST(threads_on_disjoint_parts) {
  for (const auto& set : SYNQ_TABLES(cpu::fake_quantize_kernels)) {
    const Case c{{3, 5, 401}, 4, Place::kShifted, std::vector<Model>(5, make_model(-1.0f, 1.5f, 4))};
    for (const DType dtype : kDTypes) {
      WHERE(set.isa, name_of(dtype));
      cpu::with_type(dtype, [&](auto tag) {
        using T = decltype(tag);
        const Inputs<T> in(c);
        for (const Kernel kernel : {set.table.fake_quantize, set.table.fake_quantize_backward}) {
          Buffer<T> alone(c.count(), c.place);
          kernel(in.job(c, dtype, alone.data()), 0, c.count());
          for (const Split& split : splits(c.count())) {
            Buffer<T> y(c.count(), c.place);
            in_threads(split, [&](int64_t begin, int64_t end) { kernel(in.job(c, dtype, y.data()), begin, end); });
            CHECK_ALL_EQUAL(y.data(), alone.data(), c.count());
          }
        }
      });
    }
  }
}
