// synq_fast::pack_codes and synq_fast::unpack_codes.
#include "pack_codes.h"

#include <ATen/ops/empty.h>

#include "ops/device.h"
#include "ops/parallel.h"
#include "ops/tensors.h"

namespace synq {
namespace {

using at::Tensor;
using CpuKernel = void (*)(const PackCodesParams&, int64_t, int64_t);

const cpu::PackCodesKernels& kernels() {
  using namespace cpu;
  return SYNQ_SELECT(pack_codes_kernels);
}

PackCodesParams make_params(const Tensor& x, const Tensor& y, int64_t rows, int64_t length, int64_t bits) {
  PackCodesParams params{};
  params.x = static_cast<const uint8_t*>(x.const_data_ptr());
  params.y = static_cast<uint8_t*>(y.mutable_data_ptr());
  const bool is_stream = length * bits % 8 == 0;
  params.rows = is_stream ? 1 : rows;
  params.length = is_stream ? rows * length : length;
  params.bits = static_cast<int32_t>(bits);
  return params;
}

template <Device device, typename Launcher>
void compute(const PackCodesParams& params, CpuKernel kernel, Launcher launcher) {
  if (params.rows * params.length == 0) return;
  if constexpr (device == Device::kCPU) {
    for_each_part(params.rows * params.groups(), kCodesPerGroup,
                  [&](int64_t begin, int64_t end) { kernel(params, begin, end); });
  } else {
    launch(launcher, params);
  }
}

void check(const char* op, const char* name, const Tensor& x, at::ScalarType dtype, int64_t bits) {
  require_type(x.scalar_type() == dtype, op, name);
  require(x.dim() == 2, op, name);
  require(bits >= 2 && bits <= 8, op, "bits");
}

template <Device device>
Tensor pack(const Tensor& given, int64_t bits) {
  const char* op = "pack_codes";
  const Guard<device> guard(given);
  check(op, "codes", given, at::kChar, bits);
  const Tensor codes = given.contiguous();
  const int64_t rows = codes.size(0), length = codes.size(1);
  Tensor packed = at::empty({rows, (length * bits + 7) / 8}, codes.options().dtype(at::kByte));
  compute<device>(make_params(codes, packed, rows, length, bits), kernels().pack, pack_codes_cuda);
  return packed;
}

template <Device device>
Tensor unpack(const Tensor& given, int64_t bits, int64_t length) {
  const char* op = "unpack_codes";
  const Guard<device> guard(given);
  check(op, "packed", given, at::kByte, bits);
  require(length >= 0 && length / 8 <= given.size(1), op, "length");
  require(given.size(1) == (length * bits + 7) / 8, op, "packed");
  const Tensor packed = given.contiguous();
  const int64_t rows = packed.size(0);
  Tensor codes = at::empty({rows, length}, packed.options().dtype(at::kChar));
  compute<device>(make_params(packed, codes, rows, length, bits), kernels().unpack, unpack_codes_cuda);
  return codes;
}

template <Device device>
void register_ops(torch::Library& library) {
  library.impl("pack_codes", &pack<device>);
  library.impl("unpack_codes", &unpack<device>);
}

SYNQ_REGISTER(register_ops)

}  // namespace
}  // namespace synq
