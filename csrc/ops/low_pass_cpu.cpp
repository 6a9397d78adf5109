// The CPU implementation behind synq_fast::low_pass.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <cstdint>
#include <memory>

#include "cpu/low_pass.h"
#include "ops/low_pass_choice.h"
#include "ops/low_pass_op.h"
#include "ops/low_pass_plan.h"
#include "ops/parallel.h"
#include "ops/tensors.h"

namespace synq {
namespace {

using at::Tensor;

// An image and its intermediate should stay in the second-level cache between the passes.
constexpr int64_t kGroupElements = 65536;
// With fewer groups some threads would wait for others.
constexpr int64_t kGroupsPerThread = 4;

const cpu::LowPassKernels& kernels() {
  using namespace cpu;
  return SYNQ_SELECT(low_pass_kernels);
}

class Scratch {
 public:
  explicit Scratch(int64_t floats) : memory_(new float[floats + 16]) {}
  float* get() const {
    return reinterpret_cast<float*>((reinterpret_cast<uintptr_t>(memory_.get()) + 63) & ~uintptr_t{63});
  }

 private:
  std::unique_ptr<float[]> memory_;  // left uninitialised
};

// The passes over a number of images that follow each other in memory.
struct Passes {
  cpu::FilterPass items[3];
  int count;

  Passes(const LowPassPlan& plan, const Images& images, int64_t number, const char* x, DType x_type, char* y,
         DType y_type, float* middle) {
    cpu::FilterPass vertical{};
    vertical.outer = number;
    vertical.inner = images.width * images.channels;
    vertical.axis = plan.rows->view();
    vertical.x = x;
    vertical.x_type = x_type;
    vertical.y = middle;
    vertical.y_type = DType::kFloat32;
    cpu::FilterPass horizontal{};
    horizontal.outer = number * images.height;
    horizontal.inner = images.channels;
    horizontal.axis = plan.columns->view();
    horizontal.x = middle;
    horizontal.x_type = DType::kFloat32;
    horizontal.y = y;
    horizontal.y_type = y_type;
    if (plan.mask.empty()) {
      vertical.step = horizontal.step = cpu::FilterStep::kFilter;
      items[0] = vertical;
      items[1] = horizontal;
      count = 2;
      return;
    }
    vertical.step = cpu::FilterStep::kAnalyse;
    items[0] = vertical;
    horizontal.step = cpu::FilterStep::kMask;
    horizontal.mask = plan.mask.data();
    horizontal.mask_period = images.height;
    horizontal.y = middle;
    horizontal.y_type = DType::kFloat32;
    items[1] = horizontal;
    vertical.step = cpu::FilterStep::kSynthesize;
    vertical.x = middle;
    vertical.x_type = DType::kFloat32;
    vertical.y = y;
    vertical.y_type = y_type;
    items[2] = vertical;
    count = 3;
  }

  int64_t scratch() const {
    int64_t most = 0;
    for (int i = 0; i < count; ++i) most = std::max(most, kernels().scratch(items[i]));
    return most;
  }
};

// Where x is float32 so is y, and the intermediate lives in y.
void filter_images(const Images& images, const LowPassPlan& plan, Tensor& y) {
  const DType type = check_dtype("low_pass", "x", images.x);
  const char* source = static_cast<const char*>(images.x.const_data_ptr());
  char* target = static_cast<char*>(y.mutable_data_ptr());
  const bool in_place = type == DType::kFloat32;
  const int64_t image = images.height * images.width * images.channels;
  const int64_t image_bytes = image * images.x.element_size();
  const int64_t group = std::max<int64_t>(1, kGroupElements / image);
  const int64_t groups = (images.images + group - 1) / group;

  if (groups >= kGroupsPerThread * at::get_num_threads() || images.x.numel() <= kGrain) {
    for_each_part(groups, group * image, [&](int64_t begin, int64_t end) {
      const int64_t first = begin * group;
      const int64_t last = std::min(end * group, images.images);
      const Scratch middle(in_place ? 0 : std::min(group, last - first) * image);
      std::unique_ptr<Scratch> scratch;
      for (int64_t start = first; start < last; start += group) {
        char* y_start = target + start * image_bytes;
        const Passes passes(plan, images, std::min(group, last - start), source + start * image_bytes, type, y_start,
                            type, in_place ? reinterpret_cast<float*>(y_start) : middle.get());
        if (!scratch) scratch = std::make_unique<Scratch>(passes.scratch());
        for (int i = 0; i < passes.count; ++i) {
          kernels().run(passes.items[i], scratch->get(), 0, kernels().tiles(passes.items[i]));
        }
      }
    });
    return;
  }
  // Few large images: the threads share each pass.
  const Tensor middle = in_place ? y : empty_like_images(images, at::kFloat);
  const Passes passes(plan, images, images.images, source, type, target, type, middle.mutable_data_ptr<float>());
  for (int i = 0; i < passes.count; ++i) {
    const int64_t tiles = kernels().tiles(passes.items[i]);
    for_each_part(tiles, images.x.numel() / tiles, [&](int64_t begin, int64_t end) {
      const Scratch scratch(passes.scratch());
      kernels().run(passes.items[i], scratch.get(), begin, end);
    });
  }
}

Tensor low_pass_cpu(const Tensor& x, double cutoff, std::string_view kind, int64_t order, std::string_view method) {
  const Response response = Response::parse(cutoff, kind, order);
  check_dtype("low_pass", "x", x);
  const Images images = as_images(x);
  Tensor y = empty_like_images(images, x.scalar_type());
  if (x.numel() == 0) return y;
  const bool prefers_matrix = prefers_matrix_cpu(response.is_separable(), images.height, images.width);
  const Method preferred = prefers_matrix ? Method::kMatrix : Method::kSpectrum;
  const Method chosen = parse_method(method).value_or(preferred);
  if (chosen == Method::kSpectrum) return y.copy_(filter_spectrum(images.x, response));
  filter_images(images, *low_pass_plan(images.height, images.width, response, kernels()), y);
  return y;
}

}  // namespace

TORCH_LIBRARY_IMPL(synq_fast, CPU, m) { m.impl("low_pass", &low_pass_cpu); }

}  // namespace synq
