// synq_fast::patch_similarity_entropy, alone and with its gradient.
#include "patch_similarity_entropy.h"

#include <ATen/ops/empty.h>

#include <cmath>
#include <limits>
#include <tuple>
#include <vector>

#include "cpu/patch_similarity_entropy.h"
#include "ops/device.h"
#include "ops/parallel.h"
#include "ops/tensors.h"

namespace synq {
namespace {

using at::Tensor;
using Results = std::tuple<Tensor, Tensor>;  // the gradient is undefined unless asked for

const cpu::PatchSimilarityKernels& kernels() {
  using namespace cpu;
  return SYNQ_SELECT(patch_similarity_kernels);
}

struct PatchTokens {
  Tensor tokens;  // contiguous
  DType dtype;
  DensityEstimate estimate;
};

PatchTokens check_tokens(const char* op, const Tensor& tokens, int64_t points, double bandwidth, double eps) {
  const DType dtype = check_dtype(op, "tokens", tokens);
  require(tokens.dim() == 3 && tokens.size(1) > 0 && tokens.size(2) > 0, op, "tokens");
  require(points >= 2 && points <= kMaximumPoints, op, "points");
  require(bandwidth > 0 && std::isfinite(bandwidth), op, "bandwidth");
  require(eps > 0 && std::isfinite(eps), op, "eps");
  return {tokens.contiguous(), dtype, {points, tokens.size(1) * tokens.size(1), bandwidth, eps}};
}

int64_t padded_to_block(int64_t count) { return (count + cpu::kTokenBlock - 1) / cpu::kTokenBlock * cpu::kTokenBlock; }

Tensor floats(const Tensor& like, at::IntArrayRef sizes) {
  return at::empty(sizes, like.options().dtype(at::kFloat).memory_format(std::nullopt));
}

// One call: the buffers, and the job that points into them.
struct Run {
  const PatchTokens& input;
  cpu::SimilarityJob job{};
  int64_t batch;
  int64_t tasks;
  Tensor unit;
  Tensor transposed;
  Tensor inverse;
  Tensor similarity;
  float low = 0.0f;
  float high = 0.0f;
  std::vector<float> grid;
  std::vector<float> slope;
  std::vector<double> sums;

  explicit Run(const PatchTokens& given) : input(given), batch(given.tokens.size(0)) {
    job.count = input.tokens.size(1);
    job.channels = input.tokens.size(2);
    job.padded = padded_to_block(job.count);
    job.width = padded_to_block(job.channels);
    job.points = input.estimate.points;
    job.dtype = input.dtype;
    job.exponent = input.estimate.exponent();
    job.tokens = input.tokens.const_data_ptr();
    tasks = batch * job.blocks();
  }

  // Calls each stage(begin, end) for all tasks, stage after stage: of one image after another where there are images
  // enough for the threads, which stays in cache and makes threads wait for each other once; else of the whole batch.
  // `weight`: roughly how many elementwise operations one task is worth.
  template <typename... Stages>
  void run_stages(int64_t weight, const Stages&... stages) const {
    const int64_t blocks = job.blocks();
    const int64_t threads = at::get_num_threads();
    if (batch >= 4 * threads || batch % threads == 0) {
      for_each_part(batch, weight * blocks, [&](int64_t begin, int64_t end) {
        for (int64_t image = begin; image < end; ++image) (stages(image * blocks, (image + 1) * blocks), ...);
      });
    } else {
      (for_each_part(tasks, weight, stages), ...);
    }
  }
  int64_t product_weight() const { return job.padded * job.width / 4; }
  int64_t kernel_weight() const { return 2 * job.padded * job.points; }

  void find_similarities() {
    unit = floats(input.tokens, {batch, job.padded, job.width});
    inverse = floats(input.tokens, {batch, job.padded});
    transposed = floats(input.tokens, {batch, job.channels, job.padded});
    similarity = floats(input.tokens, {batch, job.padded, job.padded});
    job.unit = unit.mutable_data_ptr<float>();
    job.inverse = inverse.mutable_data_ptr<float>();
    job.transposed = transposed.mutable_data_ptr<float>();
    job.similarity = similarity.mutable_data_ptr<float>();
    // Extrema do not depend on the order of comparison.
    std::vector<float> lows(tasks, std::numeric_limits<float>::infinity());
    std::vector<float> highs(tasks, -std::numeric_limits<float>::infinity());
    run_stages(
        product_weight(), [&](int64_t begin, int64_t end) { kernels().normalize(job, begin, end); },
        [&](int64_t begin, int64_t end) { kernels().similarities(job, begin, end, &lows[begin], &highs[begin]); });
    low = lows[0];
    high = highs[0];
    for (int64_t task = 1; task < tasks; ++task) {
      if (lows[task] < low || lows[task] != lows[task]) low = lows[task];
      if (highs[task] > high || highs[task] != highs[task]) high = highs[task];
    }
    transposed.reset();
    grid.resize(job.points);
    for (int64_t i = 0; i < job.points; ++i) grid[i] = input.estimate.point(low, high, i);
    job.grid = grid.data();
    sums.resize(tasks * job.points);
  }

