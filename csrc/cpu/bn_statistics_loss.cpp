// Mean and variance per channel, and the gradient of losses on them, for one instruction set.
// As in every kernel source, nothing here may instantiate shared inline code (the standard library, torch).
//
// Blocks of a few thousand elements are read twice while they are in cache: for their mean, then for their deviations
// from it. Their float32 sums are short, and blocks are put together in float64, so a mean far from zero or from the
// running mean costs no accuracy.
#include "cpu/bn_statistics_loss.h"

#include "cpu/elements.h"
#include "cpu/lanes.h"

namespace synq::cpu {
namespace {

constexpr int64_t kBlockElements = 4096;
constexpr int64_t kTileElements = 8192;
constexpr int64_t kChains = 4;
// Enough parts for many cores, each of several blocks.
constexpr int64_t kItems = 64;
constexpr int64_t kBlocksPerItem = 4;

inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t ceil_divide(int64_t value, int64_t divisor) { return (value + divisor - 1) / divisor; }

struct Moments {
  int64_t count = 0;
  double mean = 0;
  double deviation = 0;
};

inline void merge(Moments& into, const Moments& other) {
  const double total = static_cast<double>(into.count + other.count);
  const double share = static_cast<double>(other.count) / total;
  const double delta = other.mean - into.mean;
  // The difference of an infinite delta from itself: an infinite mean has no variance.
  into.deviation += other.deviation + delta * delta * static_cast<double>(into.count) * share + (delta - delta);
  into.mean += delta * share;
  into.count += other.count;
}

// `runs` stretches of `length` floats, the first elements of which lie `stride` apart.
struct Runs {
  const float* x;
  int64_t runs;
  int64_t stride;
  int64_t length;
};

template <typename Body>
inline void for_each_vector_of(const Runs& block, Body body) {
  for (int64_t run = 0; run < block.runs; ++run) {
    const float* x = block.x + run * block.stride;
    int64_t i = 0;
    for (; i + kChains * kLanes <= block.length; i += kChains * kLanes) {
      for (int64_t chain = 0; chain < kChains; ++chain) body(x + i + chain * kLanes, chain, Whole{});
    }
    for_each_vector(i, block.length, [&](int64_t j, auto lanes) { body(x + j, int64_t{0}, lanes); });
  }
}

Moments moments_of(const Runs& block) {
  Vector sum[kChains] = {};
  for_each_vector_of(block, [&](const float* x, int64_t chain, auto lanes) { sum[chain] += lanes.load(x, 0.0f); });
  const double count = static_cast<double>(block.runs * block.length);
  const float centre = static_cast<float>(sum_of((sum[0] + sum[1]) + (sum[2] + sum[3])) / count);
  Vector rest[kChains] = {};
  Vector square[kChains] = {};
  for_each_vector_of(block, [&](const float* x, int64_t chain, auto lanes) {
    const Vector d = lanes.load(x, centre) - centre;
    rest[chain] += d;
    square[chain] = multiply_add(d, d, square[chain]);
  });
  // What rounding left of the block's mean.
  const double left = sum_of((rest[0] + rest[1]) + (rest[2] + rest[3]));
  const double squares = sum_of((square[0] + square[1]) + (square[2] + square[3]));
  return {block.runs * block.length, static_cast<double>(centre) + left / count, squares - left * left / count};
}

// How a channel's elements are cut into blocks: of several runs, or of a part of one.
struct RunPlan {
  int64_t runs_per_block;
  int64_t blocks_per_run;
  int64_t blocks;
};

RunPlan run_plan(const StatisticsJob& job) {
  const int64_t runs = job.inner < kBlockElements ? kBlockElements / job.inner : 1;
  const int64_t pieces = ceil_divide(job.inner, kBlockElements);
  return {runs, pieces, ceil_divide(job.outer, runs) * pieces};
}

template <typename T>
void reduce_runs(const StatisticsJob& job, int64_t split, int64_t channel) {
  const RunPlan plan = run_plan(job);
  const int64_t stride = job.channels * job.inner;
  Moments moments;
  for (int64_t block = split * plan.blocks / job.splits; block < (split + 1) * plan.blocks / job.splits; ++block) {
    const int64_t first = block / plan.blocks_per_run * plan.runs_per_block;
    const int64_t start = block % plan.blocks_per_run * kBlockElements;
    const int64_t runs = least(plan.runs_per_block, job.outer - first);
    const int64_t length = least(kBlockElements, job.inner - start);
    const T* x = static_cast<const T*>(job.x) + first * stride + channel * job.inner + start;
    if constexpr (std::is_same_v<T, float>) {
      merge(moments, moments_of({x, runs, stride, length}));
    } else {
      float buffer[kBlockElements];
      for (int64_t run = 0; run < runs; ++run) load(x + run * stride, buffer + run * length, length);
      merge(moments, moments_of({buffer, runs, length, length}));
    }
  }
  if (channel == 0) job.count[split] = moments.count;
  job.mean[split * job.channels + channel] = moments.mean;
  job.deviation[split * job.channels + channel] = moments.deviation;
}

// Memory as rows of `width` columns, `stride` apart: a group of whole channels of folded samples.
struct RowPlan {
  int64_t fold;
  int64_t rows;
  int64_t stride;
  int64_t group_channels;
  int64_t rows_per_block;
  int64_t blocks;
};

RowPlan row_plan(const StatisticsJob& job) {
  RowPlan plan{};
  plan.fold = folded(job.channels, job.inner);
  plan.rows = job.outer / plan.fold;
  plan.stride = job.channels * job.inner * plan.fold;
  plan.group_channels = least(job.channels, kRowElements / job.inner);
  plan.rows_per_block = kTileElements / (plan.group_channels * job.inner * plan.fold);
  plan.blocks = ceil_divide(plan.rows, plan.rows_per_block);
  return plan;
}

// Sums of one block of rows, column by column.
struct Columns {
  float centre[kRowElements];
  float rest[kRowElements];
  float square[kRowElements];

