// Scales and zero points of given ranges, on the CPU.
#pragma once

#include <c10/util/SmallVector.h>

#include <algorithm>

#include "affine.h"
#include "ops/quantized.h"

namespace synq {

// Channels whose pieces in memory are shorter than this are handled one element at a time, as columns of a matrix.
constexpr int64_t kShortPiece = 32;

// How often each channel's values are repeated, so that a row of a matrix of columns has one per element; 1 where
// channels keep their pieces.
inline int64_t repeats_of(const Input& input) {
  const bool narrow = input.channels > 1 && input.inner > 1 && input.inner < kShortPiece;
  return narrow && input.outer >= 8 ? input.inner : 1;
}

// Scale and zero point of each channel or column, apart from each other so that vectors of them can be loaded.
class AffineTable {
 public:
  // Raises ValueError where a minimum exceeds its maximum.
  AffineTable(const char* op, const Ranges& ranges, const Input& input, Span span)
      : AffineTable(ranges.low(), ranges.high(), input, span) {
    for (int64_t i = 0; i < input.channels; ++i) require(!(ranges.low()[i] > ranges.high()[i]), op, "range_min");
  }

  AffineTable(const char* op, const Ranges& ranges, const Input& input, int64_t bits)
      : AffineTable(op, ranges, input, span_of(static_cast<int>(bits))) {}

  // Ranges that need no check.
  AffineTable(const float* low, const float* high, const Input& input, Span span)
      : repeats_(repeats_of(input)), columns_(input.channels * repeats_), values_(2 * columns_) {
    for (int64_t i = 0; i < input.channels; ++i) set(i, make_affine(low[i], high[i], span));
  }

  Affine channel(int64_t i) const { return {scale()[i * repeats_], zero_point()[i * repeats_]}; }

  // Gives any of the family's job structs the columns, or the channels, of this table.
  template <typename Job>
  void fill(Job& job, const Input& input) const {
    job.scale = scale();
    job.zero_point = zero_point();
    job.channels = columns_;
    job.inner = input.inner / repeats_;
  }

  const float* scale() const { return values_.data(); }
  const float* zero_point() const { return values_.data() + columns_; }

 private:
  void set(int64_t channel, Affine affine) {
    std::fill_n(values_.data() + channel * repeats_, repeats_, affine.scale);
    std::fill_n(values_.data() + columns_ + channel * repeats_, repeats_, affine.zero_point);
  }

  int64_t repeats_;
  int64_t columns_;
  c10::SmallVector<float, 64> values_;
};

// A job of the types that x and y have; its channels and their grids are to be filled in.
template <typename Job>
Job make_job(const Input& input, int64_t bits, at::Tensor& y) {
  Job job{};
  job.x = input.x.const_data_ptr();
  job.y = y.mutable_data_ptr();
  job.channels = input.channels;
  job.inner = input.inner;
  job.bits = static_cast<int32_t>(bits);
  job.dtype = input.dtype;
  return job;
}

template <typename Job>
Job make_job(const Input& input, const AffineTable& table, int64_t bits, at::Tensor& y) {
  Job job = make_job<Job>(input, bits, y);
  table.fill(job, input);
  return job;
}

}  // namespace synq
