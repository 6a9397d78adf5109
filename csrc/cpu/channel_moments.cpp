// Mean and variance of every channel of every image, and their gradient, for one instruction set.
#include "cpu/channel_moments.h"

#include "centred_sums.h"
#include "cpu/channel_sums.h"
#include "cpu/elements.h"

namespace synq::cpu {
namespace {

inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

// Channels are few: their values are repeated, so that rows fill a block.
inline int64_t row_length(int64_t channels) { return channels <= kBlock / 2 ? kBlock / channels * channels : channels; }

// Sums of differences from one centre and of their squares, lane by lane; at most kSumRows terms are added up in
// float32.
class ShiftedSums {
 public:
  explicit ShiftedSums(float centre) : centre_(centre) {}

  // At most kBlock values.
  void include(const float* values, int64_t count) {
    Floats sums = {};
    Floats squares = {};
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) {
      Floats value;
      memcpy(&value, values + i, sizeof value);
      value -= centre_;
      sums += value;
      squares += value * value;
    }
    sums_ += __builtin_convertvector(sums, Doubles);
    squares_ += __builtin_convertvector(squares, Doubles);
    for (; i < count; ++i) {
      const float value = values[i] - centre_;
      rest_ += static_cast<double>(value);
      square_rest_ += static_cast<double>(value * value);
    }
    count_ += count;
  }

  CentredSums<double> result() const {
    return unshifted<double>(static_cast<double>(count_), static_cast<double>(centre_), total(sums_, rest_),
                             total(squares_, square_rest_));
  }

 private:
  static constexpr int64_t kLanes = kBlock / kSumRows;
  typedef float Floats __attribute__((vector_size(kLanes * sizeof(float))));
  typedef double Doubles __attribute__((vector_size(kLanes * sizeof(double))));

  static double total(const Doubles& lanes, double rest) {
    for (int64_t lane = 0; lane < kLanes; ++lane) rest += lanes[lane];
    return rest;
  }

  float centre_;
  int64_t count_ = 0;
  Doubles sums_ = {};
  Doubles squares_ = {};
  double rest_ = 0.0;
  double square_rest_ = 0.0;
};

// How much shares a centre, the mean of its first few values: if these lie far off, so do the squares of the whole, by
// their share of it. That bounds what the subtraction in `unshifted` can lose.
constexpr int64_t kSharing = 16 * kBlock;
constexpr int64_t kCentreValues = 32;
constexpr int64_t kCentreRows = 8;

float centre_of(const float* values, int64_t count) {
  const int64_t size = least(kCentreValues, count);
  double sum = 0.0;
  for (int64_t i = 0; i < size; ++i) sum += static_cast<double>(values[i]);
  return usable_centre(static_cast<float>(sum / static_cast<double>(size)));
}

template <typename T>
void runs_typed(const MomentsJob& job, int64_t begin, int64_t end, double* sums, double* deviations) {
  Reader<T> reader;
  for (int64_t run = begin; run < end; ++run) {
    const T* x = static_cast<const T*>(job.x) + run * job.positions;
    CentredSums<double> total = {};
    for (int64_t start = 0; start < job.positions; start += kSharing) {
      const int64_t stop = least(start + kSharing, job.positions);
      const float* values = reader.read(x + start, least(kBlock, stop - start));
      ShiftedSums part(centre_of(values, stop - start));
      part.include(values, least(kBlock, stop - start));
      for (int64_t i = start + kBlock; i < stop; i += kBlock) {
        const int64_t size = least(kBlock, stop - i);
        part.include(reader.read(x + i, size), size);
      }
      total = merge(total, part.result());
    }
    sums[run] = total.sum;
    deviations[run] = total.deviation;
  }
}

void add_values(const float* __restrict x, float* __restrict sums, int64_t count) {
  for (int64_t i = 0; i < count; ++i) sums[i] += x[i];
}

void add_squares(const float* __restrict x, const float* __restrict centre, float* __restrict sums,
                 float* __restrict squares, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    const float value = x[i] - centre[i];
    sums[i] += value;
    squares[i] += value * value;
  }
}

// Columns [left, left + width) of the rows of one part; the last row may end early.
template <typename T>
struct Columns {
  const T* x;
  int64_t elements;
  int64_t length;
  int64_t left;
  int64_t width;

  // Calls body(values, count) with each of the rows [begin, end) that there are.
  template <typename Body>
  void for_each_row(int64_t begin, int64_t end, Body body) const {
    Reader<T> reader;
    for (int64_t row = begin; row < end; ++row) {
      const int64_t start = row * length + left;
      if (start >= elements) return;
      const int64_t count = least(width, elements - start);
      body(reader.read(x + start, count), count);
    }
  }
};