  void sweep(const float* x, int64_t rows, int64_t stride, int64_t width) {
    for (int64_t j = 0; j < width; ++j) centre[j] = rest[j] = square[j] = 0.0f;
    for (int64_t row = 0; row < rows; ++row) add(x + row * stride, centre, width);
    const float share = 1.0f / static_cast<float>(rows);
    for (int64_t j = 0; j < width; ++j) centre[j] *= share;
    for (int64_t row = 0; row < rows; ++row) add_deviations(x + row * stride, width);
  }

 private:
  static void add(const float* __restrict x, float* __restrict sum, int64_t width) {
    for (int64_t j = 0; j < width; ++j) sum[j] += x[j];
  }
  void add_deviations(const float* __restrict x, int64_t width) {
    for (int64_t j = 0; j < width; ++j) {
      const float d = x[j] - centre[j];
      rest[j] += d;
      square[j] += d * d;
    }
  }
};

// Moments of every column, all with the same count.
struct ColumnMoments {
  int64_t count = 0;
  double mean[kRowElements] = {};
  double deviation[kRowElements] = {};

  void merge(const Columns& block, int64_t rows, int64_t width) {
    const double total = static_cast<double>(count + rows);
    const double inverse = 1.0 / static_cast<double>(rows);
    const double share = static_cast<double>(rows) / total;
    const double factor = static_cast<double>(count) * share;
    for (int64_t j = 0; j < width; ++j) {
      const double left = static_cast<double>(block.rest[j]);
      const double delta = static_cast<double>(block.centre[j]) + left * inverse - mean[j];
      deviation[j] += static_cast<double>(block.square[j]) - left * left * inverse + delta * delta * factor;
      mean[j] += delta * share;
    }
    count += rows;
  }

