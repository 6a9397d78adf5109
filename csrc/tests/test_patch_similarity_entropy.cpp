// The CPU kernels of the patch similarity entropy, on every instruction set that can run here.
#include "cpu/patch_similarity_entropy.h"

#include <cmath>

#include "kernels.h"

namespace {

using namespace synq;
using namespace synq::test;

struct Shape {
  int64_t count, channels, points;
};

constexpr Shape kShapes[] = {{1, 1, 2},    {2, 3, 5},    {15, 16, 7},  {16, 15, 8}, {17, 33, 9},
                             {31, 48, 10}, {33, 64, 11}, {49, 20, 64}, {65, 7, 100}};
constexpr int64_t kBatch = 2;
constexpr double kBandwidth = 0.15;

// One run: the job's memory, no larger than the header asks for.
template <typename T>
struct Run {
  Shape shape;
  int64_t padded, width, blocks;
  Buffer<T> tokens;
  Buffer<float> unit, transposed, inverse, similarity, gradient, grid, slope, scratch;
  Buffer<double> sums;

  static int64_t pad(int64_t size) { return (size + cpu::kTokenBlock - 1) / cpu::kTokenBlock * cpu::kTokenBlock; }

  Run(const Shape& shape, Place place, int special = 0)
      : shape(shape),
        padded(pad(shape.count)),
        width(pad(shape.channels)),
        blocks(padded / cpu::kTokenBlock),
        tokens(random_values<T>(kBatch * shape.count * shape.channels, 1, special), place),
        unit(kBatch * padded * width, place),
        transposed(kBatch * shape.channels * padded, place),
        inverse(kBatch * padded, place),
        similarity(kBatch * padded * padded, place),
        gradient(kBatch * shape.count * shape.channels, place),
        grid(shape.points, place),
        slope(random_values<float>(kBatch * shape.points, 2), place),
        scratch(cpu::kTokenBlock * width, place),
        sums(kBatch * blocks * shape.points, place) {
    for (int64_t i = 0; i < shape.points; ++i) {
      grid[i] = -1.0f + 2.0f * static_cast<float>(i) / static_cast<float>(shape.points - 1);
    }
  }

  int64_t tasks() const { return kBatch * blocks; }

  cpu::SimilarityJob job(DType dtype) {
    cpu::SimilarityJob job{};
    job.tokens = tokens.data();
    job.unit = unit.data();
    job.transposed = transposed.data();
    job.inverse = inverse.data();
    job.similarity = similarity.data();
    job.gradient = gradient.data();
    job.grid = grid.data();
    job.slope = slope.data();
    job.exponent = static_cast<float>(-0.5 / std::log(2.0) / (kBandwidth * kBandwidth));
    job.count = shape.count;
    job.channels = shape.channels;
    job.padded = padded;
    job.width = width;
    job.points = shape.points;
    job.dtype = dtype;
    return job;
  }

  double value(int64_t image, int64_t token, int64_t channel) const {
    return to_float(tokens[(image * shape.count + token) * shape.channels + channel]);
  }
  double norm(int64_t image, int64_t token) const {
    double sum = 0.0;
    for (int64_t c = 0; c < shape.channels; ++c) sum += value(image, token, c) * value(image, token, c);
    return std::sqrt(sum);
  }
  // (count, count), of one image.
  std::vector<double> cosines(int64_t image) const {
    std::vector<double> norms, result;
    for (int64_t a = 0; a < shape.count; ++a) norms.push_back(norm(image, a));
    for (int64_t a = 0; a < shape.count; ++a) {
      for (int64_t b = 0; b < shape.count; ++b) {
        double sum = 0.0;
        for (int64_t c = 0; c < shape.channels; ++c) sum += value(image, a, c) * value(image, b, c);
        result.push_back(sum / norms[static_cast<size_t>(a)] / norms[static_cast<size_t>(b)]);
      }
    }
    return result;
  }
};

// All stages, each over the parts of `split` (of tasks); begin and end may be anything that for_each gives.
template <typename T, typename Each>
void run_stages(const cpu::PatchSimilarityKernels& kernels, Run<T>& run, DType dtype, const Each& each) {
  const cpu::SimilarityJob job = run.job(dtype);
  each([&](int64_t begin, int64_t end) { kernels.normalize(job, begin, end); });
  each([&](int64_t begin, int64_t end) {
    float low = kInfinity, high = -kInfinity;
    kernels.similarities(job, begin, end, &low, &high);
  });
  each([&](int64_t begin, int64_t end) { kernels.densities(job, begin, end, run.sums.data()); });
  each([&](int64_t begin, int64_t end) { kernels.slopes(job, begin, end); });
  each([&](int64_t begin, int64_t end) {
    Buffer<float> scratch(cpu::kTokenBlock * run.width);
    kernels.gradients(job, begin, end, scratch.data());
  });
}

template <typename T>
void check_densities(const Run<T>& run) {
  for (int64_t image = 0; image < kBatch; ++image) {
    const std::vector<double> cosines = run.cosines(image);
    for (int64_t point = 0; point < run.shape.points; ++point) {
      double expected = 0.0, given = 0.0;
      for (const double s : cosines) {
        const double d = (s - run.grid[point]) / kBandwidth;
        expected += std::exp(-0.5 * d * d);
      }
      for (int64_t block = 0; block < run.blocks; ++block) {
        given += run.sums[(image * run.blocks + block) * run.shape.points + point];
      }
      WHERE("image", image, "point", point, "is", given, "expected", expected);
      CHECK(std::fabs(given - expected) < 1e-4 * std::max(1.0, expected));
    }
  }
}

template <typename T>
void check_gradients(const Run<T>& run) {
  const auto slope_at = [&](int64_t image, double s) {
    double sum = 0.0;
    for (int64_t point = 0; point < run.shape.points; ++point) {
      const double d = s - run.grid[point];
      sum += run.slope[image * run.shape.points + point] * d * std::exp(-0.5 * d * d / kBandwidth / kBandwidth);
    }
    return sum;
  };
  for (int64_t image = 0; image < kBatch; ++image) {
    const std::vector<double> cosines = run.cosines(image);
    for (int64_t token = 0; token < run.shape.count; token += 3) {
      std::vector<double> row(static_cast<size_t>(run.shape.channels));
      double along = 0.0;
      for (int64_t other = 0; other < run.shape.count; ++other) {
        const double slope = slope_at(image, cosines[static_cast<size_t>(token * run.shape.count + other)]);
        for (size_t c = 0; c < row.size(); ++c) {
          row[c] += slope * run.value(image, other, static_cast<int64_t>(c)) / run.norm(image, other);
        }
      }
      const double norm = run.norm(image, token);
      for (size_t c = 0; c < row.size(); ++c) along += row[c] * run.value(image, token, static_cast<int64_t>(c)) / norm;
      for (size_t c = 0; c < row.size(); ++c) {
        const int64_t channel = static_cast<int64_t>(c);
        const double expected = (row[c] - along * run.value(image, token, channel) / norm) / norm;
        const double given = run.gradient[(image * run.shape.count + token) * run.shape.channels + channel];
        WHERE("image", image, "token", token, "channel", c, "is", given, "expected", expected);
        CHECK(std::fabs(given - expected) < 1e-3 * std::max(1.0, (std::fabs(along) + 1.0) / norm));
      }
    }
  }
}

}  // namespace