  // The entropies of the images that begin within these tasks, and the slopes where there is room for them.
  void finish(int64_t begin, int64_t end, float* entropy) {
    const int64_t blocks = job.blocks();
    for (int64_t image = (begin + blocks - 1) / blocks; image * blocks < end; ++image) {
      double total = 0.0;
      for (int64_t i = 0; i < job.points; ++i) {
        double sum = 0.0;
        for (int64_t block = 0; block < blocks; ++block) sum += sums[(image * blocks + block) * job.points + i];
        const double density = input.estimate.density(sum);
        const double width = input.estimate.width(low, high, i);
        total += width * DensityEstimate::entropy(density);
        if (!slope.empty()) slope[image * job.points + i] = input.estimate.slope(density, width);
      }
      entropy[image] = static_cast<float>(total);
    }
  }

  Tensor find_entropy() {
    Tensor entropy = floats(input.tokens, {batch});
    float* result = entropy.mutable_data_ptr<float>();
    run_stages(
        kernel_weight(), [&](int64_t begin, int64_t end) { kernels().densities(job, begin, end, sums.data()); },
        [&](int64_t begin, int64_t end) { finish(begin, end, result); });
    return entropy;
  }

  std::tuple<Tensor, Tensor> find_entropy_and_gradient() {
    Tensor entropy = floats(input.tokens, {batch});
    Tensor gradient = floats(input.tokens, input.tokens.sizes());
    float* result = entropy.mutable_data_ptr<float>();
    slope.resize(batch * job.points);
    job.slope = slope.data();
    job.gradient = gradient.mutable_data_ptr<float>();
    run_stages(
        2 * kernel_weight() + 2 * product_weight(),
        [&](int64_t begin, int64_t end) { kernels().densities(job, begin, end, sums.data()); },
        [&](int64_t begin, int64_t end) { finish(begin, end, result); },
        [&](int64_t begin, int64_t end) { kernels().slopes(job, begin, end); },
        [&](int64_t begin, int64_t end) {
          std::vector<float> scratch(cpu::kTokenBlock * job.width);
          kernels().gradients(job, begin, end, scratch.data());
        });
    return {entropy, gradient};
  }
};

template <Device device>
Results evaluate_on_gpu(const PatchTokens& input, bool with_gradient) {
  const auto floats = floats_like(input.tokens);
  const auto sizes = input.tokens.sizes();
  constexpr int64_t kMost = 1 << 30;  // kernels of products count in 32 bits
  require(sizes[1] <= kMost && sizes[2] <= kMost, "patch_similarity_entropy", "tokens");
  const int64_t points = input.estimate.points;
  Tensor entropy = at::empty({sizes[0]}, floats);
  Tensor gradient;
  PatchSimilarityParams params{};
  params.tokens = input.tokens.const_data_ptr();
  params.batch = sizes[0];
  params.count = sizes[1];
  params.channels = sizes[2];
  params.estimate = input.estimate;
  params.dtype = input.dtype;

  Tensor unit = at::empty(sizes, floats);
  Tensor inverse = at::empty({sizes[0], sizes[1]}, floats);
  params.unit = unit.mutable_data_ptr<float>();
  params.inverse = inverse.mutable_data_ptr<float>();

  Tensor similarity = at::empty({sizes[0], sizes[1], sizes[1]}, floats);
  Tensor extrema = at::empty({2, sizes[0] * params.tiles()}, floats);
  Tensor range = at::empty({2 + points}, floats);
  Tensor sums = at::empty({sizes[0], params.splits(), points}, floats.dtype(at::kDouble));
  Tensor slope;
  params.similarity = similarity.mutable_data_ptr<float>();
  params.extrema = extrema.mutable_data_ptr<float>();
  params.range = range.mutable_data_ptr<float>();
  params.sums = sums.mutable_data_ptr<double>();
  params.entropy = entropy.mutable_data_ptr<float>();
  if (with_gradient) {
    slope = at::empty({sizes[0], points}, floats);
    params.slope = slope.mutable_data_ptr<float>();
  }
  launch(patch_similarity_entropy_cuda, params);
  if (!with_gradient) return {entropy, gradient};

  gradient = at::empty(sizes, floats);
  params.gradient = gradient.mutable_data_ptr<float>();
  launch(patch_similarity_gradient_cuda, params);
  return {entropy, gradient};
}

template <Device device>
Results evaluate(const char* op, const Tensor& tokens, int64_t points, double bandwidth, double eps,
                 bool with_gradient) {
  const Guard<device> guard(tokens);
  const PatchTokens input = check_tokens(op, tokens, points, bandwidth, eps);
  if (tokens.size(0) == 0) return {floats(tokens, {0}), with_gradient ? floats(tokens, tokens.sizes()) : Tensor()};
  if constexpr (device == Device::kCPU) {
    Run run(input);
    run.find_similarities();
    if (with_gradient) return run.find_entropy_and_gradient();
    return {run.find_entropy(), Tensor()};
  } else {
    return evaluate_on_gpu<device>(input, with_gradient);
  }
}

template <Device device>
Tensor forward(const Tensor& tokens, int64_t points, double bandwidth, double eps) {
  return std::get<0>(evaluate<device>("patch_similarity_entropy", tokens, points, bandwidth, eps, false));
}

template <Device device>
Results with_gradient(const Tensor& tokens, int64_t points, double bandwidth, double eps) {
  return evaluate<device>("patch_similarity_entropy_with_gradient", tokens, points, bandwidth, eps, true);
}

template <Device device>
void register_ops(torch::Library& library) {
  library.impl("patch_similarity_entropy", &forward<device>);
  library.impl("patch_similarity_entropy_with_gradient", &with_gradient<device>);
}

SYNQ_REGISTER(register_ops)

}  // namespace
}  // namespace synq
