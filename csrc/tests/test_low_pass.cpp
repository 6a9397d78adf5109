// The CPU kernels of the low-pass filters, on every instruction set that can run here, with random matrices.
#include "cpu/low_pass.h"

#include <cmath>
#include <memory>

#include "kernels.h"

namespace {

using namespace synq;
using namespace synq::test;

using Matrix = std::vector<double>;  // (size, size), row by row
using Line = std::vector<double>;

struct Size {
  int64_t n, levels;
};

constexpr Size kSizes[] = {{1, 0}, {2, 0}, {2, 1},  {3, 0},  {4, 2},  {5, 0},  {6, 1},
                           {7, 0}, {8, 3}, {12, 2}, {13, 0}, {14, 1}, {20, 2}, {32, 3}};
// (outer, inner): lines side by side, one after the other, and few side by side.
constexpr int64_t kLines[][2] = {{1, 1},  {1, 3},  {2, 17}, {3, 1},  {5, 3},  {17, 1}, {2, 8},
                                 {33, 1}, {35, 2}, {2, 33}, {1, 67}, {7, 15}, {3, 16}, {2, 32}};
constexpr cpu::FilterStep kSteps[] = {cpu::FilterStep::kFilter, cpu::FilterStep::kAnalyse, cpu::FilterStep::kMask,
                                      cpu::FilterStep::kSynthesize};

// One axis: the blocks that folding leaves, their matrices, and these packed as the kernels of one set want them.
struct Axis {
  Size size;
  std::vector<int64_t> begins;
  std::vector<Matrix> filters, analyses, syntheses;
  std::vector<std::unique_ptr<Buffer<float>>> packed;
  std::vector<cpu::FilterSegment> segments;

  Axis(Size wanted, int64_t rows, Place place) : size(wanted) {
    // Each halving leaves its even and its odd values apart; what is left at last is apart from them.
    for (int64_t length = size.n, level = 0; level < size.levels; ++level, length /= 2) begins.push_back(length / 2);
    begins.push_back(0);
    std::sort(begins.begin(), begins.end());
    begins.push_back(size.n);
    for (size_t s = 0; s + 1 < begins.size(); ++s) {
      const int64_t height = begins[s + 1] - begins[s];
      cpu::FilterSegment segment{begins[s], height, nullptr, nullptr, nullptr};
      segment.filter = add(filters, height, rows, place, 3 * s);
      segment.analysis = add(analyses, height, rows, place, 3 * s + 1);
      segment.synthesis = add(syntheses, height, rows, place, 3 * s + 2);
      segments.push_back(segment);
    }
  }

  cpu::FilterAxis view() const { return {size.n, size.levels, static_cast<int64_t>(segments.size()), segments.data()}; }

  void multiply(const std::vector<Matrix>& matrices, Line& line) const {
    const Line before = line;
    for (size_t s = 0; s + 1 < begins.size(); ++s) {
      const int64_t begin = begins[s], height = begins[s + 1] - begin;
      for (int64_t row = 0; row < height; ++row) {
        double sum = 0.0;
        for (int64_t k = 0; k < height; ++k) {
          sum += matrices[s][static_cast<size_t>(row * height + k)] * before[static_cast<size_t>(begin + k)];
        }
        line[static_cast<size_t>(begin + row)] = sum;
      }
    }
  }

