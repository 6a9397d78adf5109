// Mean and mean square of every channel of every image, and their gradient, for one instruction set.
#include "cpu/channel_moments.h"

#include "cpu/channel_sums.h"
#include "cpu/elements.h"

namespace synq::cpu {
namespace {

inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

// Channels are few: their values are repeated, so that rows fill a block.
inline int64_t row_length(int64_t channels) { return channels <= kBlock / 2 ? kBlock / channels * channels : channels; }

template <typename T>
void runs_typed(const MomentsJob& job, int64_t begin, int64_t end, double* sums, double* squares) {
  Reader<T> reader;
  for (int64_t run = begin; run < end; ++run) {
    const T* x = static_cast<const T*>(job.x) + run * job.positions;
    ProductSums total;
    for (int64_t i = 0; i < job.positions; i += kBlock) {
      const int64_t size = least(kBlock, job.positions - i);
      const float* values = reader.read(x + i, size);
      total.include(values, values, size);
    }
    sums[run] = total.sum();
    squares[run] = total.product_sum();
  }
}

void add_squares(const float* __restrict x, float* __restrict sums, float* __restrict squares, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    sums[i] += x[i];
    squares[i] += x[i] * x[i];
  }
}

template <typename T>
void columns_typed(const MomentsJob& job, int64_t sample, int64_t begin, int64_t end, double* sums, double* squares) {
  Reader<T> reader;
  const T* x = static_cast<const T*>(job.x) + sample * job.positions * job.channels;
  add_rows(begin, end, row_length(job.channels), job.channels, sums, squares,
           [&](int64_t start, int64_t size, int64_t, float* of_x, float* of_squares) {
             add_squares(reader.read(x + start, size), of_x, of_squares, size);
           });
}

void gradient_of_run(const float* __restrict x, float* __restrict y, int64_t count, float offset, float slope) {
  for (int64_t i = 0; i < count; ++i) y[i] = offset + x[i] * slope;
}

void gradient_of_row(const float* __restrict x, float* __restrict y, int64_t count, const float* __restrict offset,
                     const float* __restrict slope) {
  for (int64_t i = 0; i < count; ++i) y[i] = offset[i] + x[i] * slope[i];
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
      gradient_of_run(x, y, size, job.offset[run], job.slope[run]);
    });
  }
}

template <typename T>
void columns_backward_typed(const MomentsJob& job, int64_t begin, int64_t end) {
  const int64_t sample_size = job.positions * job.channels;
  const int64_t length = row_length(job.channels);
  float repeated[2][kBlock];
  for (int64_t sample = begin / sample_size; sample * sample_size < end; ++sample) {
    const float* offset = job.offset + sample * job.channels;
    const float* slope = job.slope + sample * job.channels;
    if (length > job.channels) {
      for (int64_t i = 0; i < length; i += job.channels) {
        memcpy(repeated[0] + i, offset, sizeof(float) * static_cast<size_t>(job.channels));
        memcpy(repeated[1] + i, slope, sizeof(float) * static_cast<size_t>(job.channels));
      }
      offset = repeated[0];
      slope = repeated[1];
    }
    const int64_t origin = sample * sample_size;
    const int64_t last = least(end, origin + sample_size);
    for (int64_t start = most(begin, origin); start < last;) {
      const int64_t column = (start - origin) % length;
      const int64_t stop = least(last, start - column + length);
      for_each_gradient_block<T>(job, start, stop, [&](int64_t i, int64_t size, const float* x, float* y) {
        gradient_of_row(x, y, size, offset + column + i, slope + column + i);
      });
      start = stop;
    }
  }
}

void runs(const MomentsJob& job, int64_t begin, int64_t end, double* sums, double* squares) {
  with_type(job.dtype, [&](auto tag) { runs_typed<decltype(tag)>(job, begin, end, sums, squares); });
}

void columns(const MomentsJob& job, int64_t sample, int64_t begin, int64_t end, double* sums, double* squares) {
  with_type(job.dtype, [&](auto tag) { columns_typed<decltype(tag)>(job, sample, begin, end, sums, squares); });
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
