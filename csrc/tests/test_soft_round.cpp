// The CPU kernels of soft rounding, on every instruction set that can run here.
#include "soft_round.h"

#include <cmath>

#include "affine.h"
#include "kernels.h"

namespace {

using namespace synq;
using namespace synq::test;

struct Shape {
  int64_t outer;
  int64_t channels;
  int64_t inner;

  int64_t count() const { return outer * channels * inner; }
};

constexpr int kBits = 4;
constexpr float kGradPenalty = 0.75f;
constexpr Shape kShapes[] = {{1, 1, 1},   {1, 1, 7}, {1, 1, 1999}, {3, 5, 401}, {40, 5, 1},
                             {2, 515, 1}, {9, 4, 3}, {1, 3, 512},  {70, 5, 3},  {150, 9, 1}};

struct Inputs {
  Shape shape;
  Buffer<float> v;
  Buffer<int8_t> base;
  Buffer<float> gradient;
  Buffer<float> scale;
  Buffer<float> zero_point;
  Buffer<float> exponent;
  Buffer<float> grad_penalty;

  Inputs(const Shape& given, Place place, float power)
      : shape(given),
        v(random_values<float>(given.count(), 1, 9, 2.0f), place),
        base(codes(given.count()), place),
        gradient(random_values<float>(given.count(), 2), place),
        scale(per_channel(given.channels, 0.5f), place),
        zero_point(per_channel(given.channels, -3.0f), place),
        exponent(std::vector<float>{power}, place),
        grad_penalty(std::vector<float>{kGradPenalty}, place) {}

  static std::vector<int8_t> codes(int64_t count) {
    std::vector<int8_t> values;
    for (int64_t i = 0; i < count; ++i) values.push_back(static_cast<int8_t>(i % 19 - 9));
    return values;
  }

  static std::vector<float> per_channel(int64_t channels, float first) {
    std::vector<float> values;
    for (int64_t i = 0; i < channels; ++i) values.push_back(first + static_cast<float>(i % 7));
    return values;
  }

  SoftRoundParams params(float* y) const {
    SoftRoundParams params{};
    static_cast<Layout&>(params) = {shape.outer, shape.channels, shape.inner};
    params.v = v.data();
    params.base = base.data();
    params.y = y;
    params.scale = scale.data();
    params.zero_point = zero_point.data();
    params.exponent = exponent.data();
    params.bits = kBits;
    return params;
  }

  int64_t channel_of(int64_t i) const { return i / shape.inner % shape.channels; }
};

// The formulas in double.
struct Model {
  double sigmoid;
  double h;
  double code;
  double w;
  double term;
  double distance;

  Model(const Inputs& in, int64_t i) {
    const int64_t channel = in.channel_of(i);
    sigmoid = 1 / (1 + std::exp(-double(in.v[i])));
    h = 1.2 * sigmoid - 0.1;
    h = h < 0 ? 0 : h > 1 ? 1 : h;
    code = in.base[i] + h;
    code = code < lowest_code(kBits) ? lowest_code(kBits) : code > highest_code(kBits) ? highest_code(kBits) : code;
    w = (code + in.zero_point[channel]) / in.scale[channel];
    distance = 2 * h - 1;
    term = 1 - std::pow(std::fabs(distance), double(in.exponent[0]));
  }

  double of_v(const Inputs& in, int64_t i, bool of_weights, bool of_penalty) const {
    if (std::isnan(h)) return kNan;
    if (h <= 0 || h >= 1) return 0;
    const bool inside = in.base[i] >= lowest_code(kBits) && in.base[i] < highest_code(kBits);
    double of_h = of_weights && inside ? in.gradient[i] / in.scale[in.channel_of(i)] : 0;
    const double power = in.exponent[0];
    const double sign = distance > 0 ? 1 : distance < 0 ? -1 : 0;
    if (of_penalty) of_h -= kGradPenalty * 2 * power * std::pow(std::fabs(distance), power - 1) * sign;
    return of_h * 1.2 * sigmoid * (1 - sigmoid);
  }
};

bool is_near(double value, double expected, double tolerance) {
  if (std::isnan(expected)) return std::isnan(value);
  return std::fabs(value - expected) <= tolerance;
}

}  // namespace

