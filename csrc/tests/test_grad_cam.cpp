// The CPU kernels of class activation maps, on every instruction set that can run here.
#include "cpu/grad_cam.h"

#include <cmath>

#include "kernels.h"

namespace {

using namespace synq;
using namespace synq::test;

struct Shape {
  int64_t channels, positions;
};

constexpr Shape kShapes[] = {{1, 1},  {1, 7},   {3, 15},  {7, 16},   {8, 17},  {9, 49},  {17, 31}, {16, 64},
                             {33, 5}, {2, 511}, {8, 513}, {9, 1025}, {511, 3}, {513, 9}, {1030, 2}};
constexpr CamKind kKinds[] = {CamKind::kGradCam, CamKind::kGradCamPlusPlus, CamKind::kLayerCam, CamKind::kHiResCam};
constexpr int64_t kImages = 2;
constexpr float kClamp = 0.01f;

// Images lie `stride` elements apart; what is between them must not be read.
template <typename T>
struct Inputs {
  int64_t stride;
  Buffer<T> activations, gradients;
  Buffer<float> factor;

  Inputs(const Shape& shape, Place place)
      : stride(shape.channels * shape.positions + 3),
        activations(stride * kImages - 3, place),
        gradients(stride * kImages - 3, place),
        factor(kImages, place) {
    for (int64_t image = 0; image < kImages; ++image) {
      const int64_t size = shape.channels * shape.positions;
      const auto a = random_values<T>(size, 1 + static_cast<unsigned>(image));
      const auto g = random_values<T>(size, 5 + static_cast<unsigned>(image));
      std::copy(a.begin(), a.end(), activations.data() + image * stride);
      std::copy(g.begin(), g.end(), gradients.data() + image * stride);
      factor[image] = 0.5f + static_cast<float>(image);
    }
  }
};

struct Maps {
  std::vector<double> weights, coarse;
};

// index(channel, position) is where an element lies in an image.
template <typename T, typename Index>
Maps expected_maps(const Inputs<T>& in, const Shape& shape, CamKind kind, const Index& index) {
  Maps maps;
  for (int64_t image = 0; image < kImages; ++image) {
    const auto a = [&](int64_t c, int64_t p) {
      return double(to_float(in.activations[image * in.stride + index(c, p)]));
    };
    const auto g = [&](int64_t c, int64_t p) {
      return double(to_float(in.gradients[image * in.stride + index(c, p)]));
    };
    std::vector<double> weights;
    for (int64_t c = 0; c < shape.channels; ++c) {
      double mean = 0.0, total = 0.0, weight = 0.0;
      for (int64_t p = 0; p < shape.positions; ++p) {
        mean += g(c, p) / static_cast<double>(shape.positions);
        total += a(c, p);
      }
      for (int64_t p = 0; p < shape.positions; ++p) {
        const double squared = g(c, p) * g(c, p);
        const double denominator = 2.0 * squared + total * squared * g(c, p);
        const bool vanishes = std::fabs(denominator) < double(kClamp) * squared || denominator == 0.0;
        weight += squared / (vanishes ? 1.0 : denominator) * std::max(0.0, g(c, p) * in.factor[image]);
      }
      weights.push_back(kind == CamKind::kGradCam ? std::max(mean, double(kClamp)) : weight);
    }
    maps.weights.insert(maps.weights.end(), weights.begin(), weights.end());
    for (int64_t p = 0; p < shape.positions; ++p) {
      double sum = 0.0;
      for (int64_t c = 0; c < shape.channels; ++c) {
        double weight = weights[static_cast<size_t>(c)];
        if (kind == CamKind::kLayerCam) weight = std::max(g(c, p), double(kClamp));
        if (kind == CamKind::kHiResCam) weight = g(c, p);
        sum += weight * a(c, p);
      }
      maps.coarse.push_back(std::max(sum, 0.0));
    }
  }
  return maps;
}

double difference(const Buffer<float>& given, const std::vector<double>& expected) {
  double most = 0.0, largest = 1.0;
  for (int64_t i = 0; i < given.count(); ++i) {
    const double value = expected[static_cast<size_t>(i)];
    largest = std::max(largest, std::fabs(value));
    most = std::isnan(given[i]) ? kInfinity : std::max(most, std::fabs(given[i] - value));
  }
  return most / largest;
}

// Calls body(kernels, isa, shape, kind, channels_last, place, dtype).
template <typename Body>
void for_each_case(const Body& body) {
  int turn = 0;
  for (const Shape& shape : kShapes) {
    for (const CamKind kind : kKinds) {
      for (const DType dtype : kDTypes) {
        for (const bool channels_last : {false, true}) {
          const Place place = kPlaces[turn++ % 3];
          WHERE("channels", shape.channels, "positions", shape.positions, "kind", static_cast<int>(kind),
                name_of(dtype), channels_last ? "channels last" : "", name_of(place));
          body(shape, kind, dtype, channels_last, place);
        }
      }
    }
  }
}

}  // namespace

