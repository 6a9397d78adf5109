// The CPU kernels of layer normalisation with fake quantization, on every instruction set that can run here.
#include "layer_norm_fake_quantize.h"

#include <cmath>

#include "kernels.h"
#include "quantizer_model.h"

namespace {

using namespace synq;
using namespace synq::test;

struct Size {
  int64_t rows, columns;
};

constexpr Size kSizes[] = {{1, 1}, {3, 7}, {5, 16}, {2, 192}, {70, 33}, {2, 512}, {3, 515}, {1, 1999}};
constexpr int kBits = 4;
constexpr float kEps = 1e-5f;

Model make_pair() {
  Model model{};
  set_grid(model, kBits);
  model.scale = 4.0f;
  model.zero_point = 1.0f;
  return model;
}

template <typename T>
struct Inputs {
  Size size;
  Buffer<T> x;
  Buffer<T> gradient;
  Buffer<float> weight;
  Buffer<float> bias;
  Buffer<float> scale;
  Buffer<float> zero_point;

  Inputs(const Size& given, Place place)
      : size(given),
        x(random_values<T>(count(), 1, 0, 2.0f), place),
        gradient(random_values<T>(count(), 2), place),
        weight(random_values<float>(given.columns, 3), place),
        bias(random_values<float>(given.columns, 4), place),
        scale(std::vector<float>{make_pair().scale}, place),
        zero_point(std::vector<float>{make_pair().zero_point}, place) {}

  int64_t count() const { return size.rows * size.columns; }

  LayerNormFakeQuantizeParams params(DType dtype, T* y) const {
    LayerNormFakeQuantizeParams params{};
    params.x = x.data();
    params.gradient = gradient.data();
    params.y = y;
    params.weight = weight.data();
    params.bias = bias.data();
    params.scale = scale.data();
    params.zero_point = zero_point.data();
    params.rows = size.rows;
    params.columns = size.columns;
    params.eps = kEps;
    params.bits = kBits;
    params.dtype = dtype;
    return params;
  }
};

template <typename T>
T element_type(const Inputs<T>&);

// A row by the formulas in double.
struct Row {
  double inverse;
  std::vector<double> normals;
  std::vector<double> values;

  template <typename T>
  Row(const Inputs<T>& in, int64_t row) {
    const int64_t columns = in.size.columns;
    const auto at = [&](int64_t i) { return static_cast<double>(to_float(in.x[row * columns + i])); };
    double mean = 0.0, variance = 0.0;
    for (int64_t i = 0; i < columns; ++i) mean += at(i) / double(columns);
    for (int64_t i = 0; i < columns; ++i) variance += (at(i) - mean) * (at(i) - mean) / double(columns);
    inverse = 1 / std::sqrt(variance + double(kEps));
    for (int64_t i = 0; i < columns; ++i) {
      normals.push_back((at(i) - mean) * inverse);
      values.push_back(normals.back() * in.weight[i] + in.bias[i]);
    }
  }
};

bool is_decided(const Model& model, double value) {
  const double position = model.scale * value - model.zero_point;
  return std::fabs(position - std::floor(position) - 0.5) > 2e-5 * (1 + std::fabs(position));
}

template <typename Body>
void for_each_input(const Body& body) {
  for (const auto& set : SYNQ_TABLES(cpu::layer_norm_fake_quantize_kernels)) {
    for (const DType dtype : kDTypes) {
      for (const Size& size : kSizes) {
        for (const Place place : kPlaces) {
          WHERE(set.isa, name_of(dtype), size.rows, size.columns, name_of(place));
          cpu::with_type(dtype, [&](auto tag) {
            const Inputs<decltype(tag)> in(size, place);
            body(set.table, in, dtype, place);
          });
        }
      }
    }
  }
}

}  // namespace

