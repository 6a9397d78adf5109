// The CPU kernels of the inter-head similarity, on every instruction set that can run here.
#include "inter_head_similarity_loss.h"

#include <cmath>

#include "kernels.h"

namespace {

using namespace synq;
using namespace synq::test;

struct Shape {
  int64_t batch, heads, queries, keys;
};

constexpr Shape kShapes[] = {{1, 1, 1, 1}, {2, 2, 3, 5}, {1, 3, 2, 16}, {2, 5, 2, 33}, {1, 17, 2, 70}, {1, 4, 1, 600}};

// Rows that lie one behind the other, with a query before each head and a key after each row that nobody reads.
template <typename T>
struct Inputs {
  Shape shape;
  HeadStrides strides;
  Buffer<T> logits;
  Buffer<float> gradient;

  Inputs(const Shape& given, Place place)
      : shape(given),
        strides{given.heads * size(), size(), given.keys + 1},
        logits(random_values<T>(given.batch * given.heads * size(), 1), place),
        gradient(std::vector<float>{3.0f}, place) {}

  int64_t size() const { return (shape.queries + 1) * (shape.keys + 1); }
  int64_t items() const { return shape.batch * shape.queries; }
  int64_t count() const { return items() * shape.heads * shape.keys; }

  InterHeadSimilarityParams params(DType dtype, T* result) const {
    InterHeadSimilarityParams params{};
    params.logits = logits.data() + strides.row;
    params.gradient = gradient.data();
    params.result = result;
    params.batch = shape.batch;
    params.heads = shape.heads;
    params.queries = shape.queries;
    params.keys = shape.keys;
    params.strides = strides;
    // Queries outside, so that one's gradient is one piece.
    const int64_t rows = shape.heads * shape.keys;
    params.result_strides = {shape.queries * rows, shape.keys, rows};
    params.dtype = dtype;
    return params;
  }

