// The CPU implementation behind synq_fast::patch_similarity_entropy.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <limits>
#include <tuple>
#include <vector>

#include "cpu/patch_similarity_entropy.h"
#include "ops/parallel.h"
#include "ops/patch_tokens.h"

namespace synq {
namespace {

using at::Tensor;

const cpu::PatchSimilarityKernels& kernels() {
  using namespace cpu;
  return SYNQ_SELECT(patch_similarity_kernels);
}

int64_t padded_to_block(int64_t count) { return (count + cpu::kTokenBlock - 1) / cpu::kTokenBlock * cpu::kTokenBlock; }

Tensor floats(const Tensor& like, at::IntArrayRef sizes) {
  return at::empty(sizes, like.options().dtype(at::kFloat).memory_format(std::nullopt));
}

// One call: the buffers, and the job that points into them.
struct Run {
  PatchTokens input;
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

  Run(const char* op, const Tensor& tokens, int64_t points, double bandwidth, double eps)
      : input(check_patch_tokens(op, tokens, points, bandwidth, eps)) {
    job.count = tokens.size(1);
    job.channels = tokens.size(2);
    job.padded = padded_to_block(job.count);
    job.width = padded_to_block(job.channels);
    job.points = points;
    job.dtype = input.dtype;
    job.exponent = input.estimate.exponent();
    job.tokens = input.tokens.const_data_ptr();
    batch = tokens.size(0);
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

Tensor patch_similarity_entropy_cpu(const Tensor& tokens, int64_t points, double bandwidth, double eps) {
  Run run("patch_similarity_entropy", tokens, points, bandwidth, eps);
  if (run.tasks == 0) return floats(tokens, {0});
  run.find_similarities();
  return run.find_entropy();
}

std::tuple<Tensor, Tensor> patch_similarity_entropy_with_gradient_cpu(const Tensor& tokens, int64_t points,
                                                                      double bandwidth, double eps) {
  Run run("patch_similarity_entropy_with_gradient", tokens, points, bandwidth, eps);
  if (run.tasks == 0) return {floats(tokens, {0}), floats(tokens, tokens.sizes())};
  run.find_similarities();
  return run.find_entropy_and_gradient();
}

}  // namespace

TORCH_LIBRARY_IMPL(synq_fast, CPU, m) {
  m.impl("patch_similarity_entropy", &patch_similarity_entropy_cpu);
  m.impl("patch_similarity_entropy_with_gradient", &patch_similarity_entropy_with_gradient_cpu);
}

}  // namespace synq