TEST(values) {
  const Model model = make_pair();
  for_each_input([&](const auto& kernels, const auto& in, DType dtype, Place place) {
    using T = decltype(element_type(in));
    const int64_t columns = in.size.columns;
    std::vector<float> workspace(static_cast<size_t>(columns));
    Buffer<T> y(in.count(), place);
    kernels.forward(in.params(dtype, y.data()), 0, in.size.rows, workspace.data());
    for (int64_t row = 0; row < in.size.rows; ++row) {
      const Row expected(in, row);
      for (int64_t i = 0; i < columns; ++i) {
        const double value = expected.values[static_cast<size_t>(i)];
        if (!is_decided(model, value)) continue;
        const float wanted = to_float(from_float<T>(value_of(model, static_cast<float>(value))));
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
  const Model model = make_pair();
  for_each_input([&](const auto& kernels, const auto& in, DType dtype, Place place) {
    using T = decltype(element_type(in));
    const int64_t columns = in.size.columns;
    const size_t width = static_cast<size_t>(columns);
    std::vector<float> workspace(5 * width);
    std::vector<double> sums(2 * width + 2), expected_sums(2 * width + 2);
    Buffer<T> y(in.count(), place);
    kernels.backward(in.params(dtype, y.data()), 0, in.size.rows, workspace.data(), sums.data());
    bool decided = true;
    for (int64_t row = 0; row < in.size.rows; ++row) {
      const Row expected(in, row);
      std::vector<double> slopes(width);
      double mean = 0.0, along = 0.0;
      bool row_decided = true;
      for (size_t i = 0; i < width; ++i) {
        const double value = expected.values[i];
        row_decided &= is_decided(model, value);
        const double gradient = to_float(in.gradient[row * columns + int64_t(i)]);
        const bool outside = is_outside(model, static_cast<float>(value));
        const double code = code_of(model, static_cast<float>(value));
        const double given = outside ? 0.0 : gradient;
        slopes[i] = given * in.weight[int64_t(i)];
        mean += slopes[i] / double(columns);
        along += slopes[i] * expected.normals[i] / double(columns);
        expected_sums[i] += given * expected.normals[i];
        expected_sums[width + i] += given;
        const double position = model.scale * value - model.zero_point;
        expected_sums[2 * width] += gradient * (outside ? -(code + model.zero_point) : position - code);
        expected_sums[2 * width + 1] += outside ? gradient : 0.0;
      }
      decided &= row_decided;
      for (size_t i = 0; row_decided && i < width; ++i) {
        const double wanted = (slopes[i] - mean - expected.normals[i] * along) * expected.inverse;
        const double rounding = dtype == DType::kFloat32 ? 1e-5 : 8e-3;
        const double error = std::fabs(to_float(y[row * columns + int64_t(i)]) - wanted);
        CHECK(error <= rounding * (std::fabs(wanted) + expected.inverse));
      }
    }
    for (size_t i = 0; decided && i < sums.size(); ++i) {
      CHECK(std::fabs(sums[i] - expected_sums[i]) <= 1e-5 * double(in.count()) + 1e-5);
    }
    // Rows do not depend on the rows beside them, and sums add up.
    Buffer<T> again(in.count(), place);
    std::vector<double> added(sums.size());
    for (int64_t row = in.size.rows - 1; row >= 0; --row) {
      kernels.backward(in.params(dtype, again.data()), row, row + 1, workspace.data(), added.data());
    }
    CHECK_ALL_EQUAL(again.data(), y.data(), in.count());
    for (size_t i = 0; i < sums.size(); ++i) CHECK(std::fabs(sums[i] - added[i]) <= 1e-5 * double(in.count()));
  });
}

TEST(threads) {
  for (const auto& set : SYNQ_TABLES(cpu::layer_norm_fake_quantize_kernels)) {
    WHERE(set.isa);
    const Inputs<float> in({70, 33}, Place::kShifted);
    // A part of the elements holds the rows that begin in it.
    const auto row_from = [](int64_t element) { return (element + 32) / 33; };
    check_threads<float>(in.count(), Place::kShifted, [&](float* y, int64_t begin, int64_t end) {
      std::vector<float> workspace(33);
      set.table.forward(in.params(DType::kFloat32, y), row_from(begin), row_from(end), workspace.data());
    });
  }
}
