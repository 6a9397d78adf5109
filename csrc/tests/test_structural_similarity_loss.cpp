// The CPU kernels of the structural similarity, on every instruction set that can run here.
#include "structural_similarity_loss.h"

#include <cmath>

#include "kernels.h"

namespace {

using namespace synq;
using namespace synq::test;

struct Shape {
  int64_t batch, heads, positions, channels;
};

constexpr Shape kShapes[] = {{1, 1, 1, 1}, {2, 3, 7, 5}, {1, 2, 10, 16}, {2, 1, 300, 33}, {1, 2, 3, 515}};

// Heads that lie one behind the other, a position before each and a channel after each row that nobody reads.
template <typename T>
struct Inputs {
  Shape shape;
  bool weighted;
  HeadStrides strides;
  Buffer<T> teacher, student;
  Buffer<float> weight, gradient;

  Inputs(const Shape& given, bool weighted, Place place)
      : shape(given),
        weighted(weighted),
        strides{given.heads * size(), size(), given.channels + 1},
        teacher(random_values<T>(count(), 1), place),
        student(random_values<T>(count(), 2), place),
        weight(given.batch * given.positions, place),
        gradient(std::vector<float>{3.0f}, place) {
    for (int64_t i = 0; i < weight.count(); ++i) weight[i] = static_cast<float>(1 + i % 3);
  }

  int64_t size() const { return (shape.positions + 1) * (shape.channels + 1); }
  int64_t count() const { return shape.batch * shape.heads * size(); }
  int64_t matrices() const { return shape.batch * shape.heads; }
  int64_t tiles() const { return matrices() * ((shape.channels + cpu::kChannelTile - 1) / cpu::kChannelTile); }
  int64_t place(int64_t matrix, int64_t position, int64_t channel) const {
    return strides.offset(matrix, shape.heads, position + 1) + channel;
  }
  double share(int64_t matrix, int64_t position) const {
    if (!weighted) return 1.0;
    return weight[matrix / shape.heads * shape.positions + position];
  }

  StructuralSimilarityParams params(DType dtype, float* statistics, T* result) const {
    StructuralSimilarityParams params{};
    params.teacher = teacher.data() + strides.row;
    params.student = student.data() + strides.row;
    params.weight = weighted ? weight.data() : nullptr;
    params.statistics = statistics;
    params.gradient = gradient.data();
    params.result = result;
    params.batch = shape.batch;
    params.heads = shape.heads;
    params.positions = shape.positions;
    params.channels = shape.channels;
    params.teacher_strides = params.student_strides = strides;
    const int64_t matrix = shape.positions * shape.channels;
    params.result_strides = {shape.heads * matrix, matrix, shape.channels};
    params.weight_strides = {shape.positions, 0, 1};
    params.dtype = dtype;
    return params;
  }
};

// A channel of a head by the definition in double: both means, the similarity, the slope.
struct Expected {
  double teacher = 0.0, student = 0.0, similarity = 0.0, slope = 0.0;

  template <typename T>
  Expected(const Inputs<T>& in, int64_t matrix, int64_t channel) {
    double weights = 0.0;
    for (int64_t n = 0; n < in.shape.positions; ++n) {
      weights += in.share(matrix, n);
      teacher += in.share(matrix, n) * to_float(in.teacher[in.place(matrix, n, channel)]);
      student += in.share(matrix, n) * to_float(in.student[in.place(matrix, n, channel)]);
    }
    teacher /= weights;
    student /= weights;
    double squares = 0.0, products = 0.0;
    for (int64_t n = 0; n < in.shape.positions; ++n) {
      const double t = to_float(in.teacher[in.place(matrix, n, channel)]) - teacher;
      const double q = to_float(in.student[in.place(matrix, n, channel)]) - student;
      squares += in.share(matrix, n) / weights * (t * t + q * q);
      products += in.share(matrix, n) / weights * t * q;
    }
    similarity = (2 * products + 9e-4) / (squares + 9e-4);
    slope = 2 / (weights * (squares + 9e-4) * double(in.matrices() * in.shape.channels));
  }
};

template <typename T>
T element_type(const Inputs<T>&);

template <typename Body>
void for_each_input(const Body& body) {
  for (const auto& set : SYNQ_TABLES(cpu::structural_similarity_kernels)) {
    for (const DType dtype : kDTypes) {
      for (const Shape& shape : kShapes) {
        for (const bool weighted : {false, true}) {
          for (const Place place : kPlaces) {
            WHERE(set.isa, name_of(dtype), shape.positions, shape.channels, weighted, name_of(place));
            cpu::with_type(dtype, [&](auto tag) {
              const Inputs<decltype(tag)> in(shape, weighted, place);
              body(set.table, in, dtype, place);
            });
          }
        }
      }
    }
  }
}

void check_near(double given, double expected, double bound) { CHECK(std::fabs(given - expected) <= bound); }

}  // namespace