TEST(weights_and_penalties) {
  for (const Shape& shape : kShapes) {
    for (const Place place : kPlaces) {
      for (const float power : {1.0f, 2.0f, 20.0f}) {
        const Inputs in(shape, place, power);
        for (const auto& [isa, kernels] : SYNQ_TABLES(cpu::soft_round_kernels)) {
          WHERE(isa, name_of(place), shape.outer, shape.channels, shape.inner, "exponent", power);
          const auto run = [&, &table = kernels](float* y, int64_t begin, int64_t end) {
            double penalty = 0.0;
            table.forward(in.params(y), begin, end, &penalty);
            double expected = 0.0;
            for (int64_t i = begin; i < end; ++i) expected += Model(in, i).term;
            WHERE("part", begin, end, "penalty", penalty, "expected", expected);
            CHECK(is_near(penalty, expected, 5e-7 * power * double(end - begin)));
          };
          const std::vector<float> whole = in_one_part<float>(shape.count(), place, run);
          for (int64_t i = 0; i < shape.count(); ++i) {
            CHECK(is_near(whole[static_cast<size_t>(i)], Model(in, i).w, 4e-6));
          }
          check_splits(whole, place, run);
        }
      }
    }
  }
}

TEST(penalties_of_decided_shares_are_zero) {
  const Shape shape{1, 1, 37};
  Inputs in(shape, Place::kShifted, 7.5f);
  for (int64_t i = 0; i < shape.count(); ++i) in.v.data()[i] = i % 2 == 0 ? 5.0f : -kInfinity;
  for (const auto& [isa, kernels] : SYNQ_TABLES(cpu::soft_round_kernels)) {
    WHERE(isa);
    Buffer<float> w(shape.count(), Place::kShifted);
    double penalty = 0.0;
    kernels.forward(in.params(w.data()), 0, shape.count(), &penalty);
    CHECK_EQUAL(penalty, 0.0);
  }
}

TEST(gradients) {
  for (const Shape& shape : kShapes) {
    for (const Place place : kPlaces) {
      for (const int wanted : {1, 2, 3}) {
        const Inputs in(shape, place, 5.0f);
        const bool of_weights = (wanted & 1) != 0, of_penalty = (wanted & 2) != 0;
        for (const auto& [isa, kernels] : SYNQ_TABLES(cpu::soft_round_kernels)) {
          WHERE(isa, name_of(place), shape.outer, shape.channels, shape.inner, "wanted", wanted);
          Buffer<double> of_scale(shape.channels, place);
          const auto run = [&, &table = kernels](float* y, int64_t begin, int64_t end) {
            SoftRoundParams params = in.params(y);
            if (of_weights) params.gradient = in.gradient.data();
            if (of_penalty) params.grad_penalty = in.grad_penalty.data();
            table.backward(params, begin, end, of_scale.data());
          };
          of_scale.fill(0.0);
          const std::vector<float> whole = in_one_part<float>(shape.count(), place, run);
          std::vector<double> sums(static_cast<size_t>(shape.channels));
          for (int64_t i = 0; i < shape.count(); ++i) {
            const Model model(in, i);
            const double expected = model.of_v(in, i, of_weights, of_penalty);
            CHECK(is_near(whole[static_cast<size_t>(i)], expected, 1e-5));
            const int64_t channel = in.channel_of(i);
            if (of_weights)
              sums[static_cast<size_t>(channel)] += in.gradient[i] * (model.code + in.zero_point[channel]);
          }
          for (int64_t c = 0; c < shape.channels; ++c) {
            CHECK(is_near(of_scale[c], sums[static_cast<size_t>(c)], 1e-4 * double(shape.count() / shape.channels)));
          }
          check_splits(whole, place, run);
        }
      }
    }
  }
}

TEST(threads_with_sums_of_their_own) {
  const Inputs in({3, 5, 401}, Place::kShifted, 5.0f);
  for (const auto& set : SYNQ_TABLES(cpu::soft_round_kernels)) {
    WHERE(set.isa);
    check_threads<float>(in.shape.count(), Place::kShifted, [&](float* y, int64_t begin, int64_t end) {
      double penalty = 0.0;
      set.table.forward(in.params(y), begin, end, &penalty);
    });
    check_threads<float>(in.shape.count(), Place::kShifted, [&](float* y, int64_t begin, int64_t end) {
      double of_scale[5] = {};
      SoftRoundParams params = in.params(y);
      params.gradient = in.gradient.data();
      params.grad_penalty = in.grad_penalty.data();
      set.table.backward(params, begin, end, of_scale);
    });
  }
}
