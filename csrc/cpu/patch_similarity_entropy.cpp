// Patch similarity entropy for one instruction set; the table at the end is named after it.
// As in every file here: no inline code of the standard library or torch.
#include "cpu/patch_similarity_entropy.h"

#include <math.h>

#include "cpu/elements.h"
#include "cpu/exp.h"
#include "cpu/matrix_tile.h"

namespace synq::cpu {
namespace {

constexpr float kLeastNorm = 1e-8f;
// 2^-126 is the least kernel value: what is further away adds nothing.
constexpr float kLeastExponent = -126.0f;

struct Block {
  int64_t image;
  int64_t first;
  int64_t last;  // one past the block's last token

  // Early blocks meet more columns than late ones; taken from both ends in turn, neighbours have equal work.
  Block(const SimilarityJob& job, int64_t task) {
    const int64_t blocks = job.blocks();
    image = task / blocks;
    const int64_t order = task % blocks;
    const int64_t index = order % 2 == 0 ? order / 2 : blocks - 1 - order / 2;
    first = index * kTokenBlock;
    last = first + kTokenBlock < job.count ? first + kTokenBlock : job.count;
  }
};

double sum_of_squares(const float* x, int64_t count) {
  double sums[8] = {};
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    for (int k = 0; k < 8; ++k) sums[k] += static_cast<double>(x[i + k]) * x[i + k];
  }
  for (; i < count; ++i) sums[0] += static_cast<double>(x[i]) * x[i];
  return ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]));
}

template <typename T>
void normalize_block(const SimilarityJob& job, const Block& block) {
  float* unit = job.unit + (block.image * job.padded + block.first) * job.width;
  float* inverse = job.inverse + block.image * job.padded + block.first;
  for (int64_t i = 0; i < kTokenBlock; ++i) {
    float* row = unit + i * job.width;
    const int64_t token = block.first + i;
    int64_t written = 0;
    if (token < block.last) {
      const T* source = static_cast<const T*>(job.tokens) + (block.image * job.count + token) * job.channels;
      if constexpr (std::is_same_v<T, float>) {
        memcpy(row, source, job.channels * sizeof(float));
      } else {
        load(source, row, job.channels);
      }
      const float norm = static_cast<float>(sqrt(sum_of_squares(row, job.channels)));
      const float divisor = norm < kLeastNorm ? kLeastNorm : norm;
      for (int64_t c = 0; c < job.channels; ++c) row[c] /= divisor;
      inverse[i] = norm < kLeastNorm ? -1.0f / divisor : 1.0f / divisor;
      written = job.channels;
    }
    for (int64_t c = written; c < job.width; ++c) row[c] = 0.0f;
  }
  float* transposed = job.transposed + block.image * job.channels * job.padded + block.first;
  for (int64_t c = 0; c < job.channels; ++c) {
    for (int64_t i = 0; i < kTokenBlock; ++i) transposed[c * job.padded + i] = unit[i * job.width + c];
  }
}

// Keeps the lanes of a row's last vector that are tokens.
struct RowEnd {
  int64_t whole;  // first column that is not in a whole vector
  Lanes kept;

  RowEnd(int64_t column, int64_t count) : whole(column + (count - column) / kLanes * kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) kept[lane] = whole + lane < count ? -1 : 0;
  }
};

inline Vector lesser(Vector value, Vector bound) { return (value < bound) | (value != value) ? value : bound; }
inline Vector greater(Vector value, Vector bound) { return (value > bound) | (value != value) ? value : bound; }

struct Extrema {
  Vector low;
  Vector high;

  explicit Extrema(float value) : low(Vector{} + value), high(low) {}

