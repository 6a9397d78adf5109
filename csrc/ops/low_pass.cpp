// synq_fast::low_pass. On a GPU nothing waits for the device, apart from the first use of a mask or a matrix.
#include "low_pass.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "cpu/low_pass.h"
#include "ops/device.h"
#include "ops/low_pass_choice.h"
#include "ops/low_pass_op.h"
#include "ops/low_pass_plan.h"
#include "ops/lru_cache.h"
#include "ops/matmul_precision.h"
#include "ops/parallel.h"

#if defined(SYNQ_CUDA)
#include <c10/cuda/CUDAGraphsC10Utils.h>
#include <c10/cuda/CUDAStream.h>
#endif

namespace synq {
namespace {

using at::Tensor;

// An image and its intermediate should stay in the second-level cache between the passes.
constexpr int64_t kGroupElements = 65536;
// With fewer groups some threads would wait for others.
constexpr int64_t kGroupsPerThread = 4;
// Of 0.25 MB at most.
constexpr size_t kKeptMatrices = 64;

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

  Passes(const LowPassPlan& plan, const Planes& images, int64_t number, const char* x, DType x_type, char* y,
         DType y_type, float* middle) {
    cpu::FilterPass vertical{};
    vertical.outer = number;
    vertical.inner = images.width * images.step;
    vertical.axis = plan.rows->view();
    vertical.x = x;
    vertical.x_type = x_type;
    vertical.y = middle;
    vertical.y_type = DType::kFloat32;
    cpu::FilterPass horizontal{};
    horizontal.outer = number * images.height;
    horizontal.inner = images.step;
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
void filter_images(const Planes& images, const LowPassPlan& plan, Tensor& y) {
  const DType type = check_dtype("low_pass", "x", images.x);
  const char* source = static_cast<const char*>(images.x.const_data_ptr());
  char* target = static_cast<char*>(y.mutable_data_ptr());
  const bool in_place = type == DType::kFloat32;
  const int64_t image = images.height * images.width * images.step;
  const int64_t image_bytes = image * images.x.element_size();
  const int64_t group = std::max<int64_t>(1, kGroupElements / image);
  const int64_t groups = (images.planes + group - 1) / group;

  if (groups >= kGroupsPerThread * at::get_num_threads() || images.x.numel() <= kGrain) {
    for_each_part(groups, group * image, [&](int64_t begin, int64_t end) {
      const int64_t first = begin * group;
      const int64_t last = std::min(end * group, images.planes);
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
  const Passes passes(plan, images, images.planes, source, type, target, type, middle.mutable_data_ptr<float>());
  for (int i = 0; i < passes.count; ++i) {
    const int64_t tiles = kernels().tiles(passes.items[i]);
    for_each_part(tiles, images.x.numel() / tiles, [&](int64_t begin, int64_t end) {
      const Scratch scratch(passes.scratch());
      kernels().run(passes.items[i], scratch.get(), begin, end);
    });
  }
}

struct TableKey {
  int64_t n;
  double cutoff;

  bool operator==(const TableKey& other) const { return n == other.n && cutoff == other.cutoff; }
};
using Table = std::shared_ptr<const std::vector<float>>;

// What LowPassAxis::table describes.
Table build_table(int64_t n, const Response& response) {
  std::vector<double> wave(n);
  for (int64_t i = 0; i < n; ++i) wave[i] = std::cos(2 * M_PI * static_cast<double>(i) / static_cast<double>(n));
  std::vector<double> taps(2 * n + 1);
  for (int64_t d = 0; d < n; ++d) {
    double sum = 0;
    for (int64_t k = 0; k < n; ++k) {
      const double frequency = static_cast<double>(std::min(k, n - k));
      sum += response.gain(frequency * frequency) * wave[k * d % n];
    }
    taps[d] = taps[d + n] = sum / static_cast<double>(n);
  }
  taps[2 * n] = taps[0];
  std::vector<float> table;
  table.reserve(low_pass_table_size(n));
  if (n % 2 != 0) {
    for (int64_t d = 0; d <= n; ++d) table.push_back(static_cast<float>(taps[d] / 2));
  } else {
    const int64_t h = n / 2;
    for (int64_t d = 0; d <= h; ++d) table.push_back(static_cast<float>((taps[d] + taps[d + h]) / 4));
    for (int64_t d = 0; d <= h; ++d) table.push_back(static_cast<float>((taps[d] - taps[d + h]) / 4));
  }
  return std::make_shared<const std::vector<float>>(std::move(table));
}

Table find_table(int64_t n, const Response& response) {
  static LruCache<TableKey, Table> tables(64);
  return tables.get({n, response.cutoff}, [&] { return build_table(n, response); });
}

// Whether a CUDA graph is being recorded.
template <Device device>
bool is_capturing() {
#if defined(SYNQ_CUDA)
  if constexpr (device == Device::kCUDA) {
    return c10::cuda::currentStreamCaptureStatusMayInitCtx() != c10::cuda::CaptureStatus::None;
  }
#endif
  return false;
}

struct MatrixKey {
  int64_t n;
  double cutoff;
  at::Device device;

  bool operator==(const MatrixKey& other) const {
    return n == other.n && cutoff == other.cutoff && device == other.device;
  }
};

// The filter's matrix for one side. The first ones are kept for good, so that graphs and every stream may hold on to
// them; the rest, and those that a graph needs and nothing has made before, are made at each call.
template <Device device>
Tensor find_matrix(int64_t n, const Response& response, const at::TensorOptions& options) {
  static std::mutex mutex;
  // Never destroyed: when a process ends, the device may be gone before its tensors.
  static auto& kept = *new std::vector<std::pair<MatrixKey, Tensor>>;
  const MatrixKey key{n, response.cutoff, options.device()};
  const std::lock_guard<std::mutex> lock(mutex);
  for (const auto& [known, matrix] : kept) {
    if (known == key) return matrix;
  }
  const Tensor matrix = at::empty({low_pass_matrix_size(n)}, options);
  const Table table = find_table(n, response);
  launch(low_pass_matrix_cuda, LowPassMatrixParams{n, table->data(), matrix.mutable_data_ptr<float>()});
  if (kept.size() == kKeptMatrices || is_capturing<device>()) return matrix;
#if defined(SYNQ_CUDA)
  c10::cuda::getCurrentCUDAStream().synchronize();
#endif
  kept.emplace_back(key, matrix);
  return matrix;
}

template <Device device>
void filter_products(const Planes& images, const Response& response, Tensor& y) {
  require(response.is_separable() && std::max(images.height, images.width) <= kLowPassLongestSide, "low_pass",
          "method");
  const at::TensorOptions floats = floats_like(images.x);
  const Tensor height = find_matrix<device>(images.height, response, floats);
  const Tensor width = find_matrix<device>(images.width, response, floats);
  LowPassParams params{};
  params.x = images.x.const_data_ptr();
  params.y = y.mutable_data_ptr();
  params.images = images.planes;
  params.channels = images.step;
  params.height = {images.height, height.const_data_ptr<float>()};
  params.width = {images.width, width.const_data_ptr<float>()};
  params.tf32 = matmul_uses_tf32();
  params.dtype = check_dtype("low_pass", "x", images.x);
  const Tensor workspace = at::empty({low_pass_workspace_cuda(params)}, floats);
  params.workspace = workspace.mutable_data_ptr<float>();
  launch(low_pass_cuda, params);
}

template <Device device>
Tensor forward(const Tensor& x, double cutoff, std::string_view kind, int64_t order, std::string_view method) {
  const Guard<device> guard(x);
  const Response response = Response::parse(cutoff, kind, order);
  check_dtype("low_pass", "x", x);
  const Planes images("low_pass", x);
  const std::optional<Method> wanted = parse_method(method);
  Tensor y = empty_like_images(images, x.scalar_type());
  if (x.numel() == 0) return y;
  const auto prefers_matrix = device == Device::kCPU ? prefers_matrix_cpu : prefers_matrix_cuda;
  const bool matrix = prefers_matrix(response.is_separable(), images.height, images.width);
  if (wanted.value_or(matrix ? Method::kMatrix : Method::kSpectrum) == Method::kSpectrum) {
    return y.copy_(filter_spectrum(images.x, response, is_capturing<device>()));
  }
  if constexpr (device == Device::kCPU) {
    filter_images(images, *low_pass_plan(images.height, images.width, response, kernels()), y);
  } else {
    filter_products<device>(images, response, y);
  }
  return y;
}

template <Device device>
void register_ops(torch::Library& library) {
  library.impl("low_pass", &forward<device>);
}

SYNQ_REGISTER(register_ops)

}  // namespace
}  // namespace synq
