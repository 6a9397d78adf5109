#include "ops/cam_maps.h"

namespace synq {
namespace {

// Whether the images of `x` are dense with the given strides; what has one element may have any stride.
bool has_strides(const at::Tensor& x, int64_t channel, int64_t row, int64_t column) {
  return (x.size(1) == 1 || x.stride(1) == channel) && (x.size(2) == 1 || x.stride(2) == row) &&
         (x.size(3) == 1 || x.stride(3) == column);
}

bool is_contiguous(const at::Tensor& x) { return has_strides(x, x.size(2) * x.size(3), x.size(3), 1); }

bool is_channels_last(const at::Tensor& x) { return has_strides(x, 1, x.size(1) * x.size(3), x.size(1)); }

}  // namespace

CamInput::CamInput(const char* op, const at::Tensor& given_activations, const at::Tensor& given_gradients)
    : ImageLayout{},
      activations(given_activations),
      gradients(given_gradients),
      dtype(check_dtype(op, "activations", given_activations)) {
  require_type(gradients.scalar_type() == activations.scalar_type(), op, "gradients");
  require(activations.dim() == 4 && (activations.size(0) == 0 || activations.numel() > 0), op, "activations");
  require(gradients.sizes() == activations.sizes() && gradients.device() == activations.device(), op, "gradients");
  samples = activations.size(0);
  channels = activations.size(1);
  height = activations.size(2);
  width = activations.size(3);
  positions = height * width;
  if (is_contiguous(activations) && is_contiguous(gradients)) return;
  innermost = is_channels_last(activations);
  if (innermost) {
    if (!is_channels_last(gradients)) gradients = gradients.contiguous(at::MemoryFormat::ChannelsLast);
    return;
  }
  if (!is_contiguous(activations)) activations = activations.contiguous();
  if (!is_contiguous(gradients)) gradients = gradients.contiguous();
}

CamSettings::CamSettings(const char* op, int64_t given_kind, double given_clamp, double given_eps)
    : kind(static_cast<CamKind>(given_kind)),
      clamp(static_cast<float>(given_clamp)),
      eps(static_cast<float>(given_eps)) {
  require(given_kind >= 0 && given_kind <= static_cast<int64_t>(CamKind::kHiResCam), op, "kind");
  // Minus infinity: no bound.
  const bool unbounded = given_clamp == -std::numeric_limits<double>::infinity();
  require(unbounded || (given_clamp >= 0 && std::isfinite(given_clamp)), op, "clamp");
  require(given_eps >= 0 && std::isfinite(given_eps), op, "eps");
}

at::Tensor check_map(const char* op, const char* name, const at::Tensor& map, int64_t images,
                     const at::Tensor& beside) {
  check_dtype(op, name, map);
  require(map.dim() == 4 && map.size(0) == images && map.size(1) == 1 && (images == 0 || map.numel() > 0) &&
              map.device() == beside.device(),
          op, name);
  return map.contiguous();
}

Spread::Spread(const char* op, const at::Tensor& given, const at::Tensor& coarse, const CamSettings& settings,
               bool given_channels_last, at::ScalarType given_dtype)
    : kind(settings.kind), clamp(settings.clamp), channels_last(given_channels_last) {
  require(coarse.dim() == 4 && coarse.size(1) == 1 && coarse.scalar_type() == at::kFloat, op, "coarse");
  const bool elements = by_element(kind);
  require(given.dim() == (elements ? 4 : 2) && given.size(0) == coarse.size(0) && given.device() == coarse.device() &&
              (!elements || (given.size(2) == coarse.size(2) && given.size(3) == coarse.size(3))),
          op, "weights");
  require_type(given.scalar_type() == (elements ? given_dtype : at::kFloat), op, "weights");
  const auto format = channels_last ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous;
  weights = elements ? given.contiguous(format) : given.contiguous();
  result = at::empty({coarse.size(0), given.size(1), coarse.size(2), coarse.size(3)},
                     coarse.options().dtype(given_dtype), format);
  dtype = check_dtype(op, "dtype", result);
}

cpu::CoarseJob make_coarse_job(const CamInput& input, const CamSettings& settings, at::Tensor& weights,
                               at::Tensor& coarse) {
  cpu::CoarseJob job{};
  job.activations = input.activations.const_data_ptr();
  job.gradients = input.gradients.const_data_ptr();
  job.activation_stride = input.activation_stride();
  job.gradient_stride = input.gradient_stride();
  job.channels = input.channels;
  job.positions = input.positions;
  job.channels_last = input.innermost;
  job.kind = settings.kind;
  job.clamp = settings.clamp;
  job.dtype = input.dtype;
  job.weights = weights.mutable_data_ptr<float>();
  job.coarse = coarse.mutable_data_ptr<float>();
  return job;
}

void spread_on_cpu(Spread& spread, const float* slope) {
  cpu::SpreadJob job{};
  spread.fill(job, slope);
  const int64_t length = job.channels_last ? job.channels : job.positions;
  for_each_part(spread.result.numel() / length, length,
                [&](int64_t begin, int64_t end) { coarse_kernels().spread(job, begin, end); });
}

at::Tensor make_stretches(const at::Tensor& coarse) {
  const int64_t bytes = coarse.size(0) * static_cast<int64_t>(sizeof(Stretch));
  return at::empty({bytes}, coarse.options().dtype(at::kByte));
}

CoarseParams make_coarse_params(const char* op, const CamInput& input, const CamSettings& settings, int64_t height,
                                int64_t width, at::Tensor& weights, at::Tensor& coarse, at::Tensor& stretches) {
  check_size(op, "activations", input.image_elements());
  check_size(op, "size", height * width);
  check_size(op, "size", 2 * input.height * width);
  CoarseParams params{};
  params.activations = input.activations.const_data_ptr();
  params.gradients = input.gradients.const_data_ptr();
  params.weights = weights.mutable_data_ptr<float>();
  params.coarse = coarse.mutable_data_ptr<float>();
  params.stretches = static_cast<Stretch*>(stretches.mutable_data_ptr());
  params.activation_stride = input.activation_stride();
  params.gradient_stride = input.gradient_stride();
  params.images = input.samples;
  params.channels = input.channels;
  params.height = input.height;
  params.width = input.width;
  params.map_height = height;
  params.map_width = width;
  params.channels_last = input.innermost ? 1 : 0;
  params.kind = settings.kind;
  params.clamp = settings.clamp;
  params.eps = settings.eps;
  params.dtype = input.dtype;
  return params;
}

MapParams make_map_params(const at::Tensor& coarse, at::Tensor& stretches, int64_t height, int64_t width, float eps) {
  MapParams params{};
  params.coarse = coarse.const_data_ptr<float>();
  params.stretches = static_cast<Stretch*>(stretches.mutable_data_ptr());
  params.images = coarse.size(0);
  params.height = coarse.size(2);
  params.width = coarse.size(3);
  params.map_height = height;
  params.map_width = width;
  params.eps = eps;
  params.dtype = DType::kFloat32;
  return params;
}

}  // namespace synq
