#include "ops/quantized.h"

namespace synq {

Input check_input(const char* op, const at::Tensor& x, int64_t bits, std::optional<int64_t> axis,
                  std::optional<int64_t> groups) {
  require(bits >= 2 && bits <= 16, op, "bits");
  const DType dtype = check_dtype(op, "x", x);
  if (!axis) {
    require(!groups, op, "groups");
    return {{1, 1, x.numel()}, make_dense(x), dtype, {}};
  }
  const int64_t rank = x.dim();
  if (*axis < -rank || *axis >= rank) refuse_index(op, "axis");
  const int64_t dimension = *axis < 0 ? *axis + rank : *axis;
  const int64_t size = x.size(dimension);
  require(!groups || (*groups >= 1 && size % *groups == 0), op, "groups");
  const int64_t channels = groups.value_or(size);
  at::Tensor dense = make_dense(x);
  const Layout layout = layout_around(x.numel(), size, dense.stride(dimension), channels);
  return {layout, std::move(dense), dtype, {channels}};
}

Input check_channels(const char* op, const at::Tensor& x, int64_t bits) {
  require(x.dim() >= 2, op, "x");
  return check_input(op, x, bits, 1);
}

Input whole(const Input& input) { return {{1, 1, input.elements()}, input.x, input.dtype, {}}; }

at::Tensor check_range(const char* op, const char* name, const at::Tensor& range, const Input& input) {
  require_type(range.scalar_type() == at::kFloat, op, name);
  const int64_t rank = static_cast<int64_t>(input.range_shape.size());
  require(range.device() == input.x.device() && range.numel() == input.channels && (rank == 0 || range.dim() == rank),
          op, name);
  return range.contiguous();
}

}  // namespace synq
