// The CPU kernels that resize and stretch a coarse map, on every instruction set that can run here; and the resizing of
// cam.h, which CPU and CUDA kernels share.
#include "cpu/cam_map.h"

#include <cmath>

#include "kernels.h"

namespace {

using namespace synq;
using namespace synq::test;

struct Size {
  int64_t height, width, map_height, map_width;
};

constexpr Size kSizes[] = {{1, 1, 1, 1},   {1, 1, 5, 7},    {2, 3, 2, 3},   {7, 7, 32, 32}, {7, 5, 33, 31},
                           {4, 4, 17, 16}, {3, 8, 8, 3},    {5, 6, 48, 15}, {8, 8, 5, 5},   {9, 13, 1, 1},
                           {2, 2, 64, 65}, {14, 14, 7, 49}, {1, 9, 3, 80},  {9, 1, 80, 3},  {6, 6, 6, 48}};
constexpr int64_t kImages = 2;
constexpr float kEps = 1e-10f;

struct OwnedAxis {
  Buffer<float> weights;
  Buffer<int64_t> starts;
  cpu::Axis axis;

  OwnedAxis(int64_t positions, int64_t pixels, Place place)
      : weights(pixels + cpu::kAxisPadding, place),
        starts(positions + 1, place),
        axis{positions, pixels, weights.data(), starts.data()} {
    cpu::fill_axis(positions, pixels, weights.data(), starts.data());
  }
};

struct Case {
  Size size;
  OwnedAxis rows, columns;
  Buffer<float> coarse;

  Case(const Size& size, Place place)
      : size(size),
        rows(size.height, size.map_height, place),
        columns(size.width, size.map_width, place),
        coarse(random_values<float>(kImages * size.height * size.width, 3), place) {
    // As after a ReLU.
    for (int64_t i = 0; i < coarse.count(); ++i) coarse[i] = std::max(coarse[i] + 0.5f, 0.0f);
  }
  int64_t pixels() const { return size.map_height * size.map_width; }
  int64_t positions() const { return size.height * size.width; }

  cpu::MapJob job() const {
    cpu::MapJob job{};
    job.coarse = coarse.data();
    job.rows = rows.axis;
    job.columns = columns.axis;
    job.eps = kEps;
    job.factor = 0.125;
    return job;
  }

  // The map by its formula, in double; all zero where it is flat.
  std::vector<double> map(int64_t image) const {
    const auto sample = [](double position, int64_t count, int64_t& left, double& weight) {
      position = std::min(std::max(position, 0.0), static_cast<double>(count - 1));
      left = std::min(static_cast<int64_t>(position), std::max<int64_t>(count - 2, 0));
      weight = position - static_cast<double>(left);
    };
    const auto value = [&](int64_t y, int64_t x) {
      return double(
          coarse[image * positions() + std::min(y, size.height - 1) * size.width + std::min(x, size.width - 1)]);
    };
    std::vector<double> result;
    for (int64_t y = 0; y < size.map_height; ++y) {
      for (int64_t x = 0; x < size.map_width; ++x) {
        int64_t top, left;
        double down, right;
        sample((double(y) + 0.5) * double(size.height) / double(size.map_height) - 0.5, size.height, top, down);
        sample((double(x) + 0.5) * double(size.width) / double(size.map_width) - 0.5, size.width, left, right);
        const double upper = value(top, left) * (1 - right) + value(top, left + 1) * right;
        const double lower = value(top + 1, left) * (1 - right) + value(top + 1, left + 1) * right;
        result.push_back(upper * (1 - down) + lower * down);
      }
    }
    const double low = *std::min_element(result.begin(), result.end());
    const double peak = *std::max_element(result.begin(), result.end());
    const bool flat = peak - low < 1e-6 * peak || peak == 0.0;
    for (double& pixel : result) pixel = flat ? 0.0 : (pixel - low) / (peak - low + double(kEps));
    return result;
  }
};

template <typename Body>
void for_each_case(const Body& body) {
  for (const Size& size : kSizes) {
    for (const Place place : kPlaces) {
      const Case c(size, place);
      WHERE(size.height, size.width, "to", size.map_height, size.map_width, name_of(place));
      body(c, place);
    }
  }
}

}  // namespace

TEST(taps_interpolate_linear_functions) {
  for (int64_t small = 1; small <= 20; ++small) {
    for (int64_t large = 1; large <= 70; ++large) {
      for (int64_t pixel = 0; pixel < large; ++pixel) {
        WHERE("pixel", pixel, "small", small, "large", large);
        const Tap tap = make_tap(pixel, small, large);
        const double exact = (double(pixel) + 0.5) * double(small) / double(large) - 0.5;
        const double inside = std::min(std::max(exact, 0.0), double(small - 1));
        CHECK(std::fabs(tap.index + double(tap.weight) - inside) < 1e-6);
        CHECK(tap.weight >= 0.0f && tap.weight < 1.0f);
        CHECK(tap.index + (tap.weight > 0.0f ? 1 : 0) < small);
        const int64_t first = first_pixel(tap.index, small, large);
        CHECK(first <= pixel && make_tap(first, small, large).index == tap.index);
        CHECK(first == 0 || make_tap(first - 1, small, large).index < tap.index);
      }
    }
  }
}

