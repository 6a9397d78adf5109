// The CPU kernels of a logarithmic grid, on every instruction set that can run here.
#include "cpu/fake_quantize_log.h"

#include <cmath>

#include "quantizer_cases.h"

namespace {

using namespace synq;
using namespace synq::test;

constexpr int64_t kCounts[] = {1, 2, 15, 16, 17, 511, 512, 513, 1999};
constexpr int kBits[] = {2, 4, 8, 16};
constexpr float kScale = 0.7f;

// Positive values are squared, which spreads them over more octaves.
template <typename T>
struct LogInputs {
  Buffer<T> x;
  Buffer<T> gradient;
  float scale = kScale;

  LogInputs(int64_t count, Place place, int special = 6)
      : x(random_values<T>(count, 1, special), place), gradient(random_values<T>(count, 2, special), place) {
    for (int64_t i = 0; i < count; ++i) {
      const float value = to_float(x[i]);
      if (value > 0) x[i] = from_float<T>(value * value);
    }
  }
};

template <typename T>
cpu::Job make_job(const LogInputs<T>& in, int bits, DType dtype, int64_t count, void* y) {
  return {in.x.data(), in.gradient.data(), y, &in.scale, nullptr, 1, count, bits, dtype};
}

float ratio_of(float x) { return x / kScale; }

// The level by a logarithm in double; no float lies as near to a middle as double errs.
double level_of(float x, int bits) {
  const double ratio = ratio_of(x);
  if (std::isnan(ratio)) return ratio;
  if (ratio < std::ldexp(1.0, -126)) return 0.0;
  const double code = ratio > 1 ? 0.0 : std::rint(-std::log2(ratio));
  return code > std::ldexp(1.0, bits) - 2 ? 0.0 : std::ldexp(1.0, -static_cast<int>(code));
}

template <typename Body>
void for_each_input(const Body& body) {
  for (const auto& set : SYNQ_TABLES(cpu::fake_quantize_log_kernels)) {
    for (const DType dtype : kDTypes) {
      for (const int64_t count : kCounts) {
        for (const Place place : kPlaces) {
          const int bits = kBits[count % std::size(kBits)];
          WHERE(set.isa, name_of(dtype), count, bits, name_of(place));
          cpu::with_type(dtype, [&](auto tag) {
            const LogInputs<decltype(tag)> in(count, place);
            body(set.table, in, bits, dtype, count, place);
          });
        }
      }
    }
  }
}

template <typename T>
T type_of(const LogInputs<T>&);

}  // namespace

TEST(values) {
  for_each_input([](const auto& kernels, const auto& in, int bits, DType dtype, int64_t count, Place place) {
    using T = decltype(type_of(in));
    const auto run = [&](T* y, int64_t begin, int64_t end) {
      kernels.forward(make_job(in, bits, dtype, count, y), begin, end);
    };
    std::vector<T> expected;
    for (int64_t i = 0; i < count; ++i) {
      expected.push_back(from_float<T>(kScale * static_cast<float>(level_of(to_float(in.x[i]), bits))));
    }
    check_splits(expected, place, run);
    check_threads<T>(count, place, run);
  });
}

TEST(gradients) {
  for_each_input([](const auto& kernels, const auto& in, int bits, DType dtype, int64_t count, Place place) {
    using T = decltype(type_of(in));
    const auto run = [&](T* y, int64_t begin, int64_t end) {
      double of_scale = 0.0;
      kernels.backward(make_job(in, bits, dtype, count, y), begin, end, &of_scale);
    };
    std::vector<T> expected;
    for (int64_t i = 0; i < count; ++i) {
      const float x = to_float(in.x[i]);
      const float level = static_cast<float>(level_of(x, bits));
      const bool blocked = ratio_of(x) > 1 || level == 0;
      expected.push_back(from_float<T>(blocked ? 0.0f : to_float(in.gradient[i]) * (kScale * level / x)));
    }
    check_splits(expected, place, run);
    check_threads<T>(count, place, run);
  });
}

TEST(sums) {
  for (const auto& set : SYNQ_TABLES(cpu::fake_quantize_log_kernels)) {
    WHERE(set.isa);
    const int64_t count = 1999;
    const LogInputs<float> in(count, Place::kShifted, 0);
    double expected = 0.0;
    for (int64_t i = 0; i < count; ++i) expected += ratio_of(in.x[i]) > 1 ? in.gradient[i] : 0.0;
    CHECK(std::fabs(expected) > 1);
    Buffer<float> y(count, Place::kShifted);
    for (const Split& split : splits(count)) {
      double of_scale = 0.0;
      for (const auto& [begin, end] : split) {
        set.table.backward(make_job(in, 4, DType::kFloat32, count, y.data()), begin, end, &of_scale);
      }
      CHECK(std::fabs(of_scale - expected) < 1e-4);
    }
  }
}
