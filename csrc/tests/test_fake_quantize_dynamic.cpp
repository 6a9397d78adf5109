// The CPU kernels that find ranges, on every instruction set that can run here.
#include "cpu/fake_quantize_dynamic.h"

#include "quantizer_cases.h"

namespace {

using namespace synq;
using namespace synq::test;

struct Extrema {
  std::vector<float> low;
  std::vector<float> high;
};

template <typename T>
Extrema find_extrema(const Case& c, const Inputs<T>& in) {
  const size_t channels = static_cast<size_t>(c.shape.channels);
  Extrema extrema{std::vector<float>(channels, kInfinity), std::vector<float>(channels, -kInfinity)};
  for (int64_t i = 0; i < c.count(); ++i) {
    const size_t channel = static_cast<size_t>(i / c.shape.inner) % channels;
    extrema.low[channel] = lowest(extrema.low[channel], to_float(in.x[i]));
    extrema.high[channel] = largest(extrema.high[channel], to_float(in.x[i]));
  }
  return extrema;
}

// Which zero of -0 and +0 is the smaller depends on the order of comparison.
void check_bounds(const Buffer<float>& given, const std::vector<float>& expected) {
  for (int64_t i = 0; i < given.count(); ++i) CHECK_EQUAL(given[i] + 0.0f, expected[static_cast<size_t>(i)] + 0.0f);
}

template <typename T>
cpu::DynamicJob make_job(const Case& c, const Inputs<T>& in, DType dtype) {
  cpu::DynamicJob job{};
  job.x = in.x.data();
  job.outer = c.shape.outer;
  job.channels = c.shape.channels;
  job.inner = c.shape.inner;
  job.bits = c.bits;
  job.dtype = dtype;
  return job;
}

}  // namespace

TEST(ranges) {
  for_each_case(SYNQ_TABLES(cpu::fake_quantize_dynamic_kernels),
                [](const auto& kernels, const Case& c, const auto& in, DType dtype) {
                  const Extrema expected = find_extrema(c, in);
                  Buffer<float> low(c.shape.channels, c.place), high(c.shape.channels, c.place);
                  for (const Split& split : splits(c.count())) {
                    low.fill(kInfinity);
                    high.fill(-kInfinity);
                    for (const auto& [begin, end] : split) {
                      kernels.find_range(make_job(c, in, dtype), begin, end, low.data(), high.data());
                    }
                    check_bounds(low, expected.low);
                    check_bounds(high, expected.high);
                  }
                });
}

TEST(nan_at_any_place_is_in_the_range) {
  for (const auto& [isa, kernels] : SYNQ_TABLES(cpu::fake_quantize_dynamic_kernels)) {
    for (int64_t place = 0; place < 200; ++place) {
      WHERE(isa, "NaN at", place);
      Buffer<float> x(random_values<float>(200, 3), Place::kEnd);
      x[place] = kNan;
      cpu::DynamicJob job{};
      job.x = x.data();
      job.outer = 1;
      job.channels = 1;
      job.inner = 200;
      job.dtype = DType::kFloat32;
      float low = kInfinity;
      float high = -kInfinity;
      kernels.find_range(job, 0, 200, &low, &high);
      CHECK_EQUAL(low, kNan);
      CHECK_EQUAL(high, kNan);
    }
  }
}

TEST(channels_quantized_over_their_own_range) {
  for_each_case(SYNQ_TABLES(cpu::fake_quantize_dynamic_kernels),
                [](const auto& kernels, const Case& c, const auto& in, DType dtype) {
                  using T = decltype(element_type(in));
                  const Extrema expected = find_extrema(c, in);
                  const int64_t channels = c.shape.channels;
                  Buffer<float> low(channels, c.place), high(channels, c.place);
                  Buffer<float> scale(channels, c.place), zero_point(channels, c.place);
                  Buffer<T> y(c.count(), c.place);
                  cpu::DynamicJob job = make_job(c, in, dtype);
                  job.y = y.data();
                  job.minimum = low.data();
                  job.maximum = high.data();
                  job.scale = scale.data();
                  job.zero_point = zero_point.data();
                  for (const Split& split : splits(channels)) {
                    y.clear();
                    for (const auto& [first, last] : split) kernels.quantize_channels(job, first, last);
                    check_bounds(low, expected.low);
                    check_bounds(high, expected.high);
                    std::vector<T> values;
                    for (int64_t i = 0; i < c.count(); ++i) {
                      const int64_t channel = i / c.shape.inner % channels;
                      const Model model = make_model(low[channel], high[channel], c.bits);
                      values.push_back(from_float<T>(value_of(model, to_float(in.x[i]))));
                    }
                    CHECK_ALL_EQUAL(y.data(), values.data(), c.count());
                  }
                });
}

TEST(symmetric_ranges_have_no_zero_point) {
  const Case c = plain_case(Place::kEnd);
  for (const auto& [isa, kernels] : SYNQ_TABLES(cpu::fake_quantize_dynamic_kernels)) {
    WHERE(isa);
    const Inputs<float> in(c, 0);
    const Extrema extrema = find_extrema(c, in);
    Buffer<float> low(5), high(5), scale(5), zero_point(5), y(c.count());
    cpu::DynamicJob job = make_job(c, in, DType::kFloat32);
    job.symmetric = true;
    job.y = y.data();
    job.minimum = low.data();
    job.maximum = high.data();
    job.scale = scale.data();
    job.zero_point = zero_point.data();
    kernels.quantize_channels(job, 0, 5);
    for (int64_t channel = 0; channel < 5; ++channel) {
      const size_t i = static_cast<size_t>(channel);
      CHECK_EQUAL(high[channel], std::max(-extrema.low[i], extrema.high[i]));
      CHECK(low[channel] < -high[channel]);
      CHECK_EQUAL(zero_point[channel], 0.0f);
    }
  }
}

TEST(threads_on_disjoint_channels) {
  const Case c = plain_case(Place::kShifted);
  for (const auto& set : SYNQ_TABLES(cpu::fake_quantize_dynamic_kernels)) {
    for (const DType dtype : kDTypes) {
      WHERE(set.isa, name_of(dtype));
      cpu::with_type(dtype, [&](auto tag) {
        using T = decltype(tag);
        const Inputs<T> in(c);
        Buffer<float> low(5), high(5), scale(5), zero_point(5);
        Buffer<T> alone(c.count()), y(c.count());
        cpu::DynamicJob job = make_job(c, in, dtype);
        job.minimum = low.data();
        job.maximum = high.data();
        job.scale = scale.data();
        job.zero_point = zero_point.data();
        job.y = alone.data();
        set.table.quantize_channels(job, 0, 5);
        job.y = y.data();
        in_threads({{0, 1}, {1, 3}, {3, 5}},
                   [&](int64_t first, int64_t last) { set.table.quantize_channels(job, first, last); });
        CHECK_ALL_EQUAL(y.data(), alone.data(), c.count());
      });
    }
  }
}