  void add(const float* row, int64_t column, int64_t count) {
    const RowEnd end(column, count);
    for (int64_t j = column; j < end.whole; j += kLanes) {
      const Vector s = load_vector(row + j);
      low = lesser(s, low);
      high = greater(s, high);
    }
    if (end.whole < count) {
      const Vector s = load_vector(row + end.whole);
      low = lesser(end.kept ? s : low, low);
      high = greater(end.kept ? s : high, high);
    }
  }
  void lower(float* minimum) const {
    for (int lane = 0; lane < kLanes; ++lane) {
      if (low[lane] < *minimum || low[lane] != low[lane]) *minimum = low[lane];
    }
  }
  void raise(float* maximum) const {
    for (int lane = 0; lane < kLanes; ++lane) {
      if (high[lane] > *maximum || high[lane] != high[lane]) *maximum = high[lane];
    }
  }
};

void similarities(const SimilarityJob& job, int64_t begin, int64_t end, float* minimum, float* maximum) {
  for (int64_t task = begin; task < end; ++task) {
    const Block block(job, task);
    float* rows = job.similarity + (block.image * job.padded + block.first) * job.padded;
    const Factors factors[1] = {{job.unit + block.image * job.padded * job.width, job.width, 1,
                                 job.transposed + block.image * job.channels * job.padded, job.padded, job.channels}};
    multiply(factors, block.first, kTokenBlock, block.first, job.padded, rows + block.first, job.padded);
    Extrema extrema(rows[block.first]);
    for (int64_t i = block.first; i < block.last; ++i) {
      extrema.add(rows + (i - block.first) * job.padded, block.first, job.count);
    }
    extrema.lower(minimum);
    extrema.raise(maximum);
  }
}

// Columns [column, stop) of `count` rows of the similarities.
struct Part {
  float* rows;
  int64_t count;
  int64_t stride;
  int64_t column;
  int64_t stop;

  bool empty() const { return column >= stop; }
  float* row(int64_t i) const { return rows + i * stride; }
};

// The similarities within a block of tokens, and those with later tokens.
struct Parts {
  Part within;
  Part later;

  Parts(const SimilarityJob& job, const Block& block) {
    float* rows = job.similarity + (block.image * job.padded + block.first) * job.padded;
    within = {rows, block.last - block.first, job.padded, block.first, block.last};
    later = {rows, block.last - block.first, job.padded, block.last, job.count};
  }
};

// The points that a kernel centred in a part reaches. NaN reaches all.
struct NearPoints {
  int32_t index[kMaximumPoints];
  int64_t size = 0;

  NearPoints(const SimilarityJob& job, const Part& part) {
    float low = part.rows[part.column];
    float high = low;
    Extrema extrema(low);
    for (int64_t i = 0; i < part.count; ++i) extrema.add(part.row(i), part.column, part.stop);
    extrema.lower(&low);
    extrema.raise(&high);
    for (int64_t point = 0; point < job.points; ++point) {
      const float x = job.grid[point];
      const float distance = x > high ? x - high : x < low ? low - x : 0.0f;
      if (!(job.exponent * distance * distance < kLeastExponent)) index[size++] = static_cast<int32_t>(point);
    }
  }
};

// sums[point, lane] += weight * the kernel over a part. Float sums stay short, the long ones are double.
void add_densities(const SimilarityJob& job, const Part& part, double weight, double* sums) {
  if (part.empty()) return;
  const NearPoints near(job, part);
  const RowEnd end(part.column, part.stop);
  const int64_t wanted = 256 * kLanes / (part.stop - part.column);
  const int64_t rows = wanted < 1 ? 1 : wanted;
  for (int64_t k = 0; k < near.size; ++k) {
    const float x = job.grid[near.index[k]];
    double* target = sums + near.index[k] * kLanes;
    for (int64_t first = 0; first < part.count; first += rows) {
      const int64_t last = first + rows < part.count ? first + rows : part.count;
      Vector sum{};
      for (int64_t i = first; i < last; ++i) {
        const float* row = part.row(i);
        for (int64_t j = part.column; j < end.whole; j += kLanes) {
          const Vector d = load_vector(row + j) - x;
          sum += exp2_of_negative(d * d * job.exponent);
        }
        if (end.whole < part.stop) {
          const Vector d = load_vector(row + end.whole) - x;
          sum += end.kept ? exp2_of_negative(d * d * job.exponent) : Vector{};
        }
      }
      for (int lane = 0; lane < kLanes; ++lane) target[lane] += weight * static_cast<double>(sum[lane]);
    }
  }
}

