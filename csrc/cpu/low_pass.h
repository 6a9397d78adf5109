// CPU kernels of the low-pass filters: one axis of an image as small dense products.
//
// A symmetric circular filter of length n keeps apart signals that are even or odd about index 0, and signals that
// repeat or change sign after n / 2. Sums and differences ("folding") therefore split one n x n product into segments:
// with `levels` halvings, about n^2 / 6 multiplications instead of n^2. Unfolding puts the results together again.
#pragma once

#include <stdint.h>

#include "cpu/dispatch.h"
#include "dtype.h"

namespace synq::cpu {

// Folded values at [begin, begin + size) and what they are multiplied by: blocks of rows, each stored column by column.
struct FilterSegment {
  int64_t begin;
  int64_t size;
  const float* filter;     // the whole filter; null where the axes cannot be filtered one after the other
  const float* analysis;   // to Fourier coefficients
  const float* synthesis;  // back to folded values
};

struct FilterAxis {
  int64_t n;
  int64_t levels;  // halvings
  int64_t segment_count;
  const FilterSegment* segments;
};

enum class FilterStep : int32_t {
  kFilter,      // fold, filter, unfold
  kAnalyse,     // fold, analysis
  kMask,        // fold, analysis, product with the mask, synthesis, unfold
  kSynthesize,  // synthesis, unfold
};

// Memory is (outer, n, inner), inner fastest; the filter runs along the middle. Work is split into tiles of
// neighbouring lines; y may be x.
struct FilterPass {
  const void* x;
  void* y;
  DType x_type;
  DType y_type;
  int64_t outer;
  int64_t inner;
  FilterAxis axis;
  FilterStep step;
  // kMask: gains (n, mask_period + tile), row by coefficient of this axis, periodic in the other axis' coefficient,
  // which is the index along `outer`.
  const float* mask;
  int64_t mask_period;
};

struct LowPassKernels {
  int64_t tile;  // lines in a tile
  int64_t rows;  // the most rows in a block of a packed matrix
  int64_t (*tiles)(const FilterPass& pass);
  int64_t (*scratch)(const FilterPass& pass);  // floats, aligned to 64 bytes
  void (*run)(const FilterPass& pass, float* scratch, int64_t begin, int64_t end);
};

SYNQ_DECLARE_TABLES(LowPassKernels, low_pass_kernels);

// Internal linkage: compiled for several instruction sets.
namespace {

// Blocks of a matrix of `size` rows have nearly equal heights, the taller ones first.
inline int64_t block_count(int64_t size, int64_t rows) { return (size + rows - 1) / rows; }
inline int64_t block_height(int64_t size, int64_t blocks, int64_t block) {
  return size / blocks + (block < size % blocks ? 1 : 0);
}

}  // namespace

}  // namespace synq::cpu
