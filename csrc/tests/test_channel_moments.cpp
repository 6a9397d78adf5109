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
    const cpu::MomentsJob job = job_of(sizes, dtype, x.data());
    Buffer<double> sums(sizes.groups(), place), deviations(sizes.groups(), place);
    // Sums over the positions [first, last) of every channel.
    const auto check = [&](int64_t first, int64_t last) {
      const size_t groups = static_cast<size_t>(sizes.groups());
      const double count = static_cast<double>(last - first);
      std::vector<double> expected(groups), squares(groups), magnitudes(groups);
      const auto for_each_value = [&](const auto& body) {
        for (int64_t i = 0; i < sizes.count(); ++i) {
          const int64_t position = innermost ? i / sizes.channels % sizes.positions : i % sizes.positions;
          if (position < first || position >= last) continue;
          body(static_cast<size_t>(sizes.group(i, innermost)), static_cast<double>(to_float(x[i])));
        }
      };
      for_each_value([&](size_t group, double value) {
        expected[group] += value;
        magnitudes[group] += std::abs(value) + value * value;
      });
      for_each_value([&](size_t group, double value) {
        const double distance = value - expected[group] / count;
        squares[group] += distance * distance;
      });
      for (size_t i = 0; i < groups; ++i) {
        // Differences and squares are rounded, and at most 32 terms are added up in float32.
        const double allowed = 36 * 0x1p-24 * magnitudes[i];
        CHECK(std::abs(sums[static_cast<int64_t>(i)] - expected[i]) <= allowed);
        CHECK(std::abs(deviations[static_cast<int64_t>(i)] - squares[i]) <= allowed);
      }
    };
    if (!innermost) {
      for (const Split& split : splits(sizes.groups())) {
        for (const auto& [begin, end] : split) kernels.runs(job, begin, end, sums.data(), deviations.data());
        check(0, sizes.positions);
      }
      return;
    }
    for (const Split& split : splits(sizes.positions)) {
      for (const auto& [begin, end] : split) {
        if (begin == end) continue;
        for (int64_t sample = 0; sample < sizes.samples; ++sample) {
          const int64_t first = sample * sizes.channels;
          kernels.columns(job, sample, begin, end, sums.data() + first, deviations.data() + first);
        }
        check(begin, end);
      }
    }
  });
}

// Every float near 1e4 is a multiple of 2^-10, so distances of one step are exact.
TEST(a_large_mean_costs_no_accuracy) {
  constexpr int64_t kPositions = 20000;
  constexpr int64_t kChannels = 3;
  std::vector<float> values(kPositions * kChannels);
  for (const bool innermost : {false, true}) {
    for (int64_t i = 0; i < kPositions * kChannels; ++i) {
      const int64_t position = innermost ? i / kChannels : i % kPositions;
      values[static_cast<size_t>(i)] = 1e4f + (position % 2 == 0 ? 0x1p-10f : -0x1p-10f);
    }
    const cpu::MomentsJob job = job_of({1, kChannels, kPositions}, DType::kFloat32, values.data());
    for (const auto& [isa, kernels] : SYNQ_TABLES(cpu::channel_moments_kernels)) {
      WHERE(isa, innermost);
      double sums[kChannels], deviations[kChannels];
      if (innermost) {
        kernels.columns(job, 0, 0, kPositions, sums, deviations);
      } else {
        kernels.runs(job, 0, kChannels, sums, deviations);
      }
      for (int64_t c = 0; c < kChannels; ++c) {
        CHECK(std::abs(sums[c] / kPositions - 1e4) < 1e-9);
        CHECK(std::abs(deviations[c] / kPositions / 0x1p-20 - 1) < 1e-6);
      }
    }
  }
}

TEST(gradients) {
  for_each_input([](const auto& kernels, const Sizes& sizes, bool innermost, DType dtype, const auto& x, Place place) {
    using T = std::remove_const_t<std::remove_reference_t<decltype(x[0])>>;
    const Buffer<float> offset(random_values<float>(sizes.groups(), 2), place);
    const Buffer<float> slope(random_values<float>(sizes.groups(), 3), place);
    const Buffer<float> mean(random_values<float>(sizes.groups(), 4), place);
    std::vector<T> expected;
    for (int64_t i = 0; i < sizes.count(); ++i) {
      const int64_t group = sizes.group(i, innermost);
      const float distance = to_float(x[i]) - mean[group];
      const float product = distance * slope[group];
      expected.push_back(from_float<T>(offset[group] + product));
    }
    check_splits(expected, place, [&](T* y, int64_t begin, int64_t end) {
      cpu::MomentsJob job = job_of(sizes, dtype, x.data());
      job.mean = mean.data();
      job.offset = offset.data();
      job.slope = slope.data();
      job.y = y;
      (innermost ? kernels.columns_backward : kernels.runs_backward)(job, begin, end);
    });
  });
}