void densities(const SimilarityJob& job, int64_t begin, int64_t end, double* result) {
  double sums[kMaximumPoints * kLanes];
  for (int64_t task = begin; task < end; ++task) {
    const Parts parts(job, Block(job, task));
    memset(sums, 0, job.points * kLanes * sizeof(double));
    add_densities(job, parts.within, 1.0, sums);
    add_densities(job, parts.later, 2.0, sums);
    for (int64_t point = 0; point < job.points; ++point) {
      double total = 0.0;
      for (int lane = 0; lane < kLanes; ++lane) total += sums[point * kLanes + lane];
      result[task * job.points + point] = total;
    }
  }
}

// What lies beyond a part's end, up to a whole vector, becomes whatever comes: nothing reads it.
void replace_by_slopes(const SimilarityJob& job, const Part& part, const float* slope) {
  if (part.empty()) return;
  const NearPoints near(job, part);
  for (int64_t i = 0; i < part.count; ++i) {
    float* row = part.row(i);
    for (int64_t j = part.column; j < part.stop; j += kLanes) {
      const Vector s = load_vector(row + j);
      Vector sum{};
      for (int64_t k = 0; k < near.size; ++k) {
        const int64_t point = near.index[k];
        const Vector d = s - job.grid[point];
        sum += slope[point] * d * exp2_of_negative(d * d * job.exponent);
      }
      store_vector(row + j, sum);
    }
  }
}

void slopes(const SimilarityJob& job, int64_t begin, int64_t end) {
  for (int64_t task = begin; task < end; ++task) {
    const Block block(job, task);
    const Parts parts(job, block);
    const float* slope = job.slope + block.image * job.points;
    replace_by_slopes(job, parts.within, slope);
    replace_by_slopes(job, parts.later, slope);
  }
}

void gradients(const SimilarityJob& job, int64_t begin, int64_t end, float* scratch) {
  for (int64_t task = begin; task < end; ++task) {
    const Block block(job, task);
    const float* slopes = job.similarity + block.image * job.padded * job.padded;
    const float* unit = job.unit + block.image * job.padded * job.width;
    // Columns left of the block are rows above it, mirrored.
    const Factors factors[2] = {
        {slopes, 1, job.padded, unit, job.width, block.first},
        {slopes + block.first, job.padded, 1, unit + block.first * job.width, job.width, job.count - block.first}};
    multiply(factors, block.first, kTokenBlock, 0, job.width, scratch, job.width);
    for (int64_t i = block.first; i < block.last; ++i) {
      const float* row = scratch + (i - block.first) * job.width;
      const float* direction = unit + i * job.width;
      const float inverse = job.inverse[block.image * job.padded + i];
      float* result = job.gradient + (block.image * job.count + i) * job.channels;
      Vector sums{};
      for (int64_t c = 0; c < job.width; c += kLanes) sums += load_vector(row + c) * load_vector(direction + c);
      float along = 0.0f;
      for (int lane = 0; lane < kLanes; ++lane) along += sums[lane];
      // A token shorter than the least norm is divided by a constant: its length has a gradient too.
      const float scale = inverse < 0.0f ? -inverse : inverse;
      if (inverse < 0.0f) along = 0.0f;
      for (int64_t c = 0; c < job.channels; ++c) result[c] = scale * (row[c] - along * direction[c]);
    }
  }
}

void normalize(const SimilarityJob& job, int64_t begin, int64_t end) {
  with_type(job.dtype, [&](auto tag) {
    for (int64_t task = begin; task < end; ++task) normalize_block<decltype(tag)>(job, Block(job, task));
  });
}

}  // namespace

SYNQ_DEFINE_TABLE(PatchSimilarityKernels, patch_similarity_kernels) = {normalize, similarities, densities, slopes,
                                                                       gradients};

}  // namespace synq::cpu
