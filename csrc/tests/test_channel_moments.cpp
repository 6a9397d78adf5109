// The CPU kernels of the channels' moments, on every instruction set that can run here.
#include "cpu/channel_moments.h"

#include "kernels.h"

namespace {

using namespace synq;
using namespace synq::test;

struct Sizes {
  int64_t samples;
  int64_t channels;
  int64_t positions;

  int64_t groups() const { return samples * channels; }
  int64_t count() const { return groups() * positions; }
  // The channel, among those of all samples, of an element.
  int64_t group(int64_t i, bool innermost) const {
    return innermost ? i / (positions * channels) * channels + i % channels : i / positions;
  }
};

constexpr Sizes kSizes[] = {{1, 1, 1}, {2, 3, 1}, {3, 5, 49}, {1, 2, 1999}, {2, 16, 100}, {2, 515, 3}, {1, 300, 40}};

cpu::MomentsJob job_of(const Sizes& sizes, DType dtype, const void* x) {
  cpu::MomentsJob job{};
  job.x = x;
  job.channels = sizes.channels;
  job.positions = sizes.positions;
  job.dtype = dtype;
  return job;
}

// Calls body(kernels, sizes, whether channels are innermost, dtype, x) for everything there is.
template <typename Body>
void for_each_input(const Body& body) {
  for (const auto& [isa, kernels] : SYNQ_TABLES(cpu::channel_moments_kernels)) {
    for (const DType dtype : kDTypes) {
      for (const Sizes& sizes : kSizes) {
        for (const Place place : kPlaces) {
          for (const bool innermost : {false, true}) {
            WHERE(isa, name_of(dtype), sizes.samples, sizes.channels, sizes.positions, innermost, name_of(place));
            cpu::with_type(dtype, [&](auto tag) {
              const Buffer<decltype(tag)> x(random_values<decltype(tag)>(sizes.count(), 1), place);
              body(kernels, sizes, innermost, dtype, x, place);
            });
          }
        }
      }
    }
  }
}

}  // namespace

TEST(sums) {
  for_each_input([](const auto& kernels, const Sizes& sizes, bool innermost, DType dtype, const auto& x, Place place) {
    const size_t groups = static_cast<size_t>(sizes.groups());
    std::vector<double> expected(groups), squares(groups), sizes_of_sums(groups);
    for (int64_t i = 0; i < sizes.count(); ++i) {
      const size_t group = static_cast<size_t>(sizes.group(i, innermost));
      const double value = to_float(x[i]);
      expected[group] += value;
      squares[group] += value * value;
      sizes_of_sums[group] += std::abs(value) + value * value;
    }
    const cpu::MomentsJob job = job_of(sizes, dtype, x.data());
    Buffer<double> of_x(sizes.groups(), place), of_squares(sizes.groups(), place);
    const int64_t length = innermost ? sizes.positions * sizes.channels : sizes.groups();
    for (const Split& split : splits(length)) {
      of_x.fill(0.0);
      of_squares.fill(0.0);
      for (const auto& [begin, end] : split) {
        if (!innermost) {
          kernels.runs(job, begin, end, of_x.data(), of_squares.data());
          continue;
        }
        for (int64_t sample = 0; sample < sizes.samples; ++sample) {
          const int64_t first = sample * sizes.channels;
          kernels.columns(job, sample, begin, end, of_x.data() + first, of_squares.data() + first);
        }
      }
      for (size_t i = 0; i < groups; ++i) {
        // A square is rounded, and at most 32 terms are added up in float32.
        const double allowed = 33 * 0x1p-24 * sizes_of_sums[i];
        CHECK(std::abs(of_x[static_cast<int64_t>(i)] - expected[i]) <= allowed);
        CHECK(std::abs(of_squares[static_cast<int64_t>(i)] - squares[i]) <= allowed);
      }
    }
  });
}

TEST(gradients) {
  for_each_input([](const auto& kernels, const Sizes& sizes, bool innermost, DType dtype, const auto& x, Place place) {
    using T = std::remove_const_t<std::remove_reference_t<decltype(x[0])>>;
    const Buffer<float> offset(random_values<float>(sizes.groups(), 2), place);
    const Buffer<float> slope(random_values<float>(sizes.groups(), 3), place);
    std::vector<T> expected;
    for (int64_t i = 0; i < sizes.count(); ++i) {
      const int64_t group = sizes.group(i, innermost);
      const float product = to_float(x[i]) * slope[group];
      expected.push_back(from_float<T>(offset[group] + product));
    }
    check_splits(expected, place, [&](T* y, int64_t begin, int64_t end) {
      cpu::MomentsJob job = job_of(sizes, dtype, x.data());
      job.offset = offset.data();
      job.slope = slope.data();
      job.y = y;
      (innermost ? kernels.columns_backward : kernels.runs_backward)(job, begin, end);
    });
  });
}
