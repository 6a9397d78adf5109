// Interfaces of the kernels of attention on quantized operands.
#pragma once

#include <stdint.h>

#include "cpu/dispatch.h"
#include "dtype.h"

namespace synq {

// Rows of one element type: those of a head follow each other at a distance, and so do heads and images. The elements
// of a row are adjacent.
struct HeadRows {
  void* data;
  int64_t batch;
  int64_t head;
  int64_t row;
};

// Operands by their place in arrays.
enum { kQueries, kKeys, kValues, kProbabilities, kOperands };

struct QuantizedAttentionParams {
  HeadRows x[3];               // queries, keys and values
  HeadRows y;                  // forward: the result; of the shape of queries
  HeadRows gradient;           // backward: of the result
  HeadRows of_x[3];            // backward: the gradients of queries, keys and values
  const float* scale[4];       // one element, or one for each head
  const float* zero_point[3];  // not rounded; probabilities have none
  float* grad_scale[4];        // backward only, like scale
  float* grad_zero_point[3];   // like zero_point
  const float* bias;           // (heads, rows, columns) or null
  const float* mask;           // (masks, rows, columns) or null; image b has mask b % masks
  float* grad_bias;            // backward only: like bias, or null
  float* workspace;            // backward only: quantized_attention_workspace_cuda(params) floats; CUDA only
  int64_t batch;
  int64_t heads;
  int64_t rows;     // of queries
  int64_t columns;  // of probabilities: rows of keys and values
  int64_t width;    // of rows
  int64_t masks;
  double gradient_scale[4];
  float alpha;
  int32_t bits[4];      // 2..16
  int32_t per_head[4];  // whether each head has a grid of its own
  int32_t log2;         // whether levels of probabilities are powers of two
  DType dtype;
};

// Launchers like those of fake_quantize.h. No size is zero.
int quantized_attention_cuda(const QuantizedAttentionParams& params, void* stream);
int64_t quantized_attention_workspace_cuda(const QuantizedAttentionParams& params);
int quantized_attention_backward_cuda(const QuantizedAttentionParams& params, void* stream);

// How the images of a batch are divided where a gradient is summed over them.
struct ImageParts {
  int64_t count;
  int64_t size;
};

inline ImageParts image_parts(const QuantizedAttentionParams& params) {
  constexpr int64_t kMost = 8;
  if (params.grad_bias == nullptr) return {params.batch, 1};
  const int64_t size = (params.batch + kMost - 1) / kMost;
  return {(params.batch + size - 1) / size, size};
}

// Sums of terms: of each operand's scale, then of the zero points of queries, keys and values.
constexpr int kAttentionSums = 7;

namespace cpu {

struct QuantizedAttentionKernels {
  // Floats that a call of a pass needs for itself.
  int64_t (*workspace)(const QuantizedAttentionParams& params, bool backward);
  // Writes the rows of one head of one image.
  void (*forward)(const QuantizedAttentionParams& params, int64_t image, int64_t head, float* workspace);
  // Writes their gradients, adds to kAttentionSums sums and, unless null, to the bias's gradient (rows, columns).
  void (*backward)(const QuantizedAttentionParams& params, int64_t image, int64_t head, float* workspace, double* sums,
                   float* of_bias);
};

SYNQ_DECLARE_TABLES(QuantizedAttentionKernels, quantized_attention_kernels);

}  // namespace cpu
}  // namespace synq