TEST(coarse_maps) {
  for_each_case([](const Shape& shape, CamKind kind, DType dtype, bool channels_last, Place place) {
    cpu::with_type(dtype, [&](auto tag) {
      const Inputs<decltype(tag)> in(shape, place);
      const Maps expected = expected_maps(in, shape, kind, [&](int64_t c, int64_t p) {
        return channels_last ? p * shape.channels + c : c * shape.positions + p;
      });
      std::vector<float> first;
      for (const auto& [isa, kernels] : SYNQ_TABLES(cpu::grad_cam_kernels)) {
        WHERE(isa);
        Buffer<float> weights(kImages * shape.channels, place), coarse(kImages * shape.positions, place);
        const cpu::CoarseJob job{in.activations.data(),
                                 in.gradients.data(),
                                 in.factor.data(),
                                 in.stride,
                                 in.stride,
                                 shape.channels,
                                 shape.positions,
                                 channels_last,
                                 kind,
                                 kClamp,
                                 dtype,
                                 by_element(kind) ? nullptr : weights.data(),
                                 coarse.data()};
        kernels.coarse(job, 1);
        CHECK(coarse.is_untouched(0, shape.positions));
        CHECK(weights.is_untouched(0, shape.channels));
        kernels.coarse(job, 0);
        // The denominator of Grad-CAM++ may come close to zero, where rounding errors grow.
        const double tolerance = kind == CamKind::kGradCamPlusPlus ? 1e-2 : 1e-5;
        if (!by_element(kind)) CHECK(difference(weights, expected.weights) < tolerance);
        CHECK(difference(coarse, expected.coarse) < tolerance);
        const std::vector<float> values(coarse.data(), coarse.data() + coarse.count());
        if (first.empty()) first = values;
        CHECK_ALL_EQUAL(values.data(), first.data(), coarse.count());
      }
    });
  });
}

TEST(spread_gradients) {
  for_each_case([](const Shape& shape, CamKind kind, DType dtype, bool channels_last, Place place) {
    cpu::with_type(dtype, [&](auto tag) {
      using T = decltype(tag);
      const int64_t size = shape.channels * shape.positions;
      const Buffer<T> gradients(random_values<T>(kImages * size, 5), place);
      const Buffer<float> weights(random_values<float>(kImages * shape.channels, 6), place);
      const Buffer<float> slope(random_values<float>(kImages * shape.positions, 7), place);
      std::vector<T> expected;
      for (int64_t i = 0; i < kImages * size; ++i) {
        const int64_t image = i / size;
        const int64_t channel = channels_last ? i % shape.channels : i % size / shape.positions;
        const int64_t position = channels_last ? i % size / shape.channels : i % shape.positions;
        float weight = weights[image * shape.channels + channel];
        if (kind == CamKind::kHiResCam) weight = to_float(gradients[i]);
        if (kind == CamKind::kLayerCam) weight = std::max(to_float(gradients[i]), kClamp);
        expected.push_back(from_float<T>(weight * slope[image * shape.positions + position]));
      }
      const int64_t length = channels_last ? shape.channels : shape.positions;
      const int64_t rows = kImages * size / length;
      for (const auto& [isa, kernels] : SYNQ_TABLES(cpu::grad_cam_kernels)) {
        WHERE(isa);
        Buffer<T> result(kImages * size, place);
        const cpu::SpreadJob job{by_element(kind) ? static_cast<const void*>(gradients.data()) : weights.data(),
                                 slope.data(),
                                 result.data(),
                                 shape.channels,
                                 shape.positions,
                                 channels_last,
                                 kind,
                                 kClamp,
                                 dtype};
        for (const Split& split : splits(rows, 1)) {
          result.clear();
          kernels.spread(job, split[0].first, split[0].second);
          CHECK(result.is_untouched(0, split[0].first * length));
          CHECK(result.is_untouched(split[0].second * length, kImages * size));
          for (const auto& [begin, end] : split) kernels.spread(job, begin, end);
          CHECK_ALL_EQUAL(result.data(), expected.data(), kImages * size);
        }
      }
    });
  });
}

TEST(threads_on_disjoint_rows_and_images) {
  const Shape shape{33, 49};
  for (const auto& set : SYNQ_TABLES(cpu::grad_cam_kernels)) {
    for (const bool channels_last : {false, true}) {
      WHERE(set.isa, channels_last ? "channels last" : "");
      const Inputs<float> in(shape, Place::kShifted);
      Buffer<float> weights(kImages * 33), coarse(kImages * 49),
          slope(random_values<float>(kImages * 49, 7), Place::kEnd);
      const cpu::CoarseJob job{in.activations.data(),
                               in.gradients.data(),
                               in.factor.data(),
                               in.stride,
                               in.stride,
                               33,
                               49,
                               channels_last,
                               CamKind::kGradCam,
                               kClamp,
                               DType::kFloat32,
                               weights.data(),
                               coarse.data()};
      in_threads({{0, 1}, {1, 2}}, [&](int64_t image, int64_t) { set.table.coarse(job, image); });
      std::vector<float> expected(coarse.data(), coarse.data() + coarse.count());
      for (int64_t image = 0; image < kImages; ++image) set.table.coarse(job, image);
      CHECK_ALL_EQUAL(coarse.data(), expected.data(), coarse.count());

      const int64_t length = channels_last ? 33 : 49;
      const int64_t rows = kImages * 33 * 49 / length;
      Buffer<float> alone(kImages * 33 * 49), together(kImages * 33 * 49);
      cpu::SpreadJob spread{weights.data(),    slope.data(), alone.data(),   33, 49, channels_last,
                            CamKind::kGradCam, kClamp,       DType::kFloat32};
      set.table.spread(spread, 0, rows);
      spread.result = together.data();
      in_threads({{0, 1}, {1, rows / 2}, {rows / 2, rows}},
                 [&](int64_t begin, int64_t end) { set.table.spread(spread, begin, end); });
      CHECK_ALL_EQUAL(together.data(), alone.data(), together.count());
    }
  }
}
