// synq_fast::search_range.
//
// On the CPU most candidates are ruled out by the squares of their errors, which cost little and whose mean bounds that
// of higher powers, and where x is large on a histogram of it: the error is the distance to the nearest level, so
// moving an element to the centre of its bin moves its error by at most half a bin, and the loss within known bounds.
// The candidates that could still win are then evaluated exactly, all of them in one pass over x. Sums are taken over
// parts that depend on the number of elements alone, so the number of threads cannot be seen in the result. Channels
// are searched one by one, several at a time where there are enough of them: what runs inside a thread of torch's pool
// stays in it.
#include "search_range.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "candidate.h"
#include "cpu/search_range.h"
#include "ops/device.h"
#include "ops/find_ranges.h"
#include "ops/parallel.h"
#include "ops/quantized.h"

namespace synq {
namespace {

using at::Tensor;

constexpr int64_t kPart = 16384;
constexpr int64_t kMaximumParts = 1024;
constexpr int64_t kMinimumBins = 1024;
constexpr int64_t kMaximumBins = 65536;
constexpr int64_t kElementsPerBin = 4;  // fewer, and the histogram costs as much as what it saves

const cpu::SearchRangeKernels& kernels() {
  using namespace cpu;
  return SYNQ_SELECT(search_range_kernels);
}

// Of one channel.
struct Search {
  SearchRangeParams params;
  const void* x;
  int64_t elements;
  float low;
  float high;
  float offset;

