#include "ops/low_pass_plan.h"

#include <cmath>

#include "ops/lru_cache.h"

namespace synq {
namespace {

constexpr int64_t kShortest = 16;  // lines this short are not halved again

constexpr size_t kPlans = 16;  // of up to 10 MB, 0.1 MB for 224 x 224

// The folded values of one symmetry, in the order of csrc/cpu/fold.h, and the waves that have it.
struct Symmetry {
  int64_t begin;
  bool odd;
  std::vector<int64_t> places;       // the index in the line that each value stands for
  std::vector<int64_t> frequencies;  // cycles per line of n, as many as values
};

std::vector<Symmetry> symmetries(int64_t n, int64_t& levels) {
  std::vector<Symmetry> result;
  int64_t step = 1;
  int64_t length = n;
  levels = 0;
  for (; length % 2 == 0 && length > kShortest; length /= 2, step *= 2, ++levels) {
    const int64_t h = length / 2;
    Symmetry even{h, false, {}, {}};
    Symmetry odd{h + (h + 1) / 2, true, {}, {}};
    for (int64_t i = 0; 2 * i < h; ++i) even.places.push_back(i);
    for (int64_t i = h / 2; i > 0; --i) odd.places.push_back(i);
    for (int64_t k = 1; k <= h; k += 2) even.frequencies.push_back(k * step);
    for (int64_t k = 1; k < h; k += 2) odd.frequencies.push_back(k * step);
    result.push_back(std::move(even));
    result.push_back(std::move(odd));
  }
  Symmetry even{0, false, {}, {}};
  Symmetry odd{length / 2 + 1, true, {}, {}};
  for (int64_t i = 0; 2 * i <= length; ++i) {
    even.places.push_back(i);
    even.frequencies.push_back(i * step);
  }
  for (int64_t i = (length - 1) / 2; i > 0; --i) odd.places.push_back(i);
  for (int64_t k = 1; 2 * k < length; ++k) odd.frequencies.push_back(k * step);
  result.push_back(std::move(even));
  result.push_back(std::move(odd));
  return result;
}

using Matrix = std::vector<double>;  // square, by rows

// Appends blocks of rows, each stored column by column.
void pack(const Matrix& matrix, int64_t size, int64_t rows, std::vector<float>& storage) {
  const int64_t blocks = cpu::block_count(size, rows);
  int64_t first = 0;
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t height = cpu::block_height(size, blocks, block);
    for (int64_t column = 0; column < size; ++column) {
      for (int64_t row = first; row < first + height; ++row) {
        storage.push_back(static_cast<float>(matrix[row * size + column]));
      }
    }
    first += height;
  }
}

// filter = synthesis * gains * analysis.
Matrix combine(const Matrix& synthesis, const std::vector<double>& gains, const Matrix& analysis, int64_t size) {
  Matrix result(size * size);
  for (int64_t i = 0; i < size; ++i) {
    for (int64_t k = 0; k < size; ++k) {
      const double weight = synthesis[i * size + k] * gains[k];
      for (int64_t j = 0; j < size; ++j) result[i * size + j] += weight * analysis[k * size + j];
    }
  }
  return result;
}

struct PlanKey {
  int64_t height;
  int64_t width;
  Response response;

  bool operator==(const PlanKey& other) const {
    return height == other.height && width == other.width && response == other.response;
  }
};

}  // namespace

AxisPlan::AxisPlan(int64_t n, const Response& response, int64_t rows) : n_(n), frequencies_(n) {
  std::vector<double> wave(n);  // cosine
  for (int64_t i = 0; i < n; ++i) wave[i] = std::cos(2 * M_PI * static_cast<double>(i) / static_cast<double>(n));
  std::vector<double> sine(n);
  for (int64_t i = 0; i < n; ++i) sine[i] = std::sin(2 * M_PI * static_cast<double>(i) / static_cast<double>(n));

  std::vector<std::ptrdiff_t> offsets;
  for (const Symmetry& symmetry : symmetries(n, levels_)) {
    const int64_t size = static_cast<int64_t>(symmetry.places.size());
    if (size == 0) continue;
    Matrix analysis(size * size);
    Matrix synthesis(size * size);
    std::vector<double> gains(size);
    for (int64_t k = 0; k < size; ++k) {
      const int64_t frequency = symmetry.frequencies[k];
      frequencies_[symmetry.begin + k] = frequency;
      gains[k] = response.gain(static_cast<double>(frequency * frequency));
      const double weight = (frequency == 0 || 2 * frequency == n ? 1.0 : 2.0) / static_cast<double>(n);
      for (int64_t i = 0; i < size; ++i) {
        const int64_t angle = frequency * symmetry.places[i] % n;
        const double value = symmetry.odd ? sine[angle] : wave[angle];
        analysis[k * size + i] = value;
        synthesis[i * size + k] = value * weight;
      }
    }
    segments_.push_back({symmetry.begin, size, nullptr, nullptr, nullptr});
    offsets.push_back(static_cast<std::ptrdiff_t>(storage_.size()));
    if (response.is_separable()) {
      pack(combine(synthesis, gains, analysis, size), size, rows, storage_);
    } else {
      pack(analysis, size, rows, storage_);
      pack(synthesis, size, rows, storage_);
    }
  }
  for (size_t s = 0; s < segments_.size(); ++s) {
    cpu::FilterSegment& segment = segments_[s];
    const float* matrices = storage_.data() + offsets[s];
    if (response.is_separable()) {
      segment.filter = matrices;
    } else {
      segment.analysis = matrices;
      segment.synthesis = matrices + segment.size * segment.size;
    }
  }
}

cpu::FilterAxis AxisPlan::view() const {
  return {n_, levels_, static_cast<int64_t>(segments_.size()), segments_.data()};
}

LowPassPlan::LowPassPlan(int64_t height, int64_t width, const Response& response, const cpu::LowPassKernels& kernels)
    : rows(std::make_shared<const AxisPlan>(height, response, kernels.rows)),
      columns(height == width ? rows : std::make_shared<const AxisPlan>(width, response, kernels.rows)) {
  if (response.is_separable()) return;
  const int64_t stride = height + kernels.tile;
  mask.resize(width * stride);
  for (int64_t j = 0; j < width; ++j) {
    const double column = static_cast<double>(columns->frequencies()[j]);
    for (int64_t i = 0; i < stride; ++i) {
      const double row = static_cast<double>(rows->frequencies()[i % height]);
      mask[j * stride + i] = static_cast<float>(response.gain(row * row + column * column));
    }
  }
}

std::shared_ptr<const LowPassPlan> low_pass_plan(int64_t height, int64_t width, const Response& response,
                                                 const cpu::LowPassKernels& kernels) {
  static LruCache<PlanKey, std::shared_ptr<const LowPassPlan>> plans(kPlans);
  return plans.get({height, width, response},
                   [&] { return std::make_shared<const LowPassPlan>(height, width, response, kernels); });
}

}  // namespace synq