// Column c of the rows belongs to channel c % channels, as in add_rows.
template <typename T>
void columns_typed(const MomentsJob& job, int64_t sample, int64_t begin, int64_t end, double* sums,
                   double* deviations) {
  const int64_t channels = job.channels;
  const int64_t elements = (end - begin) * channels;
  const int64_t length = row_length(channels);
  const int64_t rows = (elements + length - 1) / length;
  const T* x = static_cast<const T*>(job.x) + (sample * job.positions + begin) * channels;
  for (int64_t left = 0; left < length; left += kBlock) {
    const int64_t width = least(kBlock, length - left);
    const int64_t owners = least(channels, width);
    const Columns<T> columns = {x, elements, length, left, width};
    float terms[2][kBlock] = {};
    columns.for_each_row(0, kCentreRows,
                         [&](const float* values, int64_t count) { add_values(values, terms[0], count); });
    double total[2][kBlock] = {};
    for (int64_t i = 0; i < width; i += owners) add_row(terms[0] + i, owners, total[0]);
    const double centred = static_cast<double>(least(end - begin, kCentreRows * (length / channels)));
    float centre[kBlock];
    for (int64_t i = 0; i < owners; ++i) centre[i] = usable_centre(static_cast<float>(total[0][i] / centred));
    for (int64_t i = owners; i < width; i += owners) memcpy(centre + i, centre, sizeof(float) * owners);
    for (int64_t i = 0; i < owners; ++i) total[0][i] = 0.0;
    for (int64_t top = 0; top < rows; top += kSumRows) {
      for (int64_t i = 0; i < width; ++i) terms[0][i] = terms[1][i] = 0.0f;
      columns.for_each_row(top, top + kSumRows, [&](const float* values, int64_t count) {
        add_squares(values, centre, terms[0], terms[1], count);
      });
      for (int64_t i = 0; i < width; i += owners) {
        add_row(terms[0] + i, owners, total[0]);
        add_row(terms[1] + i, owners, total[1]);
      }
    }
    for (int64_t i = 0; i < owners; ++i) {
      const auto result =
          unshifted<double>(static_cast<double>(end - begin), static_cast<double>(centre[i]), total[0][i], total[1][i]);
      sums[left + i] = result.sum;
      deviations[left + i] = result.deviation;
    }
  }
}

void gradient_of_run(const float* __restrict x, float* __restrict y, int64_t count, float mean, float offset,
                     float slope) {
  for (int64_t i = 0; i < count; ++i) y[i] = offset + (x[i] - mean) * slope;
}

void gradient_of_row(const float* __restrict x, float* __restrict y, int64_t count, const float* __restrict mean,
                     const float* __restrict offset, const float* __restrict slope) {
  for (int64_t i = 0; i < count; ++i) y[i] = offset[i] + (x[i] - mean[i]) * slope[i];
}

// Calls body(offset from the start, size, x, y) with blocks of [start, stop), and stores y.
template <typename T, typename Body>
void for_each_gradient_block(const MomentsJob& job, int64_t start, int64_t stop, Body body) {
  Reader<T> reader;
  Writer<T> writer;
  for (int64_t i = start; i < stop; i += kBlock) {
    const int64_t size = least(kBlock, stop - i);
    T* y = static_cast<T*>(job.y) + i;
    body(i - start, size, reader.read(static_cast<const T*>(job.x) + i, size), writer.open(y));
    writer.close(y, size);
  }
}

template <typename T>
void runs_backward_typed(const MomentsJob& job, int64_t begin, int64_t end) {
  for (int64_t run = begin / job.positions; run * job.positions < end; ++run) {
    const int64_t start = most(begin, run * job.positions);
    const int64_t stop = least(end, (run + 1) * job.positions);
    for_each_gradient_block<T>(job, start, stop, [&](int64_t, int64_t size, const float* x, float* y) {
      gradient_of_run(x, y, size, job.mean[run], job.offset[run], job.slope[run]);
    });
  }
}

template <typename T>
void columns_backward_typed(const MomentsJob& job, int64_t begin, int64_t end) {
  const int64_t sample_size = job.positions * job.channels;
  const int64_t length = row_length(job.channels);
  float repeated[3][kBlock];
  for (int64_t sample = begin / sample_size; sample * sample_size < end; ++sample) {
    const float* factors[3];
    for (int k = 0; k < 3; ++k) {
      factors[k] = (k == 0 ? job.mean : k == 1 ? job.offset : job.slope) + sample * job.channels;
      if (length == job.channels) continue;
      for (int64_t i = 0; i < length; i += job.channels) {
        memcpy(repeated[k] + i, factors[k], sizeof(float) * static_cast<size_t>(job.channels));
      }
      factors[k] = repeated[k];
    }
    const int64_t origin = sample * sample_size;
    const int64_t last = least(end, origin + sample_size);
    for (int64_t start = most(begin, origin); start < last;) {
      const int64_t column = (start - origin) % length;
      const int64_t stop = least(last, start - column + length);
      for_each_gradient_block<T>(job, start, stop, [&](int64_t i, int64_t size, const float* x, float* y) {
        const int64_t at = column + i;
        gradient_of_row(x, y, size, factors[0] + at, factors[1] + at, factors[2] + at);
      });
      start = stop;
    }
  }
}

void runs(const MomentsJob& job, int64_t begin, int64_t end, double* sums, double* deviations) {
  with_type(job.dtype, [&](auto tag) { runs_typed<decltype(tag)>(job, begin, end, sums, deviations); });
}

void columns(const MomentsJob& job, int64_t sample, int64_t begin, int64_t end, double* sums, double* deviations) {
  with_type(job.dtype, [&](auto tag) { columns_typed<decltype(tag)>(job, sample, begin, end, sums, deviations); });
}

void runs_backward(const MomentsJob& job, int64_t begin, int64_t end) {
  with_type(job.dtype, [&](auto tag) { runs_backward_typed<decltype(tag)>(job, begin, end); });
}

void columns_backward(const MomentsJob& job, int64_t begin, int64_t end) {
  with_type(job.dtype, [&](auto tag) { columns_backward_typed<decltype(tag)>(job, begin, end); });
}

}  // namespace

SYNQ_DEFINE_TABLE(MomentsKernels, channel_moments_kernels) = {runs, columns, runs_backward, columns_backward};

}  // namespace synq::cpu