 private:
  const float* add(std::vector<Matrix>& matrices, int64_t height, int64_t rows, Place place, size_t seed) {
    const std::vector<float> values = random_values<float>(height * height, static_cast<unsigned>(seed + 11));
    matrices.emplace_back(values.begin(), values.end());
    packed.push_back(std::make_unique<Buffer<float>>(height * height, place));
    float* next = packed.back()->data();
    const int64_t blocks = cpu::block_count(height, rows);
    for (int64_t block = 0, first = 0; block < blocks; ++block) {
      const int64_t count = cpu::block_height(height, blocks, block);
      for (int64_t k = 0; k < height; ++k) {
        for (int64_t row = first; row < first + count; ++row) *next++ = values[static_cast<size_t>(row * height + k)];
      }
      first += count;
    }
    return packed.back()->data();
  }
};

void fold_ends(Line& line, size_t length) {
  for (size_t i = 1; 2 * i < length; ++i) {
    const double a = line[i], b = line[length - i];
    line[i] = a + b;
    line[length - i] = a - b;
  }
}

void fold(Line& line, int64_t levels) {
  size_t length = line.size();
  for (; levels > 0; --levels, length /= 2) {
    const Line x = line;
    const size_t h = length / 2;
    for (size_t i = 0; i < h; ++i) {
      const double s = x[i] - x[i + h], mirrored = i == 0 ? 0.0 : x[h - i] - x[length - i];
      line[i] = x[i] + x[i + h];
      if (i == 0 || 2 * i == h) line[h + i] = s;
      if (i > 0 && 2 * i < h) {
        line[h + i] = s - mirrored;
        line[length - i] = s + mirrored;
      }
    }
  }
  fold_ends(line, length);
}

void unfold(Line& line, int64_t levels) {
  fold_ends(line, line.size() >> levels);
  for (; levels > 0; --levels) {
    const Line x = line;
    const size_t length = line.size() >> (levels - 1), h = length / 2;
    for (size_t i = 0; i < h; ++i) {
      double s = x[h + i];
      if (i > 0 && 2 * i < h) s = x[h + i] + x[length - i];
      if (2 * i > h) s = x[h + i] - x[length - i];
      line[i] = x[i] + s;
      line[i + h] = x[i] - s;
    }
  }
}

// Gains of the coefficients (row of this axis, column of the other), periodic in the column.
struct Mask {
  std::vector<double> gains;
  Buffer<float> memory;
  int64_t period;

  Mask(int64_t n, int64_t period, int64_t tile, Place place) : memory(n * (period + tile), place), period(period) {
    const std::vector<float> values = random_values<float>(n * period, 7);
    gains.assign(values.begin(), values.end());
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t k = 0; k < period + tile; ++k) {
        memory[i * (period + tile) + k] = values[static_cast<size_t>(i * period + k % period)];
      }
    }
  }
};

void filter_line(const Axis& axis, cpu::FilterStep step, const Mask& mask, int64_t outer, Line& line) {
  if (step != cpu::FilterStep::kSynthesize) fold(line, axis.size.levels);
  if (step == cpu::FilterStep::kFilter) axis.multiply(axis.filters, line);
  if (step == cpu::FilterStep::kAnalyse || step == cpu::FilterStep::kMask) axis.multiply(axis.analyses, line);
  if (step == cpu::FilterStep::kMask) {
    for (size_t i = 0; i < line.size(); ++i) {
      line[i] *= mask.gains[i * static_cast<size_t>(mask.period) + static_cast<size_t>(outer % mask.period)];
    }
  }
  if (step == cpu::FilterStep::kSynthesize || step == cpu::FilterStep::kMask) axis.multiply(axis.syntheses, line);
  if (step != cpu::FilterStep::kAnalyse) unfold(line, axis.size.levels);
}

template <typename T>
std::vector<double> filter_all(const Axis& axis, cpu::FilterStep step, const Mask& mask, const Buffer<T>& x,
                               int64_t outer, int64_t inner) {
  const int64_t n = axis.size.n;
  std::vector<double> result(static_cast<size_t>(x.count()));
  for (int64_t o = 0; o < outer; ++o) {
    for (int64_t k = 0; k < inner; ++k) {
      Line line(static_cast<size_t>(n));
      for (int64_t i = 0; i < n; ++i) line[static_cast<size_t>(i)] = to_float(x[(o * n + i) * inner + k]);
      filter_line(axis, step, mask, o, line);
      for (int64_t i = 0; i < n; ++i) {
        result[static_cast<size_t>((o * n + i) * inner + k)] = line[static_cast<size_t>(i)];
      }
    }
  }
  return result;
}

template <typename T>
void check_close(const Buffer<T>& given, const std::vector<double>& expected, double unit) {
  double largest = 1.0;
  for (const double value : expected) largest = std::max(largest, std::fabs(value));
  for (int64_t i = 0; i < given.count(); ++i) {
    const double value = expected[static_cast<size_t>(i)];
    if (std::fabs(to_float(given[i]) - value) <= unit * largest) continue;
    WHERE("element", i, "is", to_float(given[i]), "expected", value);
    CHECK(std::fabs(to_float(given[i]) - value) <= unit * largest);
    return;
  }
}

double unit_of(DType dtype) { return dtype == DType::kFloat32 ? 1e-5 : dtype == DType::kFloat16 ? 1e-3 : 8e-3; }

