// The matrices that the CPU kernels multiply with, built once per setting.
#pragma once

#include <memory>
#include <vector>

#include "cpu/low_pass.h"
#include "ops/low_pass_op.h"

namespace synq {

class AxisPlan {
 public:
  // With a separable response its own factor for this axis, else the transform to Fourier coefficients and back.
  AxisPlan(int64_t n, const Response& response, int64_t rows);
  AxisPlan(const AxisPlan&) = delete;

  cpu::FilterAxis view() const;

  // The frequency behind each place of the coefficients.
  const std::vector<int64_t>& frequencies() const { return frequencies_; }

 private:
  int64_t n_;
  int64_t levels_ = 0;
  std::vector<int64_t> frequencies_;
  std::vector<float> storage_;
  std::vector<cpu::FilterSegment> segments_;
};

struct LowPassPlan {
  LowPassPlan(int64_t height, int64_t width, const Response& response, const cpu::LowPassKernels& kernels);

  std::shared_ptr<const AxisPlan> rows;
  std::shared_ptr<const AxisPlan> columns;
  std::vector<float> mask;  // see FilterPass::mask; empty where the response is separable
};

// From a cache of bounded size.
std::shared_ptr<const LowPassPlan> low_pass_plan(int64_t height, int64_t width, const Response& response,
                                                 const cpu::LowPassKernels& kernels);

}  // namespace synq
