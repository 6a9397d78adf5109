// The CPU kernels of softmax with fake quantization, on every instruction set that can run here.
#include "softmax_fake_quantize.h"

#include <cmath>

#include "kernels.h"
#include "probability_model.h"

namespace {

using namespace synq;
using namespace synq::test;

struct Size {
  int64_t rows, columns;
};

constexpr Size kSizes[] = {{1, 1}, {3, 7}, {5, 16}, {4, 197}, {70, 33}, {2, 512}, {3, 515}, {1, 1999}};
constexpr int kBits = 4;
constexpr float kAlpha = 0.5f;

// Some of the most likely are clipped.
ProbabilityModel make_grid(int64_t columns, bool log2) {
  const float width = static_cast<float>(columns);
  return {log2, kBits, log2 ? 2.5f / width : 4.0f * width};
}

template <typename T>
struct Inputs {
  Size size;
  ProbabilityModel model;
  Buffer<T> x;
  Buffer<T> gradient;
  Buffer<float> scale;

  Inputs(const Size& given, Place place, bool log2 = false)
      : size(given),
        model(make_grid(given.columns, log2)),
        x(random_values<T>(count(), 1, 0, 3.0f), place),
        gradient(random_values<T>(count(), 2), place),
        scale(std::vector<float>{model.steps.scale}, place) {}

  int64_t count() const { return size.rows * size.columns; }

  SoftmaxFakeQuantizeParams params(DType dtype, T* y) const {
    SoftmaxFakeQuantizeParams params{};
    params.x = x.data();
    params.gradient = gradient.data();
    params.y = y;
    params.scale = scale.data();
    params.rows = size.rows;
    params.columns = size.columns;
    params.alpha = kAlpha;
    params.bits = kBits;
    params.log2 = model.log2;
    params.dtype = dtype;
    return params;
  }

  // The probabilities of a row by the formula in double.
  std::vector<double> row(int64_t index) const {
    std::vector<double> values;
    double most = -HUGE_VAL, total = 0.0;
    for (int64_t i = 0; i < size.columns; ++i) {
      values.push_back(double(kAlpha) * to_float(x[index * size.columns + i]));
      most = std::fmax(most, values.back());
    }
    for (double& value : values) total += value = std::exp(value - most);
    for (double& value : values) value /= total;
    return values;
  }
};

template <typename T>
T element_type(const Inputs<T>&);

template <typename Body>
void for_each_input(const Body& body) {
  for (const auto& set : SYNQ_TABLES(cpu::softmax_fake_quantize_kernels)) {
    for (const DType dtype : kDTypes) {
      for (const Size& size : kSizes) {
        for (const Place place : kPlaces) {
          for (const bool log2 : {false, true}) {
            WHERE(set.isa, name_of(dtype), size.rows, size.columns, name_of(place), log2);
            cpu::with_type(dtype, [&](auto tag) {
              const Inputs<decltype(tag)> in(size, place, log2);
              body(set.table, in, dtype, place);
            });
          }
        }
      }
    }
  }
}

}  // namespace

TEST(values) {
  for_each_input([](const auto& kernels, const auto& in, DType dtype, Place place) {
    using T = decltype(element_type(in));
    const int64_t columns = in.size.columns;
    std::vector<float> workspace(2 * static_cast<size_t>(columns));
    Buffer<T> y(in.count(), place);
    kernels.forward(in.params(dtype, y.data()), 0, in.size.rows, workspace.data());
    for (int64_t row = 0; row < in.size.rows; ++row) {
      const std::vector<double> expected = in.row(row);
      for (int64_t i = 0; i < columns; ++i) {
        const double value = expected[static_cast<size_t>(i)];
        if (!in.model.is_decided(value)) continue;
        const float wanted = to_float(from_float<T>(in.model.value(value)));
        CHECK_EQUAL(to_float(y[row * columns + i]), wanted);
      }
    }
    // A row does not depend on the rows beside it.
    Buffer<T> again(in.count(), place);
    for (int64_t row = in.size.rows - 1; row >= 0; --row) {
      kernels.forward(in.params(dtype, again.data()), row, row + 1, workspace.data());
    }
    CHECK_ALL_EQUAL(again.data(), y.data(), in.count());
  });
}

TEST(gradients) {
  for_each_input([](const auto& kernels, const auto& in, DType dtype, Place place) {
    using T = decltype(element_type(in));
    const int64_t columns = in.size.columns;
    const size_t width = static_cast<size_t>(columns);
    std::vector<float> workspace(3 * width);
    Buffer<T> y(in.count(), place);
    double of_scale = 0.0, expected_scale = 0.0;
    kernels.backward(in.params(dtype, y.data()), 0, in.size.rows, workspace.data(), &of_scale);
    bool decided = true;
    for (int64_t row = 0; row < in.size.rows; ++row) {
      const std::vector<double> values = in.row(row);
      std::vector<double> slopes(width);
      double along = 0.0;
      bool row_decided = true;
      for (size_t i = 0; i < width; ++i) {
        row_decided &= in.model.is_decided(values[i]);
        const double gradient = to_float(in.gradient[row * columns + int64_t(i)]);
        slopes[i] = in.model.of_p(gradient, values[i]);
        along += slopes[i] * values[i];
        expected_scale += in.model.of_scale(gradient, values[i]);
      }
      decided &= row_decided;
      for (size_t i = 0; row_decided && i < width; ++i) {
        const double wanted = kAlpha * values[i] * (slopes[i] - along);
        const double rounding = dtype == DType::kFloat32 ? 1e-5 : 8e-3;
        const double error = std::fabs(to_float(y[row * columns + int64_t(i)]) - wanted);
        CHECK(error <= rounding * (std::fabs(wanted) + 0.1 * values[i]) + (dtype == DType::kFloat32 ? 0 : 1e-7));
      }
    }
    const double bound = 1e-5 * double(in.count()) + 1e-5;
    CHECK(!decided || std::fabs(of_scale - expected_scale) <= bound);
    // Rows do not depend on the rows beside them, and sums add up.
    Buffer<T> again(in.count(), place);
    double added = 0.0;
    for (int64_t row = in.size.rows - 1; row >= 0; --row) {
      kernels.backward(in.params(dtype, again.data()), row, row + 1, workspace.data(), &added);
    }
    CHECK_ALL_EQUAL(again.data(), y.data(), in.count());
    CHECK(std::fabs(of_scale - added) <= bound);
  });
}

TEST(threads) {
  for (const auto& set : SYNQ_TABLES(cpu::softmax_fake_quantize_kernels)) {
    WHERE(set.isa);
    const Inputs<float> in({70, 33}, Place::kShifted);
    // A part of the elements holds the rows that begin in it.
    const auto row_from = [](int64_t element) { return (element + 32) / 33; };
    check_threads<float>(in.count(), Place::kShifted, [&](float* y, int64_t begin, int64_t end) {
      std::vector<float> workspace(2 * 33);
      set.table.forward(in.params(DType::kFloat32, y), row_from(begin), row_from(end), workspace.data());
    });
  }
}