  cpu::SearchRangeJob job(const std::vector<int32_t>& candidates) const {
    cpu::SearchRangeJob job{};
    job.x = x;
    job.candidates = candidates.data();
    job.count = static_cast<int32_t>(candidates.size());
    job.bits = params.bits;
    job.range_min = low;
    job.range_max = high;
    job.norm = params.norm;
    job.offset = offset;
    job.dtype = params.dtype;
    return job;
  }
};

using Kernel = void (*)(const cpu::SearchRangeJob& job, int64_t begin, int64_t end, double* sums);

// Sums over all elements, for each candidate.
std::vector<double> sum_elements(const Search& search, Kernel kernel, const std::vector<int32_t>& candidates) {
  const cpu::SearchRangeJob job = search.job(candidates);
  const int64_t elements = search.elements;
  const int64_t wanted = std::min((elements + kPart - 1) / kPart, kMaximumParts);
  const int64_t size = ((elements + wanted - 1) / wanted + kPart - 1) / kPart * kPart;
  const int64_t parts = (elements + size - 1) / size;
  std::vector<double> sums(parts * job.count);
  at::parallel_for(0, parts, 1, [&](int64_t first, int64_t last) {
    for (int64_t part = first; part < last; ++part) {
      kernel(job, part * size, std::min(elements, (part + 1) * size), sums.data() + part * job.count);
    }
  });
  for (int64_t part = 1; part < parts; ++part) {
    for (int32_t c = 0; c < job.count; ++c) sums[c] += sums[part * job.count + c];
  }
  sums.resize(job.count);
  return sums;
}

// Bins that hold something: where they are and how many elements they hold.
struct Histogram {
  std::vector<float> centres;
  std::vector<float> counts;
  double half_bin;
};

int64_t bins_for(const Search& search) {
  const int64_t resolving = int64_t{1} << std::min(search.params.bits + 10, 16);
  int64_t bins = kMinimumBins;
  while (bins < resolving && 2 * bins * kElementsPerBin <= search.elements) bins *= 2;
  return bins;
}

Histogram make_histogram(const Search& search, int64_t bins) {
  const int64_t elements = search.elements;
  cpu::HistogramJob job{};
  job.x = search.x;
  job.range_min = search.low;
  job.bins_per_unit = static_cast<float>(static_cast<double>(bins) / (static_cast<double>(search.high) - search.low));
  job.bins = static_cast<int32_t>(bins);
  job.dtype = search.params.dtype;

  // Counts are exact in any order, so here the parts may follow the threads.
  const int64_t available = at::in_parallel_region() ? 1 : at::get_num_threads();
  const int64_t threads = std::min<int64_t>(available, (elements + kGrain - 1) / kGrain);
  const int64_t parts = std::max(threads, elements >> 31);
  const int64_t size = (elements + parts - 1) / parts;
  std::vector<uint32_t> counts(parts * bins);
  at::parallel_for(0, parts, 1, [&](int64_t first, int64_t last) {
    for (int64_t part = first; part < last; ++part) {
      kernels().count(job, part * size, std::min(elements, (part + 1) * size), counts.data() + part * bins);
    }
  });

  Histogram histogram;
  const double width = 1.0 / job.bins_per_unit;
  const double largest = std::max(std::fabs(search.low), std::fabs(search.high));
  // Beside half the width: the rounding of the bin's index and place, and of the quantizer.
  histogram.half_bin = 0.52 * width + std::ldexp(largest, -20);
  for (int64_t bin = 0; bin < bins; ++bin) {
    uint64_t count = 0;
    for (int64_t part = 0; part < parts; ++part) count += counts[part * bins + bin];
    if (count == 0) continue;
    histogram.centres.push_back(static_cast<float>(search.low + (static_cast<double>(bin) + 0.5) * width));
    histogram.counts.push_back(static_cast<float>(count));
  }
  return histogram;
}

std::vector<double> sum_histogram(const Search& search, const Histogram& histogram, Kernel kernel,
                                  const std::vector<int32_t>& candidates) {
  cpu::SearchRangeJob job = search.job(candidates);
  job.x = histogram.centres.data();
  job.weights = histogram.counts.data();
  std::vector<double> sums(candidates.size());
  at::parallel_for(0, candidates.size(), 4, [&](int64_t first, int64_t last) {
    cpu::SearchRangeJob part = job;
    part.candidates += first;
    part.count = static_cast<int32_t>(last - first);
    kernel(part, 0, histogram.centres.size(), sums.data() + first);
  });
  return sums;
}

constexpr double kRounding = 1.0001;  // of powers and counts

size_t least(const std::vector<double>& values) {
  return std::min_element(values.begin(), values.end()) - values.begin();
}

// The candidates that are not above a limit.
std::vector<int32_t> within(const std::vector<int32_t>& candidates, const std::vector<double>& values, double limit) {
  std::vector<int32_t> result;
  for (size_t c = 0; c < candidates.size(); ++c) {
    if (!(values[c] > limit)) result.push_back(candidates[c]);
  }
  return result;
}

// The candidates that may have the least loss, by the squares of their errors: no mean of higher powers, to the root,
// is below that of squares. sum(kernel, candidates) may be up to `reach` off the errors of the elements.
template <typename Sum>
std::vector<int32_t> possible_by_squares(const Search& search, const std::vector<int32_t>& candidates, double reach,
                                         const Sum& sum) {
  const double norm = search.params.norm;
  const double elements = static_cast<double>(search.elements);
  if (norm < 2 || candidates.size() == 1) return candidates;
  std::vector<double> roots = sum(kernels().sum_squares, candidates);
  for (double& root : roots) root = std::sqrt(root / elements);
  const double loss = sum(kernels().sum_errors, {candidates[least(roots)]})[0];
  const double limit = (std::pow(loss / elements, 1 / norm) * kRounding + 2 * reach) * kRounding;
  return within(candidates, roots, limit);
}

// The candidates that may have the least loss, by bounds that hold for every placement of the elements in their bins.
std::vector<int32_t> possible_winners(const Search& search, const Histogram& histogram,
                                      std::vector<int32_t> candidates) {
  const auto sum = [&](Kernel kernel, const std::vector<int32_t>& some) {
    return sum_histogram(search, histogram, kernel, some);
  };
  // The triangle inequality: of the norm itself from 1 on, of its power below 1. In units of one step, see candidate.h.
  const double norm = search.params.norm;
  const double root = norm >= 1 ? 1 / norm : 1;
  const double step = std::exp2(search.offset / norm);
  const double reach = std::pow(histogram.half_bin * step, norm * root);
  candidates = possible_by_squares(search, candidates, reach, sum);
  std::vector<double> losses = sum(kernels().sum_errors, candidates);
  for (double& loss : losses) loss = std::pow(loss / search.elements, root);
  return within(candidates, losses, (losses[least(losses)] * kRounding + 2 * reach) * kRounding);
}

int32_t best_candidate(Search search) {
  const SearchRangeParams& params = search.params;
  const Affine first = make_candidate(search.low, search.high, 0, params.bits).affine;
  if (!is_searchable(first)) return 0;
  search.offset = power_offset(search.low, search.high, first, params.norm);
  std::vector<int32_t> candidates(params.candidates);
  std::iota(candidates.begin(), candidates.end(), 0);
  const int64_t bins = bins_for(search);
  // Bins are found in float32, where a wider range overflows.
  const bool countable = search.low < search.high && std::isfinite(search.high - search.low);
  const auto sum = [&](Kernel kernel, const std::vector<int32_t>& some) { return sum_elements(search, kernel, some); };
  if (search.elements >= bins * kElementsPerBin && countable) {
    candidates = possible_winners(search, make_histogram(search, bins), std::move(candidates));
  } else {
    candidates = possible_by_squares(search, candidates, 0.0, sum);
  }
  if (candidates.size() == 1) return candidates[0];
  return candidates[least(sum(kernels().sum_errors, candidates))];
}

// Searches one channel, whose elements lie together.
void search_channel(const SearchRangeParams& params, const void* x, int64_t channel) {
  Search search{};
  search.params = params;
  search.x = x;
  search.elements = params.length();
  find_range(x, search.elements, params.dtype, &search.low, &search.high);
  const float shrink = shrink_of(best_candidate(search));
  params.range_min[channel] = mul(search.low, shrink);
  params.range_max[channel] = mul(search.high, shrink);
}

// Copies `count` channels from `first` on, one after the other, side by side so that what lies together is read once.
void gather(const SearchRangeParams& params, int64_t size, int64_t first, int64_t count, char* target) {
  const int64_t piece = params.inner * size;
  const char* source = static_cast<const char*>(params.x) + first * piece;
  for (int64_t o = 0; o < params.outer; ++o, source += params.channels * piece) {
    for (int64_t c = 0; c < count; ++c) std::memcpy(target + (c * params.outer + o) * piece, source + c * piece, piece);
  }
}

void search_channels(const SearchRangeParams& params, int64_t size, int64_t begin, int64_t end) {
  constexpr int64_t kTogether = 16;
  const int64_t bytes = params.length() * size;
  if (params.outer == 1) {
    for (int64_t c = begin; c < end; ++c) search_channel(params, static_cast<const char*>(params.x) + c * bytes, c);
    return;
  }
  std::vector<char> gathered(std::min(end - begin, kTogether) * bytes);
  for (int64_t first = begin; first < end; first += kTogether) {
    const int64_t count = std::min(end - first, kTogether);
    gather(params, size, first, count, gathered.data());
    for (int64_t c = 0; c < count; ++c) search_channel(params, gathered.data() + c * bytes, first + c);
  }
}

void search_all(const SearchRangeParams& params, int64_t size) {
  // With fewer channels than threads each channel takes all of them.
  if (params.channels < at::get_num_threads()) return search_channels(params, size, 0, params.channels);
  for_each_part(params.channels, params.length() * params.candidates,
                [&](int64_t begin, int64_t end) { search_channels(params, size, begin, end); });
}

template <Device device>
std::tuple<Tensor, Tensor> forward(const Tensor& given, int64_t bits, int64_t candidates, double norm,
                                   std::optional<int64_t> axis) {
  const char* op = "search_range";
  const Guard<device> guard(given);
  require(given.numel() > 0, op, "x");
  const Input input = check_input(op, given, bits, axis);
  require(candidates >= 1 && candidates <= kMaximumCandidates, op, "candidates");
  require(norm > 0 && norm <= kMaximumNorm, op, "norm");
  auto params = make_params<SearchRangeParams>(input, bits);
  params.candidates = static_cast<int32_t>(candidates);
  params.norm = static_cast<float>(norm);
  Tensor range_min = at::empty(input.range_shape, floats_like(given));
  Tensor range_max = at::empty(input.range_shape, floats_like(given));
  params.range_min = range_min.mutable_data_ptr<float>();
  params.range_max = range_max.mutable_data_ptr<float>();
  if constexpr (device == Device::kCPU) {
    search_all(params, static_cast<int64_t>(input.x.element_size()));
  } else {
    const Tensor workspace = at::empty({search_range_workspace_cuda(params)}, floats_like(given).dtype(at::kDouble));
    params.workspace = workspace.mutable_data_ptr<double>();
    launch(search_range_cuda, params);
  }
  return {range_min, range_max};
}

template <Device device>
void register_ops(torch::Library& library) {
  library.impl("search_range", &forward<device>);
}

SYNQ_REGISTER(register_ops)

}  // namespace
}  // namespace synq