TEST(values_and_gradients) {
  for_each_input([](const auto& kernels, const auto& in, DType dtype, Place place) {
    using T = decltype(element_type(in));
    const int64_t channels = in.shape.channels, rows = in.matrices() * in.shape.positions;
    Buffer<float> statistics(4 * in.matrices() * channels, place);
    Buffer<double> sums(in.tiles(), place);
    Buffer<T> result(rows * channels, place);
    const auto params = in.params(dtype, statistics.data(), result.data());
    kernels.statistics(params, 0, in.tiles(), sums.data());
    kernels.backward(params, 0, rows);
    double total = 0.0, expected_total = 0.0;
    for (int64_t i = 0; i < in.tiles(); ++i) total += sums[i];
    for (int64_t matrix = 0; matrix < in.matrices(); ++matrix) {
      for (int64_t c = 0; c < channels; ++c) {
        const Expected expected(in, matrix, c);
        expected_total += expected.similarity;
        const float* found = statistics.data() + 4 * matrix * channels + c;
        check_near(found[0], expected.teacher, 1e-6);
        check_near(found[channels], expected.student, 1e-6);
        check_near(found[2 * channels], expected.similarity, 3e-6);
        check_near(found[3 * channels], expected.slope, 1e-5 * expected.slope);
        for (int64_t n = 0; n < in.shape.positions; ++n) {
          const double t = to_float(in.teacher[in.place(matrix, n, c)]) - expected.teacher;
          const double q = to_float(in.student[in.place(matrix, n, c)]) - expected.student;
          const double wanted = 3 * in.share(matrix, n) * expected.slope * (expected.similarity * q - t);
          const double rounding = dtype == DType::kFloat32 ? 1e-5 : 8e-3;
          const double given = to_float(result[(matrix * in.shape.positions + n) * channels + c]);
          check_near(given, wanted, rounding * std::fabs(wanted) + 3e-5 * expected.slope + 1e-7);
        }
      }
    }
    check_near(total, expected_total, 3e-6 * double(in.matrices() * channels));
  });
}

TEST(tiles_and_positions_do_not_depend_on_others) {
  for_each_input([](const auto& kernels, const auto& in, DType dtype, Place place) {
    using T = decltype(element_type(in));
    const int64_t channels = in.shape.channels, rows = in.matrices() * in.shape.positions;
    Buffer<float> whole(4 * in.matrices() * channels, place), parts(4 * in.matrices() * channels, place);
    Buffer<double> sums(in.tiles(), place), one(in.tiles(), place);
    kernels.statistics(in.params(dtype, whole.data(), nullptr), 0, in.tiles(), sums.data());
    for (int64_t tile = in.tiles() - 1; tile >= 0; --tile) {
      kernels.statistics(in.params(dtype, parts.data(), nullptr), tile, tile + 1, one.data() + tile);
    }
    CHECK_ALL_EQUAL(parts.data(), whole.data(), whole.count());
    CHECK_ALL_EQUAL(one.data(), sums.data(), sums.count());
    Buffer<T> result(rows * channels, place), again(rows * channels, place);
    kernels.backward(in.params(dtype, whole.data(), result.data()), 0, rows);
    for (int64_t row = rows - 1; row >= 0; --row) {
      kernels.backward(in.params(dtype, whole.data(), again.data()), row, row + 1);
    }
    CHECK_ALL_EQUAL(again.data(), result.data(), result.count());
  });
}

TEST(instruction_sets_agree) {
  const Inputs<float> in({2, 3, 40, 33}, true, Place::kShifted);
  std::vector<float> first;
  for (const auto& set : SYNQ_TABLES(cpu::structural_similarity_kernels)) {
    WHERE(set.isa);
    Buffer<float> statistics(4 * in.matrices() * in.shape.channels);
    Buffer<double> sums(in.tiles());
    set.table.statistics(in.params(DType::kFloat32, statistics.data(), nullptr), 0, in.tiles(), sums.data());
    if (first.empty()) first.assign(statistics.data(), statistics.data() + statistics.count());
    CHECK_ALL_EQUAL(statistics.data(), first.data(), statistics.count());
  }
}

TEST(threads) {
  for (const auto& set : SYNQ_TABLES(cpu::structural_similarity_kernels)) {
    WHERE(set.isa);
    const Inputs<float> in({1, 2, 35, 20}, true, Place::kShifted);
    Buffer<float> statistics(4 * in.matrices() * 20);
    Buffer<double> sums(in.tiles());
    set.table.statistics(in.params(DType::kFloat32, statistics.data(), nullptr), 0, in.tiles(), sums.data());
    // A part of the elements holds the rows that begin in it.
    const auto row_from = [](int64_t element) { return (element + 19) / 20; };
    check_threads<float>(in.matrices() * 35 * 20, Place::kShifted, [&](float* y, int64_t begin, int64_t end) {
      set.table.backward(in.params(DType::kFloat32, statistics.data(), y), row_from(begin), row_from(end));
    });
  }
}