  // (heads, keys), of a query.
  std::vector<double> rows(int64_t item) const {
    std::vector<double> values;
    for (int64_t h = 0; h < shape.heads; ++h) {
      const int64_t matrix = item / shape.queries * shape.heads + h;
      const int64_t place = strides.offset(matrix, shape.heads, item % shape.queries + 1);
      for (int64_t m = 0; m < shape.keys; ++m) values.push_back(to_float(logits[place + m]));
    }
    return values;
  }
};

// The sum of 1 - S^2 over a query's pairs, by the definition in double.
double expected_term(const Shape& shape, std::vector<double> rows) {
  const size_t keys = static_cast<size_t>(shape.keys), heads = static_cast<size_t>(shape.heads);
  std::vector<double> means(heads);
  for (size_t h = 0; h < heads; ++h) {
    double* row = rows.data() + h * keys;
    const double low = *std::min_element(row, row + keys), high = *std::max_element(row, row + keys);
    for (size_t m = 0; m < keys; ++m) means[h] += row[m] = (row[m] - low) / (high - low + 1e-8);
    means[h] /= double(keys);
  }
  const auto covariance = [&](size_t h, size_t g) {
    double sum = 0.0;
    for (size_t m = 0; m < keys; ++m) sum += (rows[h * keys + m] - means[h]) * (rows[g * keys + m] - means[g]);
    return sum / double(keys);
  };
  double total = 0.0;
  for (size_t h = 0; h < heads; ++h) {
    for (size_t g = 0; g < heads; ++g) {
      const double a = 2 * means[h] * means[g] + 1e-4, c = means[h] * means[h] + means[g] * means[g] + 1e-4;
      const double b = 2 * covariance(h, g) + 9e-4, d = covariance(h, h) + covariance(g, g) + 9e-4;
      total += 1 - a * b / (c * d) * (a * b / (c * d));
    }
  }
  return total;
}

template <typename T>
T element_type(const Inputs<T>&);

template <typename Body>
void for_each_input(const Body& body) {
  for (const auto& set : SYNQ_TABLES(cpu::inter_head_similarity_kernels)) {
    for (const DType dtype : kDTypes) {
      for (const Shape& shape : kShapes) {
        for (const Place place : kPlaces) {
          WHERE(set.isa, name_of(dtype), shape.heads, shape.keys, name_of(place));
          cpu::with_type(dtype, [&](auto tag) {
            const Inputs<decltype(tag)> in(shape, place);
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
    const auto params = in.params(dtype, nullptr);
    Buffer<float> scratch(kernels.scratch(params), place);
    Buffer<double> terms(in.items(), place), again(in.items(), place);
    kernels.forward(params, 0, in.items(), terms.data(), scratch.data());
    for (int64_t item = in.items() - 1; item >= 0; --item) {
      const double pairs = double(in.shape.heads * in.shape.heads);
      CHECK(std::fabs(terms[item] - expected_term(in.shape, in.rows(item))) <= 3e-6 * pairs);
      // A query does not depend on those beside it.
      kernels.forward(params, item, item + 1, again.data() + item, scratch.data());
    }
    CHECK_ALL_EQUAL(again.data(), terms.data(), in.items());
  });
}

TEST(gradients) {
  for_each_input([](const auto& kernels, const auto& in, DType dtype, Place place) {
    using T = decltype(element_type(in));
    Buffer<T> result(in.count(), place), again(in.count(), place);
    const auto params = in.params(dtype, result.data());
    Buffer<float> scratch(kernels.scratch(params), place);
    kernels.backward(params, 0, in.items(), scratch.data());
    for (int64_t item = in.items() - 1; item >= 0; --item) {
      kernels.backward(in.params(dtype, again.data()), item, item + 1, scratch.data());
    }
    CHECK_ALL_EQUAL(again.data(), result.data(), in.count());
    // Central differences in double, of some of a query's logits; not where a step would make another one the end.
    if (in.shape.keys < 3 || dtype != DType::kFloat32) return;
    const double step = 1e-6, share = 3.0 / params.pairs();
    for (int64_t item = 0; item < in.items(); ++item) {
      std::vector<double> rows = in.rows(item);
      for (size_t i = 0; i < rows.size(); i += 7) {
        const double kept = rows[i];
        rows[i] = kept + step;
        const double above = expected_term(in.shape, rows);
        rows[i] = kept - step;
        const double below = expected_term(in.shape, rows);
        rows[i] = kept;
        const double wanted = share * (above - below) / (2 * step);
        const double given = to_float(result[item * int64_t(rows.size()) + int64_t(i)]);
        CHECK(std::fabs(given - wanted) <= 1e-4 * std::fabs(wanted) + 2e-6 * share);
      }
    }
  });
}

TEST(of_equal_ends_the_first_gets_the_gradient) {
  for (const auto& set : SYNQ_TABLES(cpu::inter_head_similarity_kernels)) {
    WHERE(set.isa);
    Inputs<float> in({1, 2, 1, 40}, Place::kEnd);
    // The least of the first head are 0, 7 and 14, the greatest 6, 13 and 20; to the other all three are alike.
    float* row = in.logits.data() + in.strides.row;
    float* other = row + in.strides.head;
    for (int64_t m = 0; m < 40; ++m) row[m] = static_cast<float>(m < 21 ? m % 7 : 3);
    for (int64_t k = 0; k < 3; ++k) {
      other[7 * k] = 0.25f;
      other[7 * k + 6] = 0.5f;
    }
    Buffer<float> result(in.count());
    const auto params = in.params(DType::kFloat32, result.data());
    Buffer<float> scratch(set.table.scratch(params));
    set.table.backward(params, 0, 1, scratch.data());
    for (const int64_t end : {0, 6}) {
      CHECK_EQUAL(result[end + 7], result[end + 14]);
      CHECK(std::fabs(result[end] - result[end + 7]) > 0.1f * std::fabs(result[end + 7]));
    }
  }
}

TEST(threads) {
  for (const auto& set : SYNQ_TABLES(cpu::inter_head_similarity_kernels)) {
    WHERE(set.isa);
    const Inputs<float> in({2, 3, 20, 33}, Place::kShifted);
    const int64_t size = 3 * 33;
    const auto item_from = [size](int64_t element) { return (element + size - 1) / size; };
    check_threads<float>(in.count(), Place::kShifted, [&](float* y, int64_t begin, int64_t end) {
      const auto params = in.params(DType::kFloat32, y);
      std::vector<float> scratch(static_cast<size_t>(set.table.scratch(params)));
      set.table.backward(params, item_from(begin), item_from(end), scratch.data());
    });
  }
}