TEST(entropy_and_gradients) {
  int turn = 0;
  for (const Shape& shape : kShapes) {
    for (const DType dtype : kDTypes) {
      const Place place = kPlaces[turn++ % 3];
      cpu::with_type(dtype, [&](auto tag) {
        for (const auto& [isa, kernels] : SYNQ_TABLES(cpu::patch_similarity_kernels)) {
          WHERE(isa, name_of(dtype), "tokens", shape.count, "channels", shape.channels, "points", shape.points,
                name_of(place));
          Run<decltype(tag)> whole(shape, place);
          run_stages(kernels, whole, dtype, [&](const auto& stage) { stage(int64_t{0}, whole.tasks()); });
          check_densities(whole);
          check_gradients(whole);
          for (const Split& split : splits(whole.tasks(), 1)) {
            Run<decltype(tag)> parts(shape, place);
            run_stages(kernels, parts, dtype, [&](const auto& stage) {
              for (const auto& [begin, end] : split) stage(begin, end);
            });
            CHECK_ALL_EQUAL(parts.sums.data(), whole.sums.data(), whole.sums.count());
            CHECK_ALL_EQUAL(parts.gradient.data(), whole.gradient.data(), whole.gradient.count());
          }
        }
      });
    }
  }
}

TEST(extrema_of_similarities) {
  for (const Shape& shape : kShapes) {
    for (const auto& [isa, kernels] : SYNQ_TABLES(cpu::patch_similarity_kernels)) {
      WHERE(isa, "tokens", shape.count, "channels", shape.channels);
      Run<float> run(shape, Place::kEnd);
      const cpu::SimilarityJob job = run.job(DType::kFloat32);
      float low = kInfinity, high = -kInfinity;
      kernels.normalize(job, 0, run.tasks());
      kernels.similarities(job, 0, run.tasks(), &low, &high);
      double least = 1.0;
      for (int64_t image = 0; image < kBatch; ++image) {
        for (const double s : run.cosines(image)) least = std::min(least, s);
      }
      CHECK(std::fabs(low - least) < 1e-5);
      CHECK(std::fabs(high - 1.0) < 1e-5);
    }
  }
}

TEST(special_values_stay_inside_their_memory) {
  for (const Shape& shape : kShapes) {
    for (const auto& [isa, kernels] : SYNQ_TABLES(cpu::patch_similarity_kernels)) {
      WHERE(isa, "tokens", shape.count, "channels", shape.channels, "points", shape.points);
      Run<float> run(shape, Place::kEnd, 4);
      run_stages(kernels, run, DType::kFloat32, [&](const auto& stage) { stage(int64_t{0}, run.tasks()); });
    }
  }
}

TEST(threads_on_disjoint_tasks) {
  for (const auto& set : SYNQ_TABLES(cpu::patch_similarity_kernels)) {
    WHERE(set.isa);
    const Shape shape{65, 33, 20};
    Run<float> alone(shape, Place::kShifted), together(shape, Place::kShifted);
    run_stages(set.table, alone, DType::kFloat32, [&](const auto& stage) { stage(int64_t{0}, alone.tasks()); });
    run_stages(set.table, together, DType::kFloat32,
               [&](const auto& stage) { in_threads({{0, 1}, {1, 4}, {4, 7}, {7, together.tasks()}}, stage); });
    CHECK_ALL_EQUAL(together.gradient.data(), alone.gradient.data(), alone.gradient.count());
  }
}
