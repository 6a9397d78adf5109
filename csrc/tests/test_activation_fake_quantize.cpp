// The CPU kernels of GELU with fake quantization, on every instruction set that can run here.
#include "cpu/gelu_fake_quantize.h"

#include <cmath>

#include "quantizer_cases.h"

namespace {

using namespace synq;
using namespace synq::test;

constexpr int64_t kCounts[] = {1, 2, 15, 16, 17, 511, 512, 513, 1999};
constexpr int kBits = 4;

Case case_of(int64_t count, Place place) { return {{1, 1, count}, kBits, place, {make_model(-0.12f, 2.2f, kBits)}}; }

double below(double x) { return 0.5 * std::erfc(-x / std::sqrt(2.0)); }

double slope(double x) { return below(x) + x * std::exp(-x * x / 2) / std::sqrt(2 * M_PI); }

// How far a value in [-1, 1] steps around a code lies from the middle between two.
bool is_decided(const Model& model, double value) {
  const double position = model.scale * value - model.zero_point;
  return std::fabs(position - std::floor(position) - 0.5) > 1e-5;
}

template <typename Body>
void for_each_input(const Body& body) {
  for (const auto& set : SYNQ_TABLES(cpu::gelu_fake_quantize_kernels)) {
    for (const DType dtype : kDTypes) {
      for (const int64_t count : kCounts) {
        for (const Place place : kPlaces) {
          const Case c = case_of(count, place);
          WHERE(set.isa, name_of(dtype), count, name_of(place));
          cpu::with_type(dtype, [&](auto tag) {
            const Inputs<decltype(tag)> in(c);
            body(set.table, c, in, dtype);
          });
        }
      }
    }
  }
}

}  // namespace

TEST(values) {
  for_each_input([](const auto& kernels, const Case& c, const auto& in, DType dtype) {
    using T = decltype(element_type(in));
    const auto run = [&](T* y, int64_t begin, int64_t end) { kernels.forward(make_job(c, in, dtype, y), begin, end); };
    const std::vector<T> whole = in_one_part<T>(c.count(), c.place, run);
    const Model& model = c.model_of(0);
    for (int64_t i = 0; i < c.count(); ++i) {
      const double x = to_float(in.x[i]);
      const double value = x * below(x);
      if (std::isnan(value) || !is_decided(model, value)) continue;
      const float expected = to_float(from_float<T>(value_of(model, static_cast<float>(value))));
      CHECK_EQUAL(to_float(whole[static_cast<size_t>(i)]), expected);
    }
    check_splits(whole, c.place, run);
    check_threads<T>(c.count(), c.place, run);
  });
}

TEST(gradients) {
  for_each_input([](const auto& kernels, const Case& c, const auto& in, DType dtype) {
    using T = decltype(element_type(in));
    const auto run = [&](T* y, int64_t begin, int64_t end) {
      double of_scale = 0.0, of_zero = 0.0;
      kernels.backward(make_job(c, in, dtype, y), begin, end, &of_scale, &of_zero);
    };
    const std::vector<T> whole = in_one_part<T>(c.count(), c.place, run);
    const Model& model = c.model_of(0);
    for (int64_t i = 0; i < c.count(); ++i) {
      const double x = to_float(in.x[i]);
      const double value = x * below(x);
      const double gradient = to_float(in.gradient[i]);
      const double expected = is_outside(model, static_cast<float>(value)) ? 0.0 : gradient * slope(x);
      if (!std::isfinite(expected) || !(std::fabs(gradient) < 1e4) || !is_decided(model, value)) continue;
      const double error = std::fabs(to_float(whole[static_cast<size_t>(i)]) - expected);
      const double rounding = dtype == DType::kFloat32 ? 1e-7 : 4e-3;
      WHERE("x", x, "gradient", gradient, "error", error);
      CHECK(error <= 5e-7 * std::fabs(gradient) + rounding * std::fabs(expected) + 1e-7);
    }
    check_splits(whole, c.place, run);
    check_threads<T>(c.count(), c.place, run);
  });
}

TEST(sums) {
  for (const auto& set : SYNQ_TABLES(cpu::gelu_fake_quantize_kernels)) {
    WHERE(set.isa);
    const Case c = case_of(1999, Place::kShifted);
    const Inputs<float> in(c, 0);
    const Model& model = c.model_of(0);
    double scale = 0.0, zero = 0.0;
    for (int64_t i = 0; i < c.count(); ++i) {
      const float value = static_cast<float>(in.x[i] * below(in.x[i]));
      const double position = double(model.scale) * value - model.zero_point;
      const bool outside = is_outside(model, value);
      const double code = code_of(model, value);
      scale += in.gradient[i] * (outside ? -(code + model.zero_point) : position - code);
      zero += outside ? in.gradient[i] : 0.0;
    }
    Buffer<float> y(c.count(), c.place);
    for (const Split& split : splits(c.count())) {
      double of_scale = 0.0, of_zero = 0.0;
      for (const auto& [begin, end] : split) {
        set.table.backward(make_job(c, in, DType::kFloat32, y.data()), begin, end, &of_scale, &of_zero);
      }
      CHECK(std::fabs(of_scale - scale) < 2e-3);
      CHECK(std::fabs(of_zero - zero) < 1e-4);
    }
  }
}
