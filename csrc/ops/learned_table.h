// What the ops of learned grids are given, and what their kernels take.
#pragma once

#include <c10/util/SmallVector.h>

#include "cpu/fake_quantize.h"
#include "fake_quantize_learned.h"
#include "learned_grid.h"
#include "ops/affine_table.h"
#include "ops/quantized.h"
#include "philox.h"

namespace synq {

// A learned pair, checked and contiguous.
struct LearnedPair {
  at::Tensor scale;
  at::Tensor zero_point;

  LearnedPair(const char* op, const at::Tensor& given_scale, const at::Tensor& given_zero_point, const Input& input)
      : scale(check_range(op, "scale", given_scale, input)),
        zero_point(check_range(op, "zero_point", given_zero_point, input)) {}
};

// The given scales, and the zero points rounded, on the CPU.
struct LearnedTable {
  const float* scale;
  c10::SmallVector<float, 64> zero_point;

  LearnedTable(const char* op, const LearnedPair& grid, const Input& input)
      : scale(grid.scale.const_data_ptr<float>()), zero_point(input.channels) {
    const float* offsets = grid.zero_point.const_data_ptr<float>();
    for (int64_t i = 0; i < input.channels; ++i) {
      require(!(scale[i] <= 0), op, "scale");
      zero_point[i] = learned_grid(scale[i], offsets[i]).zero_point;
    }
  }

  cpu::Job job(const Input& input, int64_t bits, at::Tensor& y) const {
    cpu::Job job = make_job<cpu::Job>(input, bits, y);
    job.scale = scale;
    job.zero_point = zero_point.data();
    return job;
  }
};

// Which elements are quantized: all, or some by chance.
struct Choice {
  const int64_t* seed = nullptr;
  uint32_t threshold = 0;
  int64_t offset = 0;

  Chance chance() const { return {static_cast<uint64_t>(*seed), threshold, offset}; }
};

inline FakeQuantizeLearnedParams learned_params(const Input& input, const LearnedPair& grid, int64_t bits,
                                                double gradient_scale, const Choice& choice, at::Tensor& y) {
  auto params = make_params<FakeQuantizeLearnedParams>(input, bits);
  params.y = y.mutable_data_ptr();
  params.scale = grid.scale.const_data_ptr<float>();
  params.zero_point = grid.zero_point.const_data_ptr<float>();
  params.gradient_scale = gradient_scale;
  params.seed = choice.seed;
  params.threshold = choice.threshold;
  params.offset = choice.offset;
  return params;
}

}  // namespace synq