TEST(axes_are_taps_by_position) {
  for (int64_t positions = 1; positions <= 20; ++positions) {
    for (int64_t pixels = 1; pixels <= 70; ++pixels) {
      const OwnedAxis axis(positions, pixels, Place::kEnd);
      WHERE(positions, "to", pixels);
      CHECK_EQUAL(axis.starts[0], 0);
      CHECK_EQUAL(axis.starts[positions], pixels);
      for (int64_t position = 0; position < positions; ++position) {
        for (int64_t pixel = axis.starts[position]; pixel < axis.starts[position + 1]; ++pixel) {
          const Tap tap = make_tap(pixel, positions, pixels);
          CHECK_EQUAL(tap.index, position);
          CHECK_EQUAL(axis.weights[pixel], tap.weight);
        }
      }
      for (int64_t i = pixels; i < axis.weights.count(); ++i) CHECK_EQUAL(axis.weights[i], 0.0f);
    }
  }
}

TEST(maps) {
  for_each_case([](const Case& c, Place place) {
    for (const auto& [isa, kernels] : SYNQ_TABLES(cpu::cam_map_kernels)) {
      WHERE(isa);
      Buffer<float> map(kImages * c.pixels(), place);
      cpu::MapJob job = c.job();
      job.map = map.data();
      Buffer<float> scratch(kernels.scratch(job), place);
      kernels.map(job, 1, scratch.data());
      CHECK(map.is_untouched(0, c.pixels()));
      scratch.clear();
      kernels.map(job, 0, scratch.data());
      for (int64_t image = 0; image < kImages; ++image) {
        const std::vector<double> expected = c.map(image);
        for (int64_t i = 0; i < c.pixels(); ++i) {
          WHERE("image", image, "pixel", i, "is", map[image * c.pixels() + i]);
          CHECK(std::fabs(map[image * c.pixels() + i] - expected[static_cast<size_t>(i)]) < 1e-5);
        }
      }
    }
  });
}

TEST(losses_and_gradients) {
  for_each_case([](const Case& c, Place place) {
    for (const DType dtype : kDTypes) {
      cpu::with_type(dtype, [&](auto tag) {
        using T = decltype(tag);
        const Buffer<T> other(random_values<T>(kImages * c.pixels(), 8), place);
        std::vector<float> first;
        for (const auto& [isa, kernels] : SYNQ_TABLES(cpu::cam_map_kernels)) {
          WHERE(isa, name_of(dtype));
          Buffer<float> slope(kImages * c.positions(), place), loss_slope(kImages * c.positions(), place);
          cpu::MapJob job = c.job();
          job.other = other.data();
          job.dtype = dtype;
          Buffer<float> scratch(kernels.scratch(job), place);
          for (int64_t image = kImages - 1; image >= 0; --image) {
            const std::vector<double> map = c.map(image);
            double expected = 0.0;
            for (int64_t i = 0; i < c.pixels(); ++i) {
              const double d = map[static_cast<size_t>(i)] - to_float(other[image * c.pixels() + i]);
              expected += 0.125 * d * d;
            }
            scratch.clear();
            job.slope = nullptr;
            const double value = kernels.loss(job, image, scratch.data());
            CHECK(std::fabs(value - expected) <= 1e-4 * expected);
            scratch.clear();
            job.slope = loss_slope.data();
            CHECK_EQUAL(kernels.loss(job, image, scratch.data()), value);
            scratch.clear();
            job.slope = slope.data();
            kernels.backward(job, image, scratch.data());
            CHECK(slope.is_untouched(0, image * c.positions()));
            CHECK(loss_slope.is_untouched(0, image * c.positions()));
          }
          std::vector<float> values(slope.data(), slope.data() + slope.count());
          values.insert(values.end(), loss_slope.data(), loss_slope.data() + slope.count());
          for (const float gradient : values) CHECK(std::isfinite(gradient));
          if (first.empty()) first = values;
          CHECK_ALL_EQUAL(values.data(), first.data(), 2 * slope.count());
        }
      });
    }
  });
}

TEST(special_values_stay_inside_their_memory) {
  for_each_case([](const Case& c, Place place) {
    Case special(c.size, place);
    const auto values = random_values<float>(special.coarse.count(), 9, 3);
    std::copy(values.begin(), values.end(), special.coarse.data());
    const Buffer<float> other(random_values<float>(kImages * c.pixels(), 8, 5), place);
    Buffer<float> map(kImages * c.pixels(), place), slope(kImages * c.positions(), place);
    for (const auto& [isa, kernels] : SYNQ_TABLES(cpu::cam_map_kernels)) {
      WHERE(isa);
      cpu::MapJob job = special.job();
      job.map = map.data();
      job.other = other.data();
      job.slope = slope.data();
      Buffer<float> scratch(kernels.scratch(job), place);
      for (int64_t image = 0; image < kImages; ++image) {
        kernels.map(job, image, scratch.data());
        kernels.backward(job, image, scratch.data());
        kernels.loss(job, image, scratch.data());
      }
    }
  });
}

TEST(threads_on_disjoint_images) {
  for (const auto& set : SYNQ_TABLES(cpu::cam_map_kernels)) {
    WHERE(set.isa);
    const Case c({7, 5, 33, 31}, Place::kShifted);
    const Buffer<float> other(random_values<float>(kImages * c.pixels(), 8), Place::kShifted);
    Buffer<float> alone(kImages * c.positions()), together(kImages * c.positions());
    const auto run = [&](Buffer<float>& slope, int64_t image) {
      cpu::MapJob job = c.job();
      job.other = other.data();
      job.slope = slope.data();
      std::vector<float> scratch(static_cast<size_t>(set.table.scratch(job)));
      set.table.loss(job, image, scratch.data());
    };
    for (int64_t image = 0; image < kImages; ++image) run(alone, image);
    in_threads({{0, 1}, {1, 2}}, [&](int64_t image, int64_t) { run(together, image); });
    CHECK_ALL_EQUAL(together.data(), alone.data(), alone.count());
  }
}
