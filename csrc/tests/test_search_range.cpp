// The CPU kernels of the range search, on every instruction set that can run here.
#include "cpu/search_range.h"

#include <cmath>

#include "candidate.h"
#include "kernels.h"
#include "quantizer_model.h"

namespace {

using namespace synq;
using namespace synq::test;

constexpr int64_t kCounts[] = {1, 15, 16, 17, 255, 256, 257, 511, 513, 4095, 4096, 4097, 9001};
constexpr int32_t kCandidates[] = {0, 1, 37, 79, 99};
constexpr float kLow = -2.5f;
constexpr float kHigh = 3.25f;
constexpr int kBits = 4;
constexpr float kNorm = 2.4f;

template <typename T>
std::vector<T> values_in_range(int64_t count, unsigned seed) {
  std::vector<T> values = random_values<T>(count, seed);
  for (T& value : values) value = from_float<T>(std::min(std::max(to_float(value), kLow), kHigh));
  return values;
}

float offset() { return power_offset(kLow, kHigh, make_candidate(kLow, kHigh, 0, kBits).affine, kNorm); }

// Of powers, or of squares in their unit.
double error_sum(const std::vector<float>& x, const std::vector<float>& weights, int32_t index, bool squares) {
  const double power = squares ? 2.0 : double(kNorm);
  const double factor = std::exp2(double(offset()) / kNorm * power);
  const float shrink = rounded((100.0 - index) / 100.0);
  const Model model = make_model(rounded(double(kLow) * shrink), rounded(double(kHigh) * shrink), kBits);
  double sum = 0.0;
  for (size_t i = 0; i < x.size(); ++i) {
    const double error = std::fabs(double(value_of(model, x[i])) - x[i]);
    sum += std::pow(error, power) * factor * (weights.empty() ? 1.0 : weights[i]);
  }
  return sum;
}

}  // namespace

TEST(shrinks_are_correctly_rounded) {
  for (int i = 0; i < 100; ++i) CHECK_EQUAL(shrink_of(i), rounded((100.0 - i) / 100.0));
}

TEST(candidates_are_quantizers_of_the_shrunk_range) {
  for (int i = 0; i < 100; ++i) {
    const Candidate candidate = make_candidate(kLow, kHigh, i, kBits);
    const float shrink = rounded((100.0 - i) / 100.0);
    const Model model = make_model(rounded(double(kLow) * shrink), rounded(double(kHigh) * shrink), kBits);
    CHECK_EQUAL(candidate.affine.scale, model.scale);
    CHECK_EQUAL(candidate.affine.zero_point, model.zero_point);
    for (const float x : random_values<float>(200, static_cast<unsigned>(i))) {
      const float error = quantization_error(x, candidate, lowest_code(kBits), highest_code(kBits));
      CHECK_EQUAL(error, rounded(double(value_of(model, x)) - x));
    }
  }
}

TEST(unusable_ranges_are_not_searched) {
  CHECK(is_searchable(make_candidate(-1.0f, 1.0f, 0, 4).affine));
  CHECK(is_searchable(make_candidate(2.0f, 2.0f, 0, 4).affine));
  CHECK(!is_searchable(make_candidate(kNan, 1.0f, 0, 4).affine));
  CHECK(!is_searchable(make_candidate(-kInfinity, 1.0f, 0, 4).affine));
  CHECK(is_searchable(make_candidate(-3e38f, 3e38f, 0, 4).affine));  // wider than the largest float
}

