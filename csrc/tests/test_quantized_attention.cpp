// The CPU kernels of attention on quantized operands, on every instruction set that can run here.
#include "quantized_attention.h"

#include <cmath>

#include "kernels.h"
#include "probability_model.h"

namespace {

using namespace synq;
using namespace synq::test;

struct Size {
  int64_t rows, columns, width;
  int bits;           // up to 8 some processors multiply bytes
  bool log2 = false;  // probabilities are on powers of two
};

constexpr Size kSizes[] = {{1, 1, 1, 4},       {3, 5, 7, 8},         {9, 17, 16, 4},        {21, 33, 30, 8},
                           {8, 16, 64, 8},     {70, 20, 5, 9},       {5, 1100, 8, 4},       {90, 210, 12, 8},
                           {1, 1, 1, 4, true}, {9, 17, 16, 4, true}, {21, 33, 30, 8, true}, {5, 1100, 8, 3, true}};
constexpr int64_t kImages = 2, kHeads = 2;
constexpr float kAlpha = 0.4f;

using Rows = std::vector<std::vector<double>>;

// Images, heads and rows of tokens, with heads beside each other as in a joint projection.
template <typename T>
struct Tensor {
  int64_t rows, width;
  Buffer<T> data;

  Tensor(int64_t rows, int64_t width, unsigned seed, Place place)
      : rows(rows), width(width), data(random_values<T>(kImages * kHeads * rows * width, seed), place) {}
  Tensor(int64_t rows, int64_t width, Place place)
      : rows(rows), width(width), data(kImages * kHeads * rows * width, place) {}

  HeadRows view() const { return {const_cast<T*>(data.data()), rows * kHeads * width, width, kHeads * width}; }
  double at(int64_t image, int64_t head, int64_t row, int64_t column) const {
    return double(to_float(data[((image * rows + row) * kHeads + head) * width + column]));
  }
};

template <typename T>
struct Inputs {
  Size size;
  Tensor<T> q, k, v, gradient;
  Model models[3];
  ProbabilityModel grid;
  float scales[4][kHeads];
  float zeros[3][kHeads];
  Buffer<float> bias;

  Inputs(const Size& given, Place place)
      : size(given),
        q(given.rows, given.width, 1, place),
        k(given.columns, given.width, 2, place),
        v(given.columns, given.width, 3, place),
        gradient(given.rows, given.width, 4, place),
        grid(given.log2, given.bits, scale_of_probabilities(given)),
        bias(random_values<float>(kHeads * given.rows * given.columns, 5), place) {
    const float levels = float((1 << size.bits) - 1);
    for (int i = 0; i < 3; ++i) {
      set_grid(models[i], size.bits);
      models[i].scale = levels / (3.0f + float(i));
      models[i].zero_point = std::nearbyint(-1.5f * models[i].scale - float(models[i].low));
      for (int64_t head = 0; head < kHeads; ++head) {
        scales[i][head] = models[i].scale;
        zeros[i][head] = models[i].zero_point + 0.25f;
      }
    }
    for (float& scale : scales[3]) scale = grid.steps.scale;
  }

  // Some of the most likely are clipped.
  static float scale_of_probabilities(const Size& size) {
    const float keys = std::fmax(1.0f, float(size.columns) / 8.0f);
    return size.log2 ? 0.7f / keys : float((1 << size.bits) - 1) * keys;
  }

  QuantizedAttentionParams params(DType dtype) const {
    QuantizedAttentionParams params{};
    const Tensor<T>* x[] = {&q, &k, &v};
    for (int i = 0; i < 4; ++i) {
      params.scale[i] = scales[i];
      params.bits[i] = size.bits;
      params.per_head[i] = i % 2;
      if (i == kProbabilities) break;
      params.x[i] = x[i]->view();
      params.zero_point[i] = zeros[i];
    }
    params.gradient = gradient.view();
    params.bias = bias.data();
    params.batch = kImages;
    params.heads = kHeads;
    params.rows = size.rows;
    params.columns = size.columns;
    params.width = size.width;
    params.masks = 1;
    params.alpha = kAlpha;
    params.log2 = size.log2;
    params.dtype = dtype;
    return params;
  }
};

template <typename T>
T element_type(const Inputs<T>&);

Rows rows_of(int64_t rows, int64_t columns) {
  return Rows(static_cast<size_t>(rows), std::vector<double>(static_cast<size_t>(columns)));
}

// A head by the formulas in double.
struct Expected {
  Rows p, level, result, of_q, of_k, of_v;
  double of_scale[4] = {}, of_zero[3] = {};
  bool decided = true;

