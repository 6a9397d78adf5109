// The CPU kernels of the loss on batch-normalisation statistics, on every instruction set that can run here.
#include "cpu/bn_statistics_loss.h"

#include <cmath>

#include "kernels.h"

namespace {

using namespace synq;
using namespace synq::test;

struct Shape {
  int64_t outer, channels, inner;
  int64_t count() const { return outer * channels * inner; }
};

constexpr Shape kShapes[] = {
    {1, 1, 1},    {2, 1, 1},   {1, 3, 1},    {7, 5, 1},    {300, 5, 1},  {3, 255, 1},  {3, 256, 1},  {40, 257, 1},
    {2, 515, 1},  {300, 1, 1}, {513, 2, 1},  {9, 3, 15},   {50, 1, 15},  {5, 40, 9},   {2, 18, 15},   // narrow
    {3, 5, 16},   {2, 3, 17},  {5, 2, 401},  {1, 1, 4095}, {1, 1, 4096}, {2, 1, 4097}, {1, 2, 9001},  // wide
    {270, 1, 16}, {70, 3, 64}, {9000, 1, 3},
};

// What is left after all items: the moments of each channel.
struct Moments {
  std::vector<double> mean, variance;
};

// Runs the items of `split` and puts the parts together.
template <typename Run>
Moments reduce(cpu::StatisticsJob job, Place place, const Split& split, const Run& run) {
  const int64_t channels = job.channels;
  Buffer<int64_t> count(job.splits, place);
  Buffer<double> mean(job.splits * channels, place), deviation(job.splits * channels, place);
  job.count = count.data();
  job.mean = mean.data();
  job.deviation = deviation.data();
  run(job, split);
  Moments result{std::vector<double>(static_cast<size_t>(channels)),
                 std::vector<double>(static_cast<size_t>(channels))};
  for (int64_t channel = 0; channel < channels; ++channel) {
    double total = 0.0, sum = 0.0, squares = 0.0;
    for (int64_t s = 0; s < job.splits; ++s) {
      total += static_cast<double>(count[s]);
      sum += static_cast<double>(count[s]) * mean[s * channels + channel];
    }
    for (int64_t s = 0; s < job.splits; ++s) {
      const double delta = mean[s * channels + channel] - sum / total;
      squares += deviation[s * channels + channel] + static_cast<double>(count[s]) * delta * delta;
    }
    CHECK_EQUAL(total, static_cast<double>(job.outer * job.inner));
    result.mean[static_cast<size_t>(channel)] = sum / total;
    result.variance[static_cast<size_t>(channel)] = squares / total;
  }
  return result;
}

template <typename T>
Moments exact_moments(const Shape& shape, const Buffer<T>& x) {
  const size_t channels = static_cast<size_t>(shape.channels);
  const double n = static_cast<double>(shape.outer * shape.inner);
  Moments result{std::vector<double>(channels), std::vector<double>(channels)};
  const auto channel_of = [&](int64_t i) { return static_cast<size_t>(i / shape.inner) % channels; };
  for (int64_t i = 0; i < x.count(); ++i) result.mean[channel_of(i)] += double(to_float(x[i])) / n;
  for (int64_t i = 0; i < x.count(); ++i) {
    const double delta = to_float(x[i]) - result.mean[channel_of(i)];
    result.variance[channel_of(i)] += delta * delta / n;
  }
  return result;
}

template <typename T>
cpu::StatisticsJob make_job(const Shape& shape, const Buffer<T>& x, DType dtype) {
  cpu::StatisticsJob job{};
  job.x = x.data();
  job.outer = shape.outer;
  job.channels = shape.channels;
  job.inner = shape.inner;
  job.dtype = dtype;
  return job;
}

}  // namespace

TEST(moments) {
  int turn = 0;
  for (const Shape& shape : kShapes) {
    for (const DType dtype : kDTypes) {
      const Place place = kPlaces[turn++ % 3];
      cpu::with_type(dtype, [&](auto tag) {
        const Buffer<decltype(tag)> x(random_values<decltype(tag)>(shape.count(), 1, 0, 2.0f), place);
        const Moments expected = exact_moments(shape, x);
        for (const auto& [isa, kernels] : SYNQ_TABLES(cpu::statistics_kernels)) {
          WHERE(isa, name_of(dtype), shape.outer, shape.channels, shape.inner, name_of(place));
          cpu::StatisticsJob job = make_job(shape, x, dtype);
          kernels.plan(job);
          const auto reduce_items = kernels.reduce;
          for (const Split& split : splits(job.splits * job.groups, 1)) {
            const Moments given = reduce(job, place, split, [&](const cpu::StatisticsJob& parts, const Split& all) {
              for (const auto& [begin, end] : all) reduce_items(parts, begin, end);
            });
            for (size_t i = 0; i < expected.mean.size(); ++i) {
              WHERE("channel", i);
              CHECK(std::fabs(given.mean[i] - expected.mean[i]) < 1e-5);
              CHECK(std::fabs(given.variance[i] - expected.variance[i]) < 1e-4);
            }
          }
        }
      });
    }
  }
}