// Calls body(kernels, axis, pass without memory, mask) for every size, layout and step.
template <typename Body>
void for_each_pass(const Body& body) {
  int turn = 0;
  for (const auto& [isa, kernels] : SYNQ_TABLES(cpu::low_pass_kernels)) {
    for (const Size& size : kSizes) {
      const Place place = kPlaces[turn++ % 3];
      const Axis axis(size, kernels.rows, place);
      for (const auto& [outer, inner] : kLines) {
        const int64_t periods[] = {1, 3, outer};
        const Mask mask(size.n, periods[turn++ % 3], kernels.tile, place);
        for (const cpu::FilterStep step : kSteps) {
          WHERE(isa, "n", size.n, "levels", size.levels, "outer", outer, "inner", inner, "step", static_cast<int>(step),
                name_of(place));
          cpu::FilterPass pass{};
          pass.outer = outer;
          pass.inner = inner;
          pass.axis = axis.view();
          pass.step = step;
          pass.mask = mask.memory.data();
          pass.mask_period = mask.period;
          body(kernels, axis, pass, mask, place);
        }
      }
    }
  }
}

}  // namespace

TEST(passes_equal_the_formulas) {
  const DType types[][2] = {{DType::kFloat32, DType::kFloat32},
                            {DType::kFloat16, DType::kFloat32},
                            {DType::kFloat32, DType::kBFloat16},
                            {DType::kBFloat16, DType::kFloat16}};
  int turn = 0;
  for_each_pass([&](const auto& kernels, const Axis& axis, cpu::FilterPass pass, const Mask& mask, Place place) {
    const auto& [x_type, y_type] = types[turn++ % 4];
    pass.x_type = x_type;
    pass.y_type = y_type;
    const int64_t count = pass.outer * pass.axis.n * pass.inner;
    // Aligned, as the kernels ask for, and no larger than they ask for.
    Buffer<float> scratch(kernels.scratch(pass), Place::kStart);
    cpu::with_type(x_type, [&](auto x_tag) {
      cpu::with_type(pass.y_type, [&](auto y_tag) {
        const Buffer<decltype(x_tag)> x(random_values<decltype(x_tag)>(count, 4), place);
        Buffer<decltype(y_tag)> y(count, place);
        pass.x = x.data();
        pass.y = y.data();
        const std::vector<double> expected = filter_all(axis, pass.step, mask, x, pass.outer, pass.inner);
        for (const Split& split : splits(kernels.tiles(pass), 1)) {
          y.clear();
          for (const auto& [begin, end] : split) {
            scratch.clear();
            kernels.run(pass, scratch.data(), begin, end);
          }
          check_close(y, expected, unit_of(pass.y_type));
        }
      });
    });
  });
}

TEST(passes_in_place) {
  for_each_pass([&](const auto& kernels, const Axis&, cpu::FilterPass pass, const Mask&, Place place) {
    const int64_t count = pass.outer * pass.axis.n * pass.inner;
    Buffer<float> scratch(kernels.scratch(pass), Place::kStart);
    Buffer<float> x(random_values<float>(count, 4), place), y(count, place);
    pass.x = x.data();
    pass.y = y.data();
    kernels.run(pass, scratch.data(), 0, kernels.tiles(pass));
    pass.y = x.data();
    kernels.run(pass, scratch.data(), 0, kernels.tiles(pass));
    CHECK_ALL_EQUAL(x.data(), y.data(), count);
  });
}

TEST(threads_on_disjoint_tiles) {
  for (const auto& set : SYNQ_TABLES(cpu::low_pass_kernels)) {
    const Axis axis({12, 2}, set.table.rows, Place::kShifted);
    for (const int64_t inner : {1, 3, 150}) {
      WHERE(set.isa, "inner", inner);
      cpu::FilterPass pass{};
      pass.outer = inner == 150 ? 2 : 150;
      pass.inner = inner;
      pass.axis = axis.view();
      pass.step = cpu::FilterStep::kFilter;
      const int64_t count = pass.outer * 12 * inner;
      const Buffer<float> x(random_values<float>(count, 4), Place::kShifted);
      Buffer<float> alone(count), together(count);
      const auto run = [&](const cpu::FilterPass& pass, int64_t begin, int64_t end) {
        Buffer<float> scratch(set.table.scratch(pass), Place::kStart);
        set.table.run(pass, scratch.data(), begin, end);
      };
      pass.x = x.data();
      pass.y = alone.data();
      const int64_t tiles = set.table.tiles(pass);
      run(pass, 0, tiles);
      pass.y = together.data();
      in_threads({{0, 1}, {1, tiles / 2}, {tiles / 2, tiles}},
                 [&](int64_t begin, int64_t end) { run(pass, begin, end); });
      CHECK_ALL_EQUAL(together.data(), alone.data(), count);
    }
  }
}