TEST(sums_of_errors) {
  for (const DType dtype : kDTypes) {
    for (const int64_t count : kCounts) {
      for (const Place place : kPlaces) {
        cpu::with_type(dtype, [&](auto tag) {
          using T = decltype(tag);
          const Buffer<T> x(values_in_range<T>(count, 1), place);
          std::vector<float> widened;
          for (int64_t i = 0; i < count; ++i) widened.push_back(to_float(x[i]));
          // Weights come with float32 elements alone.
          for (const bool weighted : {false, true}) {
            if (weighted && dtype != DType::kFloat32) continue;
            std::vector<float> factors(weighted ? static_cast<size_t>(count) : 0);
            for (size_t i = 0; i < factors.size(); ++i) factors[i] = static_cast<float>(i % 5);
            const Buffer<float> weights(factors, place);
            const Buffer<int32_t> candidates({std::begin(kCandidates), std::end(kCandidates)}, place);
            std::vector<double> expected[2];
            for (const bool squares : {false, true}) {
              for (const int32_t index : kCandidates) {
                expected[squares].push_back(error_sum(widened, factors, index, squares));
              }
            }
            cpu::SearchRangeJob job{x.data(),
                                    weighted ? weights.data() : nullptr,
                                    candidates.data(),
                                    static_cast<int32_t>(candidates.count()),
                                    kBits,
                                    kLow,
                                    kHigh,
                                    kNorm,
                                    offset(),
                                    dtype};
            for (const auto& [isa, kernels] : SYNQ_TABLES(cpu::search_range_kernels)) {
              for (const bool squares : {false, true}) {
                WHERE(isa, name_of(dtype), "count", count, name_of(place), weighted ? "weighted" : "", squares);
                const auto kernel = squares ? kernels.sum_squares : kernels.sum_errors;
                Buffer<double> sums(candidates.count(), place);
                for (const Split& split : splits(count, 1)) {
                  if (split.size() > 10) continue;
                  std::vector<double> total(expected[squares].size());
                  for (const auto& [begin, end] : split) {
                    sums.clear();
                    kernel(job, begin, end, sums.data());
                    for (size_t c = 0; c < total.size(); ++c) total[c] += sums[static_cast<int64_t>(c)];
                  }
                  for (size_t c = 0; c < total.size(); ++c) {
                    const double sum = expected[squares][c];
                    WHERE("candidate", kCandidates[c], "sum", total[c], "expected", sum);
                    CHECK(std::fabs(total[c] - sum) <= 2e-5 * sum + 1e-6);
                  }
                }
              }
            }
          }
        });
      }
    }
  }
}

TEST(histograms) {
  for (const DType dtype : kDTypes) {
    for (const int64_t count : kCounts) {
      for (const int32_t bins : {1, 7, 1024}) {
        for (const Place place : kPlaces) {
          cpu::with_type(dtype, [&](auto tag) {
            using T = decltype(tag);
            const Buffer<T> x(values_in_range<T>(count, 2), place);
            // The range of the data as rounded to its type, as the op finds it.
            float low = kInfinity, high = -kInfinity;
            for (int64_t i = 0; i < count; ++i) {
              low = std::min(low, to_float(x[i]));
              high = std::max(high, to_float(x[i]));
            }
            const float per_unit = high > low ? rounded(bins / (double(high) - low)) : 1.0f;
            const cpu::HistogramJob job{x.data(), low, per_unit, bins, dtype};
            std::vector<uint32_t> expected(static_cast<size_t>(bins));
            for (int64_t i = 0; i < count; ++i) {
              const float bin = rounded(double(rounded(double(to_float(x[i])) - low)) * per_unit);
              ++expected[static_cast<size_t>(std::min(bin, static_cast<float>(bins - 1)))];
            }
            for (const auto& [isa, kernels] : SYNQ_TABLES(cpu::search_range_kernels)) {
              WHERE(isa, name_of(dtype), "count", count, "bins", bins, name_of(place));
              Buffer<uint32_t> counts(bins, place);
              for (const Split& split : splits(count, 1)) {
                counts.fill(0);
                for (const auto& [begin, end] : split) kernels.count(job, begin, end, counts.data());
                CHECK_ALL_EQUAL(counts.data(), expected.data(), bins);
              }
            }
          });
        }
      }
    }
  }
}

TEST(threads_with_sums_of_their_own) {
  const Buffer<float> x(values_in_range<float>(9001, 3), Place::kShifted);
  for (const auto& set : SYNQ_TABLES(cpu::search_range_kernels)) {
    WHERE(set.isa);
    const cpu::SearchRangeJob job{x.data(), nullptr, kCandidates, 5,        kBits,
                                  kLow,     kHigh,   kNorm,       offset(), DType::kFloat32};
    std::vector<double> alone(15), together(15);
    const auto part = [&](double* sums, int64_t i) {
      set.table.sum_errors(job, i * 3000, i == 2 ? 9001 : (i + 1) * 3000, sums + 5 * i);
    };
    for (int64_t i = 0; i < 3; ++i) part(alone.data(), i);
    in_threads({{0, 1}, {1, 2}, {2, 3}}, [&](int64_t i, int64_t) { part(together.data(), i); });
    CHECK_ALL_EQUAL(together.data(), alone.data(), int64_t{15});
  }
}
