// The CPU kernels of small floats, on every instruction set that can run here.
#include "cpu/fake_quantize_minifloat.h"

#include <algorithm>
#include <cmath>

#include "minifloat_grid.h"
#include "minifloat_model.h"
#include "quantizer_cases.h"

namespace {

using namespace synq;
using namespace synq::test;

constexpr int kLeast = 3;
constexpr int kMost = 8;

// The same cases with widths and grids of small floats.
std::vector<Case> minifloat_cases() {
  constexpr float kRanges[][2] = {{-1.0f, 1.5f},  {0.0f, 6.0f}, {-0.2f, 0.1f},    {3.0f, 3.0f},
                                  {-1e30f, 1.0f}, {kNan, 1.0f}, {0.0f, kInfinity}};
  std::vector<Case> cases = make_cases();
  for (size_t index = 0; index < cases.size(); ++index) {
    Case& c = cases[index];
    c.bits = kLeast + static_cast<int>(index % (kMost - kLeast + 1));
    for (size_t i = 0; i < c.models.size(); ++i) {
      const auto& range = kRanges[(c.models.size() > 1 ? i : index) % std::size(kRanges)];
      c.models[i] = minifloat_model(range[0], range[1], c.bits);
    }
  }
  return cases;
}

template <typename Body>
void for_each_minifloat_case(const Body& body) {
  for (const DType dtype : kDTypes) {
    for (const Case& c : minifloat_cases()) {
      cpu::with_type(dtype, [&](auto tag) {
        const Inputs<decltype(tag)> in(c);
        for (const auto& [isa, kernels] : SYNQ_TABLES(cpu::fake_quantize_minifloat_kernels)) {
          WHERE(isa, name_of(dtype), "channels", c.shape.channels, "inner", c.shape.inner, "bits", c.bits,
                name_of(c.place));
          body(kernels, c, in, dtype);
        }
      });
    }
  }
}

}  // namespace

TEST(levels) {
  const Affine unit{1.0f, 0.0f};
  for (int bits = kLeast; bits <= kMost; ++bits) {
    const Minifloat grid = minifloat_of(bits);
    const std::vector<double> levels = levels_of(bits);
    CHECK_EQUAL(double(grid.largest), levels[levels.size() - 2]);
    std::vector<float> values = {-1.0f, -0.6f, -0.5f, -0.4f, kInfinity, -kInfinity, 1e30f, -1e30f};
    for (size_t code = 0; code + 1 < levels.size(); ++code) {
      for (const double value : {levels[code], (levels[code] + levels[code + 1]) / 2}) {
        const float exact = static_cast<float>(value);
        values.insert(values.end(), {exact, std::nextafter(exact, kInfinity), std::nextafter(exact, -kInfinity)});
      }
    }
    for (const float steps : values) {
      WHERE("bits", bits, "steps", steps);
      const double level = level_by_search(steps, bits);
      const double inside = std::clamp(level, 0.0, double(grid.largest));
      CHECK_EQUAL(double(minifloat_level(steps, grid)), inside);
      CHECK_EQUAL(minifloat_gradient(3.0f, steps, unit, grid), level == inside ? 3.0f : 0.0f);
    }
    CHECK_EQUAL(minifloat_level(kNan, grid), kNan);
    CHECK_EQUAL(minifloat_gradient(3.0f, kNan, unit, grid), 3.0f);
  }
}

TEST(scale_and_zero_point_equal_the_formulas) {
  for (int bits = kLeast; bits <= kMost; ++bits) {
    for (const auto& range : {Range{-1.0f, 1.5f}, Range{0.0f, 6.0f}, Range{-3e38f, 3e38f}, Range{2.0f, 2.0f}}) {
      const Affine affine = make_affine(range.low, range.high, minifloat_span(bits));
      const Model model = minifloat_model(range.low, range.high, bits);
      CHECK_EQUAL(affine.scale, model.scale);
      CHECK_EQUAL(affine.zero_point, model.zero_point);
    }
  }
}

TEST(values) {
  for_each_minifloat_case([](const auto& kernels, const Case& c, const auto& in, DType dtype) {
    using T = decltype(element_type(in));
    check_elements<T>(
        c,
        [&](const Model& model, int64_t i) {
          return from_float<T>(value_of_minifloat(model, to_float(in.x[i]), c.bits));
        },
        [&](T* y, int64_t begin, int64_t end) { kernels.forward(make_job(c, in, dtype, y), begin, end); });
  });
}

TEST(gradients) {
  for_each_minifloat_case([](const auto& kernels, const Case& c, const auto& in, DType dtype) {
    using T = decltype(element_type(in));
    check_elements<T>(
        c,
        [&](const Model& model, int64_t i) {
          return is_outside_minifloat(model, to_float(in.x[i]), c.bits) ? from_float<T>(0.0f) : in.gradient[i];
        },
        [&](T* y, int64_t begin, int64_t end) { kernels.backward(make_job(c, in, dtype, y), begin, end); });
  });
}

TEST(threads_on_disjoint_parts) {
  Case c = plain_case(Place::kShifted);
  for (Model& model : c.models) model = minifloat_model(-1.0f, 1.5f, c.bits);
  for (const auto& set : SYNQ_TABLES(cpu::fake_quantize_minifloat_kernels)) {
    for (const DType dtype : kDTypes) {
      WHERE(set.isa, name_of(dtype));
      cpu::with_type(dtype, [&](auto tag) {
        const Inputs<decltype(tag)> in(c);
        for (const auto kernel : {set.table.forward, set.table.backward}) {
          check_threads<decltype(tag)>(c.count(), c.place, [&](auto* y, int64_t begin, int64_t end) {
            kernel(make_job(c, in, dtype, y), begin, end);
          });
        }
      });
    }
  }
}
