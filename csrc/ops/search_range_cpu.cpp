// The CPU implementation behind synq_fast::search_range.
#include "cpu/search_range.h"

#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <tuple>
#include <vector>

#include "candidate.h"
#include "ops/find_ranges.h"
#include "ops/parallel.h"
#include "ops/range_arguments.h"

namespace synq {
namespace {

using at::Tensor;

// A part of x is summed by one thread. Parts depend on the size alone, so the number of threads cannot be seen.
constexpr int64_t kPart = 16384;
constexpr int64_t kMaximumParts = 1024;

std::vector<double> sum_errors(const cpu::SearchRangeJob& job, int64_t count) {
  const int64_t wanted = std::min((count + kPart - 1) / kPart, kMaximumParts);
  const int64_t size = ((count + wanted - 1) / wanted + kPart - 1) / kPart * kPart;
  const int64_t parts = (count + size - 1) / size;
  const auto kernel = SYNQ_SELECT(cpu::search_range_kernels).sum_errors;
  std::vector<double> sums(parts * job.candidates);
  at::parallel_for(0, parts, 1, [&](int64_t first, int64_t last) {
    for (int64_t part = first; part < last; ++part) {
      kernel(job, part * size, std::min(count, (part + 1) * size), sums.data() + part * job.candidates);
    }
  });
  for (int64_t part = 1; part < parts; ++part) {
    for (int32_t c = 0; c < job.candidates; ++c) sums[c] += sums[part * job.candidates + c];
  }
  sums.resize(job.candidates);
  return sums;
}

int32_t search(const SearchRangeParams& params, float low, float high) {
  const Affine first = make_candidate(low, high, 0, params.bits).affine;
  if (!is_searchable(first)) {
    std::fill_n(params.losses, params.candidates, std::numeric_limits<float>::quiet_NaN());
    return 0;
  }
  cpu::SearchRangeJob job{};
  job.x = params.x;
  job.range_min = low;
  job.range_max = high;
  job.norm = params.norm;
  job.offset = power_offset(low, high, first, params.norm);
  job.candidates = params.candidates;
  job.bits = params.bits;
  job.dtype = params.dtype;
  const std::vector<double> sums = sum_errors(job, params.elements);
  const double unit = std::exp2(-static_cast<double>(job.offset)) / static_cast<double>(params.elements);
  for (int32_t c = 0; c < params.candidates; ++c) params.losses[c] = static_cast<float>(sums[c] * unit);
  return static_cast<int32_t>(std::min_element(sums.begin(), sums.end()) - sums.begin());
}

std::tuple<Tensor, Tensor, Tensor> search_range_cpu(const Tensor& x, int64_t bits, int64_t candidates, double norm) {
  Tensor values = x;
  SearchResults results;
  const SearchRangeParams params = check_search_range(values, bits, candidates, norm, results);
  cpu::Job job{};
  job.x = params.x;
  job.channels = 1;
  job.inner = params.elements;
  job.dtype = params.dtype;
  float low;
  float high;
  find_ranges(job, params.elements, &low, &high);
  const float shrink = shrink_of(search(params, low, high));
  *params.range_min = mul(low, shrink);
  *params.range_max = mul(high, shrink);
  return {results.range_min, results.range_max, results.losses};
}

}  // namespace

TORCH_LIBRARY_IMPL(synq_fast, CPU, m) { m.impl("search_range", &search_range_cpu); }

}  // namespace synq