TEST(special_values_stay_inside_their_memory) {
  for (const Shape& shape : kShapes) {
    const Buffer<float> x(random_values<float>(shape.count(), 1, 3), Place::kEnd);
    for (const auto& [isa, kernels] : SYNQ_TABLES(cpu::statistics_kernels)) {
      WHERE(isa, shape.outer, shape.channels, shape.inner);
      cpu::StatisticsJob job = make_job(shape, x, DType::kFloat32);
      kernels.plan(job);
      const auto reduce_items = kernels.reduce;
      reduce(job, Place::kEnd, {{0, job.splits * job.groups}}, [&](const cpu::StatisticsJob& all, const Split& split) {
        reduce_items(all, split[0].first, split[0].second);
      });
    }
  }
}

TEST(gradients) {
  int turn = 0;
  for (const Shape& shape : kShapes) {
    for (const DType dtype : kDTypes) {
      const Place place = kPlaces[turn++ % 3];
      cpu::with_type(dtype, [&](auto tag) {
        using T = decltype(tag);
        const Buffer<T> x(random_values<T>(shape.count(), 1, 9), place);
        // As long as the header says: repeated for a row of folded samples where the inner size is small.
        const bool narrow = shape.inner < cpu::kNarrow;
        const int64_t row = shape.channels * shape.inner;
        const int64_t length = narrow ? cpu::folded(shape.channels, shape.inner) * row : shape.channels;
        Buffer<float> shift(length, place), slope(length, place), offset(length, place);
        const auto coefficients = random_values<float>(3 * shape.channels, 5);
        for (int64_t i = 0; i < length; ++i) {
          const size_t channel = static_cast<size_t>(narrow ? i / shape.inner % shape.channels : i);
          shift[i] = coefficients[3 * channel];
          slope[i] = coefficients[3 * channel + 1];
          offset[i] = coefficients[3 * channel + 2];
        }
        std::vector<T> expected;
        for (int64_t i = 0; i < shape.count(); ++i) {
          const size_t channel = static_cast<size_t>(i / shape.inner % shape.channels);
          const float moved = to_float(x[i]) - coefficients[3 * channel];
          const float scaled = moved * coefficients[3 * channel + 1];
          expected.push_back(from_float<T>(scaled + coefficients[3 * channel + 2]));
        }
        for (const auto& [isa, kernels] : SYNQ_TABLES(cpu::statistics_kernels)) {
          WHERE(isa, name_of(dtype), shape.outer, shape.channels, shape.inner, name_of(place));
          const auto gradient = kernels.gradient;
          check_splits(expected, place, [&](T* y, int64_t begin, int64_t end) {
            gradient({x.data(), y, shift.data(), slope.data(), offset.data(), shape.channels, shape.inner, dtype},
                     begin, end);
          });
        }
      });
    }
  }
}

TEST(threads_on_disjoint_items) {
  for (const auto& set : SYNQ_TABLES(cpu::statistics_kernels)) {
    for (const Shape shape : {Shape{40, 257, 1}, Shape{5, 4, 9001}}) {
      WHERE(set.isa, shape.outer, shape.channels, shape.inner);
      const Buffer<float> x(random_values<float>(shape.count(), 1), Place::kShifted);
      cpu::StatisticsJob job = make_job(shape, x, DType::kFloat32);
      set.table.plan(job);
      const int64_t items = job.splits * job.groups;
      const Moments alone = reduce(job, Place::kShifted, {{0, items}},
                                   [&](const auto& parts, const Split&) { set.table.reduce(parts, 0, items); });
      const Split split{{0, 1}, {1, items / 2 + 1}, {items / 2 + 1, items}};
      const Moments together = reduce(job, Place::kShifted, split, [&](const auto& parts, const Split& all) {
        in_threads(all, [&](int64_t begin, int64_t end) { set.table.reduce(parts, begin, end); });
      });
      CHECK_ALL_EQUAL(together.mean.data(), alone.mean.data(), shape.channels);
      CHECK_ALL_EQUAL(together.variance.data(), alone.variance.data(), shape.channels);
    }
  }
}