  template <typename T>
  Expected(const Inputs<T>& in, int64_t image, int64_t head) {
    const auto [n, m, d, bits, log2] = in.size;
    const auto value = [&](int i, const Tensor<T>& x, int64_t row, int64_t column) {
      return double(value_of(in.models[i], float(x.at(image, head, row, column))));
    };
    p = level = rows_of(n, m);
    result = of_q = rows_of(n, d);
    of_k = of_v = rows_of(m, d);
    Rows slopes = rows_of(n, m);
    const ProbabilityModel& grid = in.grid;
    for (int64_t i = 0; i < n; ++i) {
      double most = -HUGE_VAL, total = 0.0, along = 0.0;
      for (int64_t j = 0; j < m; ++j) {
        double sum = 0.0;
        for (int64_t c = 0; c < d; ++c) sum += value(0, in.q, i, c) * value(1, in.k, j, c);
        p[i][j] = double(kAlpha) * sum + double(in.bias[(head * n + i) * m + j]);
        most = std::fmax(most, p[i][j]);
      }
      for (double& each : p[i]) total += each = std::exp(each - most);
      for (int64_t j = 0; j < m; ++j) {
        const double probability = p[i][j] /= total;
        decided &= grid.is_decided(probability);
        level[i][j] = double(grid.value(probability));
        double slope = 0.0;
        for (int64_t c = 0; c < d; ++c) {
          const double g = in.gradient.at(image, head, i, c), other = value(2, in.v, j, c);
          result[i][c] += level[i][j] * other;
          of_v[j][c] += level[i][j] * g;
          slope += g * other;
        }
        of_scale[3] += grid.of_scale(slope, probability);
        slopes[i][j] = grid.of_p(slope, probability);
        along += slopes[i][j] * probability;
      }
      for (int64_t j = 0; j < m; ++j) {
        const double slope = double(kAlpha) * p[i][j] * (slopes[i][j] - along);
        for (int64_t c = 0; c < d; ++c) {
          of_q[i][c] += slope * value(1, in.k, j, c);
          of_k[j][c] += slope * value(0, in.q, i, c);
        }
      }
    }
    finish(in.models[0], 0, of_q, [&](int64_t i, int64_t c) { return in.q.at(image, head, i, c); });
    finish(in.models[1], 1, of_k, [&](int64_t i, int64_t c) { return in.k.at(image, head, i, c); });
    finish(in.models[2], 2, of_v, [&](int64_t i, int64_t c) { return in.v.at(image, head, i, c); });
  }