  // The columns of one channel: `inner` of them in each of `fold` samples.
  Moments channel(int64_t first, int64_t inner, int64_t fold, int64_t step) const {
    Moments moments;
    for (int64_t sample = 0; sample < fold; ++sample) {
      for (int64_t j = first + sample * step; j < first + sample * step + inner; ++j) {
        synq::cpu::merge(moments, {count, mean[j], deviation[j]});
      }
    }
    return moments;
  }
};

template <typename T>
float one(const T* x) {
  float value;
  if constexpr (std::is_same_v<T, float>) {
    value = *x;
  } else {
    load(x, &value, 1);
  }
  return value;
}

template <typename T>
void reduce_rows(const StatisticsJob& job, int64_t split, int64_t group) {
  const RowPlan plan = row_plan(job);
  const int64_t first_channel = group * plan.group_channels;
  const int64_t channels = least(plan.group_channels, job.channels - first_channel);
  const int64_t sample = job.channels * job.inner;
  const int64_t width = plan.fold == 1 ? channels * job.inner : plan.fold * sample;
  const T* start = static_cast<const T*>(job.x) + first_channel * job.inner;
  ColumnMoments moments;
  for (int64_t block = split * plan.blocks / job.splits; block < (split + 1) * plan.blocks / job.splits; ++block) {
    const int64_t first = block * plan.rows_per_block;
    const int64_t rows = least(plan.rows_per_block, plan.rows - first);
    const T* x = start + first * plan.stride;
    Columns sums;
    if constexpr (std::is_same_v<T, float>) {
      sums.sweep(x, rows, plan.stride, width);
    } else {
      float buffer[kTileElements];
      for (int64_t row = 0; row < rows; ++row) load(x + row * plan.stride, buffer + row * width, width);
      sums.sweep(buffer, rows, width, width);
    }
    moments.merge(sums, rows, width);
  }
  for (int64_t channel = 0; channel < channels; ++channel) {
    Moments of_channel;
    if (moments.count > 0) of_channel = moments.channel(channel * job.inner, job.inner, plan.fold, sample);
    // Samples that fill no whole row go to the last part.
    for (int64_t n = plan.rows * plan.fold; split == job.splits - 1 && n < job.outer; ++n) {
      for (int64_t i = 0; i < job.inner; ++i) {
        merge(of_channel, {1, static_cast<double>(one(start + n * sample + channel * job.inner + i)), 0});
      }
    }
    if (group == 0) job.count[split] = of_channel.count;
    job.mean[split * job.channels + first_channel + channel] = of_channel.mean;
    job.deviation[split * job.channels + first_channel + channel] = of_channel.deviation;
  }
}

void plan(StatisticsJob& job) {
  int64_t blocks;
  if (job.inner >= kNarrow) {
    job.groups = job.channels;
    blocks = run_plan(job).blocks;
  } else {
    job.groups = ceil_divide(job.channels, row_plan(job).group_channels);
    blocks = row_plan(job).blocks;
  }
  const int64_t most = blocks / kBlocksPerItem > 1 ? blocks / kBlocksPerItem : 1;
  job.splits = least(ceil_divide(kItems, job.groups), most);
}

void reduce(const StatisticsJob& job, int64_t begin, int64_t end) {
  with_type(job.dtype, [&](auto tag) {
    using T = decltype(tag);
    for (int64_t item = begin; item < end; ++item) {
      if (job.inner >= kNarrow) {
        reduce_runs<T>(job, item / job.groups, item % job.groups);
      } else {
        reduce_rows<T>(job, item / job.groups, item % job.groups);
      }
    }
  });
}

struct Coefficients {
  float shift;
  float slope;
  float offset;
};

inline float apply(float x, Coefficients c) { return (x - c.shift) * c.slope + c.offset; }

struct Shared {
  Coefficients value;
  Coefficients operator()(int64_t) const { return value; }
};

struct PerElement {
  const float* shift;
  const float* slope;
  const float* offset;
  Coefficients operator()(int64_t i) const { return {shift[i], slope[i], offset[i]}; }
};

template <typename T, typename Of>
void gradient_run(const T* x, T* result, int64_t count, Of of) {
  if constexpr (std::is_same_v<T, float>) {
    const float* __restrict source = x;
    float* __restrict target = result;
    for (int64_t i = 0; i < count; ++i) target[i] = apply(source[i], of(i));
  } else {
    for_each_block(x, count, [&](int64_t start, int64_t size, const float* source) {
      float buffer[kBlock];
      for (int64_t i = 0; i < size; ++i) buffer[i] = apply(source[i], of(start + i));
      store(buffer, result + start, size);
    });
  }
}

void gradient(const StatisticsGradientJob& job, int64_t begin, int64_t end) {
  const bool narrow = job.inner < kNarrow;
  const int64_t length = narrow ? job.channels * job.inner * folded(job.channels, job.inner) : job.inner;
  with_type(job.dtype, [&](auto tag) {
    using T = decltype(tag);
    const T* x = static_cast<const T*>(job.x);
    T* result = static_cast<T*>(job.result);
    int64_t row = begin / length;
    for (int64_t start = begin; start < end; ++row) {
      const int64_t stop = least((row + 1) * length, end);
      const int64_t at = narrow ? start - row * length : row % job.channels;
      const float* shift = job.shift + at;
      const float* slope = job.slope + at;
      const float* offset = job.offset + at;
      if (narrow) {
        gradient_run(x + start, result + start, stop - start, PerElement{shift, slope, offset});
      } else {
        gradient_run(x + start, result + start, stop - start, Shared{{*shift, *slope, *offset}});
      }
      start = stop;
    }
  });
}

}  // namespace

SYNQ_DEFINE_TABLE(StatisticsKernels, statistics_kernels) = {plan, reduce, gradient};

}  // namespace synq::cpu
