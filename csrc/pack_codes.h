// Interfaces of the kernels that pack codes of 2 to 8 bits into streams of bits, and read them back.
#pragma once

#include <stdint.h>

#include "cpu/dispatch.h"

namespace synq {

// So many codes fill whole bytes at any width.
constexpr int64_t kCodesPerGroup = 8;

// Rows are dense. Where they fill whole bytes they make one stream, which is given as one row.
struct PackCodesParams {
  const uint8_t* x;  // packing: the codes, (rows, length); else the streams, (rows, bytes())
  uint8_t* y;        // the other of the two
  int64_t rows;
  int64_t length;  // codes of a row
  int32_t bits;

  int64_t groups() const { return (length + kCodesPerGroup - 1) / kCodesPerGroup; }  // of a row, the last maybe partial
  int64_t bytes() const { return (length * bits + 7) / 8; }                          // of a row's stream
};

// Launchers like those of fake_quantize.h. There is at least one code.
int pack_codes_cuda(const PackCodesParams& params, void* stream);
int unpack_codes_cuda(const PackCodesParams& params, void* stream);

namespace cpu {

// For the groups [begin, end) of all rows.
struct PackCodesKernels {
  void (*pack)(const PackCodesParams& params, int64_t begin, int64_t end);
  void (*unpack)(const PackCodesParams& params, int64_t begin, int64_t end);
};

SYNQ_DECLARE_TABLES(PackCodesKernels, pack_codes_kernels);

}  // namespace cpu
}  // namespace synq
