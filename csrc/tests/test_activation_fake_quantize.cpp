// The CPU kernels of activation functions with fake quantization, on every instruction set that can run here.
#include "cpu/activation_fake_quantize.h"

#include <cmath>

#include "minifloat_model.h"
#include "quantizer_cases.h"

namespace {

using namespace synq;
using namespace synq::test;

constexpr int64_t kCounts[] = {1, 2, 15, 16, 17, 511, 512, 513, 1999};
constexpr int kBits = 4;

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

double below(double x) { return 0.5 * std::erfc(-x / std::sqrt(2.0)); }

// An activation function before one of both grids, by their formulas.
struct Form {
  Activation activation;
  bool minifloat;

  double value(double x) const {
    switch (activation) {
      case Activation::kGelu:
        return x * below(x);
      case Activation::kSilu:
        return x * sigmoid(x);
      default:
        return x * std::fmin(std::fmax(x + 3, 0), 6) / 6;
    }
  }

  double slope(double x) const {
    switch (activation) {
      case Activation::kGelu:
        return below(x) + x * std::exp(-x * x / 2) / std::sqrt(2 * M_PI);
      case Activation::kSilu:
        return sigmoid(x) + x * sigmoid(x) * sigmoid(-x);
      default:
        return x <= -3 ? 0 : x >= 3 ? 1 : (2 * x + 3) / 6;
    }
  }

  Model model() const { return (minifloat ? minifloat_model : make_model)(-0.12f, 2.2f, kBits); }

  // How far a value lies from the middle between two codes, in steps: middles of small floats are halves, too.
  bool is_decided(const Model& model, double value) const {
    const double position = model.scale * value - model.zero_point;
    return std::fabs(position - std::floor(position) - 0.5) > 1e-4 &&
           (!minifloat || std::fabs(position - std::rint(position)) > 1e-4 || position < 0.5);
  }

  float rounded(const Model& model, float value) const {
    return minifloat ? value_of_minifloat(model, value, kBits) : value_of(model, value);
  }

  bool is_outside(const Model& model, float value) const {
    return minifloat ? is_outside_minifloat(model, value, kBits) : test::is_outside(model, value);
  }

  // A code, or a level, once clamped.
  double code(const Model& model, float value) const {
    if (!minifloat) return code_of(model, value);
    const double level = level_by_search(model_steps(model, value), kBits);
    return std::clamp(level, 0.0, levels_of(kBits)[(1u << kBits) - 1]);
  }
};

constexpr Form kForms[] = {{Activation::kGelu, false}, {Activation::kSilu, false}, {Activation::kHardswish, false},
                           {Activation::kGelu, true},  {Activation::kSilu, true},  {Activation::kHardswish, true}};

Case case_of(const Form& form, int64_t count, Place place) { return {{1, 1, count}, kBits, place, {form.model()}}; }

template <typename T>
cpu::ActivationJob job_of(const Form& form, const Case& c, const Inputs<T>& in, DType dtype, void* y) {
  return {make_job(c, in, dtype, y), form.activation, form.minifloat};
}

template <typename Body>
void for_each_input(const Body& body) {
  for (const auto& set : SYNQ_TABLES(cpu::activation_fake_quantize_kernels)) {
    for (const Form& form : kForms) {
      for (const DType dtype : kDTypes) {
        for (const int64_t count : kCounts) {
          for (const Place place : kPlaces) {
            const Case c = case_of(form, count, place);
            WHERE(set.isa, "function", int(form.activation), "floats", form.minifloat, name_of(dtype), count,
                  name_of(place));
            cpu::with_type(dtype, [&](auto tag) {
              const Inputs<decltype(tag)> in(c);
              body(set.table, form, c, in, dtype);
            });
          }
        }
      }
    }
  }
}

}  // namespace

TEST(values) {
  for_each_input([](const auto& kernels, const Form& form, const Case& c, const auto& in, DType dtype) {
    using T = decltype(element_type(in));
    const auto run = [&](T* y, int64_t begin, int64_t end) {
      kernels.forward(job_of(form, c, in, dtype, y), begin, end);
    };
    const std::vector<T> whole = in_one_part<T>(c.count(), c.place, run);
    const Model& model = c.model_of(0);
    for (int64_t i = 0; i < c.count(); ++i) {
      const double value = form.value(to_float(in.x[i]));
      if (std::isnan(value) || !form.is_decided(model, value)) continue;
      const float expected = to_float(from_float<T>(form.rounded(model, static_cast<float>(value))));
      CHECK_EQUAL(to_float(whole[static_cast<size_t>(i)]), expected);
    }
    check_splits(whole, c.place, run);
    check_threads<T>(c.count(), c.place, run);
  });
}

TEST(gradients) {
  for_each_input([](const auto& kernels, const Form& form, const Case& c, const auto& in, DType dtype) {
    using T = decltype(element_type(in));
    const auto run = [&](T* y, int64_t begin, int64_t end) {
      double of_scale = 0.0, of_zero = 0.0;
      kernels.backward(job_of(form, c, in, dtype, y), begin, end, &of_scale, &of_zero);
    };
    const std::vector<T> whole = in_one_part<T>(c.count(), c.place, run);
    const Model& model = c.model_of(0);
    for (int64_t i = 0; i < c.count(); ++i) {
      const double x = to_float(in.x[i]);
      const double value = form.value(x);
      const double gradient = to_float(in.gradient[i]);
      const double expected = form.is_outside(model, static_cast<float>(value)) ? 0.0 : gradient * form.slope(x);
      if (!std::isfinite(expected) || !(std::fabs(gradient) < 1e4) || !form.is_decided(model, value)) continue;
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
  for (const auto& set : SYNQ_TABLES(cpu::activation_fake_quantize_kernels)) {
    for (const Form& form : kForms) {
      WHERE(set.isa, "function", int(form.activation), "floats", form.minifloat);
      const Case c = case_of(form, 1999, Place::kShifted);
      const Inputs<float> in(c, 0);
      const Model& model = c.model_of(0);
      double scale = 0.0, zero = 0.0, size = 0.0;
      for (int64_t i = 0; i < c.count(); ++i) {
        const float value = static_cast<float>(form.value(in.x[i]));
        const double position = double(model.scale) * value - model.zero_point;
        const bool outside = form.is_outside(model, value);
        const double code = form.code(model, value);
        const double term = in.gradient[i] * (outside ? -(code + model.zero_point) : position - code);
        scale += term;
        size += std::fabs(term);
        zero += outside ? in.gradient[i] : 0.0;
      }
      CHECK(zero != 0.0);
      Buffer<float> y(c.count(), c.place);
      for (const Split& split : splits(c.count())) {
        double of_scale = 0.0, of_zero = 0.0;
        for (const auto& [begin, end] : split) {
          set.table.backward(job_of(form, c, in, DType::kFloat32, y.data()), begin, end, &of_scale, &of_zero);
        }
        CHECK(std::fabs(of_scale - scale) < 2e-6 * size);
        CHECK(std::fabs(of_zero - zero) < 1e-4);
      }
    }
  }
}