  // Through the grid, with terms as LearnedTerms has them.
  template <typename Input>
  void finish(const Model& model, int place, Rows& gradients, Input input) {
    for (size_t i = 0; i < gradients.size(); ++i) {
      for (size_t c = 0; c < gradients[i].size(); ++c) {
        double& gradient = gradients[i][c];
        const float x = float(input(int64_t(i), int64_t(c)));
        const bool outside = is_outside(model, x);
        const double code = code_of(model, x) + double(model.zero_point);
        of_scale[place] += gradient * (outside ? -code : double(model.scale) * double(x) - code);
        if (outside) of_zero[place] += gradient;
        if (outside) gradient = 0.0;
      }
    }
  }
};

template <typename T>
void check_head(const Tensor<T>& y, const Rows& expected, int64_t image, int64_t head, DType dtype) {
  double largest = 0.0;
  for (const auto& row : expected) {
    for (const double value : row) largest = std::fmax(largest, std::fabs(value));
  }
  const double rounding = dtype == DType::kFloat32 ? 0.0 : dtype == DType::kFloat16 ? 1e-3 : 8e-3;
  for (int64_t i = 0; i < y.rows; ++i) {
    for (int64_t c = 0; c < y.width; ++c) {
      const double wanted = expected[size_t(i)][size_t(c)];
      const double error = std::fabs(y.at(image, head, i, c) - wanted);
      CHECK(error <= 2e-5 * largest + rounding * std::fabs(wanted) + (rounding > 0 ? 1e-7 : 1e-30));
    }
  }
}

template <typename Body>
void for_each_input(const Body& body) {
  for (const auto& set : SYNQ_TABLES(cpu::quantized_attention_kernels)) {
    for (const DType dtype : kDTypes) {
      for (const Size& size : kSizes) {
        for (const Place place : kPlaces) {
          WHERE(set.isa, name_of(dtype), size.rows, size.columns, size.width, name_of(place), size.log2);
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
  for_each_input([](const auto& kernels, const auto& in, DType dtype, Place place) {
    using T = decltype(element_type(in));
    QuantizedAttentionParams params = in.params(dtype);
    Tensor<T> y(in.size.rows, in.size.width, place);
    params.y = y.view();
    Buffer<float> workspace(kernels.workspace(params, false), place);
    for (int64_t image = 0; image < kImages; ++image) {
      for (int64_t head = 0; head < kHeads; ++head) kernels.forward(params, image, head, workspace.data());
    }
    const Expected expected(in, 1, 0);
    if (expected.decided) check_head(y, expected.result, 1, 0, dtype);
    // A head does not depend on those beside it, nor on what the workspace held.
    Tensor<T> again(in.size.rows, in.size.width, place);
    params.y = again.view();
    workspace.clear();
    for (int64_t image = kImages - 1; image >= 0; --image) {
      for (int64_t head = kHeads - 1; head >= 0; --head) kernels.forward(params, image, head, workspace.data());
    }
    CHECK_ALL_EQUAL(again.data.data(), y.data.data(), kImages * kHeads * in.size.rows * in.size.width);
  });
}

TEST(gradients) {
  for_each_input([](const auto& kernels, const auto& in, DType dtype, Place place) {
    using T = decltype(element_type(in));
    QuantizedAttentionParams params = in.params(dtype);
    Tensor<T> of_q(in.size.rows, in.size.width, place);
    Tensor<T> of_k(in.size.columns, in.size.width, place), of_v(in.size.columns, in.size.width, place);
    params.of_x[kQueries] = of_q.view();
    params.of_x[kKeys] = of_k.view();
    params.of_x[kValues] = of_v.view();
    Buffer<float> workspace(kernels.workspace(params, true), place);
    Buffer<float> of_bias(std::vector<float>(static_cast<size_t>(in.size.rows * in.size.columns)), place);
    double sums[kAttentionSums] = {};
    kernels.backward(params, 0, 1, workspace.data(), sums, of_bias.data());
    const Expected expected(in, 0, 1);
    if (!expected.decided) return;
    check_head(of_q, expected.of_q, 0, 1, dtype);
    check_head(of_k, expected.of_k, 0, 1, dtype);
    check_head(of_v, expected.of_v, 0, 1, dtype);
    for (int i = 0; i < kAttentionSums; ++i) {
      const double wanted = i < kOperands ? expected.of_scale[i] : expected.of_zero[i - kOperands];
      const double count = double((in.size.rows + in.size.columns) * (in.size.width + in.size.columns));
      CHECK(std::fabs(sums[i] - wanted) <= 2e-5 * (count + std::fabs(wanted)));
    }
    // The logits' gradients add up to zero in every row.
    for (int64_t i = 0; i < in.size.rows; ++i) {
      double sum = 0.0;
      for (int64_t j = 0; j < in.size.columns; ++j) sum += double(of_bias[i * in.size.columns + j]);
      CHECK(std::fabs(sum) <= 1e-3);
    }
  });
}

TEST(threads) {
  for (const auto& set : SYNQ_TABLES(cpu::quantized_attention_kernels)) {
    WHERE(set.isa);
    const Inputs<float> in({21, 33, 30, 8}, Place::kShifted);
    const int64_t size = in.size.rows * in.size.width;
    // Elements are numbered by image, head, row and column; a part holds the heads that begin in it.
    const auto head_from = [&](int64_t element) { return (element + size - 1) / size; };
    check_threads<float>(kImages * kHeads * size, Place::kShifted, [&](float* y, int64_t begin, int64_t end) {
      QuantizedAttentionParams params = in.params(DType::kFloat32);
      params.y = {y, kHeads * size, size, in.size.width};
      std::vector<float> workspace(static_cast<size_t>(set.table.workspace(params, false)));
      for (int64_t i = head_from(begin); i < head_from(end); ++i) {
        set.table.forward(params, i / kHeads, i % kHeads, workspace.data());
      }
    });
  }
}
