// Attention on quantized operands for one instruction set; what fake_quantize.cpp says about shared code holds here
// too.
//
// A head's codes, counted from that of zero, are laid out for products once. Then blocks of queries follow, whose rows
// of logits, probabilities and slopes stay in cache: products of codes come first and are scaled afterwards.
#include "quantized_attention.h"

#include "cpu/attention_head.h"

namespace synq::cpu {
namespace {

using Params = QuantizedAttentionParams;

float* aligned(float* workspace) {
  const uintptr_t bytes = kAlignment * sizeof(float);
  return reinterpret_cast<float*>((reinterpret_cast<uintptr_t>(workspace) + bytes - 1) / bytes * bytes);
}

// Rounds exponentials of a row.
void round_row(const VectorGrid& grid, float* values, int64_t count, float inverse) {
  for (int64_t i = 0; i < count; i += kLanes) store_vector(values + i, grid.code(load_vector(values + i) * inverse));
}

void round_row(const PowersOfTwo& grid, float* values, int64_t count, float inverse) {
  for (int64_t i = 0; i < count; ++i) values[i] = grid.code(values[i] * inverse);
}

// Rounds a row of exponentials, in place or to bytes.
template <typename T>
void round_row(const Head<T>& head, int64_t row, float inverse, const Memory& memory) {
  float* values = memory.logits + row * memory.stride;
  if (!head.rounded_in_bytes) {
    with_grid(head.p, [&](const auto& grid) { round_row(grid, values, memory.columns, inverse); });
    return;
  }
  const VectorGrid grid(head.p);
  Vector sum = {};
  for (int64_t i = 0; i < memory.columns; i += kLanes) {
    const Vector code = grid.code(load_vector(values + i) * inverse);
    store_codes(memory.rounded + row * memory.stride + i, code);
    sum += code;
  }
  // NaN where the row is.
  memory.of_row[row] = head.v.affine.zero_point * folded(sum);
}

// Multiplies the rounded rows of a block with the values.
template <typename T>
void write_result(const Head<T>& head, int64_t first, int64_t count, const Memory& memory) {
  const Params& params = head.params;
  const int64_t padded = round_up(count, kTileRows);
  const float factor = head.p.unit() * head.v.unit();
  if (head.rounded_in_bytes) {
    multiply_codes(memory.rounded, memory.stride, padded, memory.packed, memory.width, memory.width,
                   (params.columns + kCodes - 1) / kCodes, reinterpret_cast<int32_t*>(memory.result), memory.width);
  } else {
    product(memory.logits, memory.stride, 1, padded, memory.values, memory.width, memory.width, params.columns,
            memory.result, memory.width);
  }
  for (int64_t row = 0; row < count; ++row) {
    T* target = row_at<T>(params.y, head.image, head.head, first + row);
    float* x = memory.result + row * memory.width;
    for (int64_t i = 0; i < memory.width; i += kLanes) {
      Vector value = load_vector(x + i);
      if (head.rounded_in_bytes) {
        value = load_sums(x + i) + (load_vector(memory.of_width + i) + memory.of_row[row]);
      }
      store_vector(x + i, value * factor);
    }
    if constexpr (std::is_same_v<T, float>) {
      memcpy(target, x, sizeof(float) * static_cast<size_t>(params.width));
    } else {
      store(x, target, params.width);
    }
  }
}

template <typename T>
void forward_typed(const Params& params, int64_t image, int64_t at_head, float* workspace) {
  const Memory memory(params, false, aligned(workspace));
  const Head<T> head(params, image, at_head);
  head.write_keys(memory);
  if (head.rounded_in_bytes) head.pack_values(memory);
  for (int64_t first = 0; first < params.rows; first += memory.block) {
    const int64_t count = params.rows - first < memory.block ? params.rows - first : memory.block;
    head.multiply_keys(first, count, round_up(count, kTileRows), memory);
    head.for_each_row(first, count, memory, [&](int64_t row, float inverse) { round_row(head, row, inverse, memory); });
    write_result(head, first, count, memory);
  }
}

// Writes the gradients of rows whose quantized values have the given ones, times a factor.
template <typename T>
void write_gradients(const Head<T>& head, int operand, const HeadGrid& grid, int64_t first, int64_t count,
                     const float* of_y, float factor, const Memory& memory, double* sums) {
  const Params& params = head.params;
  const VectorGrid vectors(grid);
  double of_scale = 0.0, of_zero = 0.0;
  for (int64_t row = 0; row < count; ++row) {
    const T* source = row_at<T>(params.x[operand], head.image, head.head, first + row);
    T* target = row_at<T>(params.of_x[operand], head.image, head.head, first + row);
    const float* x = read_row(source, params.width, memory.line);
    const float* gradient = of_y + row * memory.width;
    Writer<T> writer;
    for_each_stretch(params.width, [&](int64_t begin, int64_t end) {
      float* y = writer.open(target + begin);
      Vector scales = {}, zeros = {};
      for_each_vector(begin, end, [&](int64_t i, auto lanes) {
        // Missing lanes have no gradient.
        const auto terms = vectors.terms(lanes.load(gradient + i, 0.0f) * factor, lanes.load(x + i, 0.0f));
        lanes.store(y + i - begin, terms.of_x);
        scales += terms.of_scale;
        zeros += terms.of_zero;
      });
      writer.close(target + begin, end - begin);
      of_scale += static_cast<double>(folded(scales));
      of_zero += static_cast<double>(folded(zeros));
    });
  }
  sums[operand] += of_scale;
  sums[kOperands + operand] += of_zero;
}

// Terms of a stretch of probabilities, by lanes: of the scale, and gradients times probabilities.
struct StretchSums {
  Vector scales = {}, products = {};
};

// Turns exponentials into codes, and gradients of quantized values, before a factor, into those of probabilities, which
// are written to `line`.
StretchSums write_stretch(const VectorGrid& grid, float* values, float* slopes, int64_t count, float inverse,
                          float factor, float* line) {
  StretchSums sums;
  for (int64_t i = 0; i < count; i += kLanes) {
    const Vector p = load_vector(values + i) * inverse;
    const auto terms = grid.terms(load_vector(slopes + i) * factor, p);
    store_vector(line + i, p);
    store_vector(values + i, terms.code);
    store_vector(slopes + i, terms.of_x);
    sums.scales += terms.of_scale;
    sums.products += terms.of_x * p;
  }
  return sums;
}

StretchSums write_stretch(const PowersOfTwo& grid, float* __restrict values, float* __restrict slopes, int64_t count,
                          float inverse, float factor, float* __restrict line) {
  float of_scale[kBlock];
  for (int64_t i = 0; i < count; ++i) {
    const float p = values[i] * inverse;
    const LogTerms terms = grid.terms(slopes[i] * factor, p);
    line[i] = p;
    values[i] = grid.code(p);
    slopes[i] = terms.of_x;
    of_scale[i] = terms.of_scale;
  }
  StretchSums sums;
  for (int64_t i = 0; i < count; i += kLanes) {
    sums.scales += load_vector(of_scale + i);
    sums.products += load_vector(slopes + i) * load_vector(line + i);
  }
  return sums;
}

// Turns a row of exponentials into codes of probabilities, and one of gradients of their quantized values, times a
// factor, into gradients of logits. Returns the sum for the scale.
template <typename Grid>
double write_slopes(const Grid& grid, float* values, float* slopes, int64_t count, int64_t padded, float inverse,
                    float factor, float* line) {
  double of_scale = 0.0;
  float along = 0.0f;
  fill(slopes + count, padded - count, 0.0f);
  for_each_stretch(padded, [&](int64_t begin, int64_t end) {
    const StretchSums sums =
        write_stretch(grid, values + begin, slopes + begin, end - begin, inverse, factor, line + begin);
    of_scale += static_cast<double>(folded(sums.scales));
    along += folded(sums.products);
  });
  for (int64_t i = 0; i < padded; i += kLanes) {
    store_vector(slopes + i, load_vector(line + i) * (load_vector(slopes + i) - along));
  }
  return of_scale;
}

// Rows of the incoming gradient, with zeros beside and below them.
template <typename T>
void read_gradient(const Head<T>& head, int64_t first, int64_t count, int64_t padded, const Memory& memory) {
  const int64_t width = head.params.width;
  for (int64_t row = 0; row < count; ++row) {
    const T* source = row_at<T>(head.params.gradient, head.image, head.head, first + row);
    float* target = memory.incoming + row * memory.width;
    const float* given = read_row(source, width, target);
    if (given != target) memcpy(target, given, sizeof(float) * static_cast<size_t>(width));
    fill(target + width, memory.width - width, 0.0f);
  }
  fill(memory.incoming + count * memory.width, (padded - count) * memory.width, 0.0f);
}

template <typename T>
void backward_typed(const Params& params, int64_t image, int64_t at_head, float* workspace, double* sums,
                    float* of_bias) {
  const Memory memory(params, true, aligned(workspace));
  const Head<T> head(params, image, at_head);
  head.write_keys(memory);
  write_across(memory.values, memory.columns, memory.width, memory.values_across, memory.stride);
  fill(memory.of_keys, memory.columns * memory.width, 0.0f);
  fill(memory.of_values, memory.columns * memory.width, 0.0f);
  for (int64_t first = 0; first < params.rows; first += memory.block) {
    const int64_t count = params.rows - first < memory.block ? params.rows - first : memory.block;
    const int64_t padded = round_up(count, kTileRows);
    head.multiply_keys(first, count, padded, memory);
    read_gradient(head, first, count, padded, memory);
    product(memory.incoming, memory.width, 1, padded, memory.values_across, memory.stride, memory.columns, params.width,
            memory.slopes, memory.stride);
    head.for_each_row(first, count, memory, [&](int64_t row, float inverse) {
      float* slopes = memory.slopes + row * memory.stride;
      float* values = memory.logits + row * memory.stride;
      sums[kProbabilities] += with_grid(head.p, [&](const auto& grid) {
        return write_slopes(grid, values, slopes, params.columns, memory.columns, inverse, head.v.unit(), memory.line);
      });
      if (of_bias == nullptr) return;
      float* __restrict bias = of_bias + (first + row) * params.columns;
      for (int64_t i = 0; i < params.columns; ++i) bias[i] += slopes[i];
    });
    product<true>(memory.logits, 1, memory.stride, memory.columns, memory.incoming, memory.width, memory.width, count,
                  memory.of_values, memory.width);
    product<true>(memory.slopes, 1, memory.stride, memory.columns, memory.queries, memory.width, memory.width, count,
                  memory.of_keys, memory.width);
    product(memory.slopes, memory.stride, 1, padded, memory.keys, memory.width, memory.width, params.columns,
            memory.result, memory.width);
    write_gradients(head, kQueries, head.q, first, count, memory.result, params.alpha * head.k.unit(), memory, sums);
  }
  write_gradients(head, kKeys, head.k, 0, params.columns, memory.of_keys, params.alpha * head.q.unit(), memory, sums);
  write_gradients(head, kValues, head.v, 0, params.columns, memory.of_values, head.p.unit(), memory, sums);
}

int64_t workspace(const Params& params, bool backward) { return Memory(params, backward, nullptr).floats + kAlignment; }

void forward(const Params& params, int64_t image, int64_t head, float* workspace) {
  with_type(params.dtype, [&](auto tag) { forward_typed<decltype(tag)>(params, image, head, workspace); });
}

void backward(const Params& params, int64_t image, int64_t head, float* workspace, double* sums, float* of_bias) {
  with_type(params.dtype,
            [&](auto tag) { backward_typed<decltype(tag)>(params, image, head, workspace, sums, of_bias); });
}

}  // namespace

SYNQ_DEFINE_TABLE(QuantizedAttentionKernels, quantized_attention_kernels) = {workspace, forward, backward};

}  // namespace synq::cpu
