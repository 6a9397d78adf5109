// A head of attention on quantized operands: its memory, its codes, and rows of its logits.
#pragma once

#include "quantized_attention.h"

#include <math.h>

#include "cpu/code_tile.h"
#include "cpu/exp.h"
#include "cpu/fake_quantize_loops.h"
#include "cpu/matrix_tile.h"
#include "cpu/rows.h"
#include "cpu/transpose.h"
#include "probability_grid.h"

namespace synq::cpu {
namespace {

// Floats of a block of logits.
constexpr int64_t kHeld = 16384;
constexpr int64_t kStep = kLanes > kTileRows ? kLanes : kTileRows;
constexpr int64_t kAlignment = 16;

inline int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

// Rows this many bytes apart would share few sets of the first cache.
inline int64_t spread(int64_t floats) { return floats % 128 == 0 ? floats + kStep : floats; }

// Where everything lies that a head needs for itself.
struct Memory {
  int64_t width;    // of a row of queries, keys or values
  int64_t columns;  // of a row of logits
  int64_t stride;   // between rows of logits
  int64_t bytes;    // of a row of 8-bit codes of queries or keys
  int64_t block;    // queries at a time
  float* keys;
  float* values;
  float* queries;
  float* logits;
  float* result;
  float* line;           // a row of any length
  float* across;         // a column of each for every key; as 8-bit codes, a column for kCodes of each
  float* of_column;      // what a key adds to sums of 8-bit codes
  float* of_row;         // what a query adds to them, then its sum of probabilities
  float* of_width;       // NaN where a value is NaN
  int32_t* packed;       // values: kCodes keys to a word
  uint8_t* codes;        // 8-bit codes of queries
  uint8_t* rounded;      // 8-bit codes of probabilities
  float* values_across;  // a column of each for every key
  float* incoming;
  float* slopes;
  float* of_keys;
  float* of_values;
  int64_t floats = 0;

  Memory(const QuantizedAttentionParams& params, bool backward, float* base) {
    width = round_up(params.width, kStep);
    columns = round_up(params.columns, kStep);
    stride = spread(columns);
    bytes = round_up(params.width, kCodes * kLanes);
    const int64_t most = kHeld / stride / kTileRows * kTileRows;
    block = round_up(params.rows, kTileRows);
    // As even blocks as there can be.
    const int64_t blocks = block / (most > kTileRows ? most : kTileRows) + 1;
    block = round_up((params.rows + blocks - 1) / blocks, kTileRows);
    const auto take = [&](int64_t count) {
      float* place = base == nullptr ? nullptr : base + floats;
      floats += round_up(count, kAlignment);
      return place;
    };
    const auto take_bytes = [&](int64_t count) { return reinterpret_cast<uint8_t*>(take((count + 3) / 4)); };
    keys = take(columns * width);
    values = take(columns * width);
    queries = take(block * width);
    logits = take(block * stride);
    result = take(block * width);
    line = take(width > columns ? width : columns);
    across = take(width * stride > columns * bytes / kCodes ? width * stride : columns * bytes / kCodes);
    of_column = take(columns);
    of_row = take(block);
    of_width = take(width);
    packed = reinterpret_cast<int32_t*>(take(round_up(columns, kCodes) / kCodes * width));
    codes = take_bytes((block > columns ? block : columns) * bytes);
    rounded = take_bytes(block * stride);
    if (!backward) return;
    values_across = take(width * stride);
    incoming = take(block * width);
    slopes = take(block * stride);
    of_keys = take(columns * width);
    of_values = take(columns * width);
  }
};

// The grid of an operand of a head.
struct HeadGrid {
  Affine affine;
  Grid grid;
  int bits;
  bool log2;

  HeadGrid(const QuantizedAttentionParams& params, int operand, int64_t head)
      : affine{params.scale[operand][params.per_head[operand] ? head : 0], 0.0f},
        grid(grid_of(params.bits[operand])),
        bits(params.bits[operand]),
        log2(params.log2 != 0 && operand == kProbabilities) {
    affine.zero_point =
        operand == kProbabilities
            ? -grid.low
            : learned_grid(affine.scale, params.zero_point[operand][params.per_head[operand] ? head : 0]).zero_point;
  }

  // What a code stands for.
  float unit() const { return log2 ? affine.scale : 1.0f / affine.scale; }
  // The largest code counted from zero, and from the lowest one.
  float largest() const { return fabsf(affine.zero_point) - grid.low; }
  float from_lowest() const { return fabsf(affine.zero_point + grid.low) - 2.0f * grid.low; }
};

template <typename T>
T* row_at(const HeadRows& rows, int64_t image, int64_t head, int64_t row) {
  return static_cast<T*>(rows.data) + image * rows.batch + head * rows.head + row * rows.row;
}

// A row as float32, where it lies or in a copy.
template <typename T>
const float* read_row(const T* source, int64_t width, float* copy) {
  if constexpr (std::is_same_v<T, float>) {
    return source;
  } else {
    load(source, copy, width);
    return copy;
  }
}

void fill(float* target, int64_t count, float value) {
  for (int64_t i = 0; i < count; ++i) target[i] = value;
}

// Sides are multiples of kLanes.
void write_across(const float* x, int64_t rows, int64_t width, float* y, int64_t stride) {
  for (int64_t row = 0; row < rows; row += kLanes) {
    for (int64_t column = 0; column < width; column += kLanes) {
      Vector square[kLanes];
      for (int i = 0; i < kLanes; ++i) square[i] = load_vector(x + (row + i) * width + column);
      transpose(square);
      for (int i = 0; i < kLanes; ++i) store_vector(y + (column + i) * stride + row, square[i]);
    }
  }
}

template <bool kAdd = false>
void product(const float* a, int64_t a_row, int64_t a_depth, int64_t rows, const float* b, int64_t b_depth,
             int64_t columns, int64_t depth, float* out, int64_t out_row) {
  const Factors factors[] = {{a, a_row, a_depth, b, b_depth, depth}};
  multiply<1, kAdd>(factors, 0, rows, 0, columns, out, out_row);
}

// The sum of a row of codes; writes the low 8 bits of each plus `shift`, and zeros up to `bytes`.
float pack_codes(const float* codes, int64_t width, int64_t bytes, float shift, uint8_t* target) {
  Vector sum = {};
  memset(target + bytes - kCodes * kLanes, 0, kCodes * kLanes);
  for_each_vector(0, width, [&](int64_t i, auto lanes) {
    sum += lanes.load(codes + i, 0.0f);
    store_codes(target + i, lanes.load(codes + i, -shift) + shift);
  });
  return folded(sum);
}

// What a row of logits has beside the products.
struct Summands {
  const float* bias;
  const float* mask;

  Summands(const QuantizedAttentionParams& params, int64_t image, int64_t head, int64_t row)
      : bias(at(params.bias, params, head, row)),
        mask(params.mask == nullptr ? nullptr : at(params.mask, params, image % params.masks, row)) {}

  static const float* at(const float* rows, const QuantizedAttentionParams& params, int64_t matrix, int64_t row) {
    return rows == nullptr ? nullptr : rows + (matrix * params.rows + row) * params.columns;
  }
};

constexpr float kLog2E = 1.44269504088896341f;

// Turns products into logits, and returns the greatest. `factor` is that of products in logits of base 2. Beyond the
// row there are minus infinities.
template <typename Load>
float write_logits(float* row, int64_t count, int64_t padded, float factor, const Summands& summands, Load products) {
  // NaN is passed over: it meets the sum of exponentials.
  Vector most = Vector{} - INFINITY;
  const bool plain = summands.bias == nullptr && summands.mask == nullptr;
  for_each_vector(0, count, [&](int64_t i, auto lanes) {
    Vector value = products(i) * factor;
    if (!plain) {
      Vector summand = {};
      if (summands.bias != nullptr) summand += lanes.load(summands.bias + i, 0.0f);
      if (summands.mask != nullptr) summand += lanes.load(summands.mask + i, 0.0f);
      value += summand * kLog2E;
    }
    store_vector(row + i, value);
    if constexpr (!std::is_same_v<decltype(lanes), Whole>) value = lanes.load(row + i, -INFINITY);
    most = larger(value, most);
  });
  fill(row + count, padded - count, -INFINITY);
  return folded(most, [](Vector a, Vector b) { return a > b ? a : b; });
}

// Turns logits of base 2 into powers, exponentials, and returns the inverse of their sum.
inline float write_exponentials(float* row, int64_t padded, float greatest) {
  float total = 0.0f;
  for_each_stretch(padded, [&](int64_t begin, int64_t end) {
    Vector sum = {};
    for (int64_t i = begin; i < end; i += kLanes) {
      const Vector e = exp2_to_zero(load_vector(row + i) - greatest);
      store_vector(row + i, e);
      sum += e;
    }
    total += folded(sum);
  });
  return 1.0f / total;
}

// Codes of vectors, and what learned_terms says of them.
struct VectorGrid {
  Vector scale, zero_point, low, high;

  explicit VectorGrid(const HeadGrid& grid)
      : scale(broadcast(grid.affine.scale)),
        zero_point(broadcast(grid.affine.zero_point)),
        low(broadcast(grid.grid.low)),
        high(broadcast(grid.grid.high)) {}

  static Vector between(Vector x, Vector least, Vector most) { return smaller(most, larger(least, x)); }
  static Vector round(Vector x) { return (x + 12582912.0f) - 12582912.0f; }

  // Counted from that of zero.
  Vector code(Vector x) const { return round(between(x * scale - zero_point, low, high)) + zero_point; }

  struct Terms {
    Vector of_x, of_scale, of_zero, code;
  };

  Terms terms(Vector gradient, Vector x) const {
    const Vector position = x * scale - zero_point;
    const Vector beyond = round(between(position, low - 1.0f, high + 1.0f));
    const Vector inner = between(beyond, low, high);
    const Vector code = inner + zero_point;
    const auto outside = (beyond < low) | (beyond > high);
    return {outside ? Vector{} : gradient, gradient * (outside ? -code : position - inner),
            outside ? gradient : Vector{}, code};
  }
};

// Calls body(grid) with that of probabilities.
template <typename Body>
auto with_grid(const HeadGrid& grid, Body body) {
  return grid.log2 ? body(PowersOfTwo(grid.affine.scale, grid.bits)) : body(VectorGrid(grid));
}

// What both passes have of a head.
template <typename T>
struct Head {
  const QuantizedAttentionParams& params;
  int64_t image;
  int64_t head;
  HeadGrid q, k, v, p;
  float factor;   // of products of codes, in logits of base 2
  bool in_bytes;  // whether logits are from 8-bit codes
  bool rounded_in_bytes;

  Head(const QuantizedAttentionParams& given, int64_t image, int64_t head)
      : params(given),
        image(image),
        head(head),
        q(given, kQueries, head),
        k(given, kKeys, head),
        v(given, kValues, head),
        p(given, kProbabilities, head),
        factor(static_cast<float>(static_cast<double>(given.alpha) * 1.4426950408889634 /
                                  (static_cast<double>(q.affine.scale) * static_cast<double>(k.affine.scale)))) {
    constexpr float kExact = 0x1p24f;
    const float width = static_cast<float>(given.width), columns = static_cast<float>(given.columns);
    const bool can = multiplies_codes();
    // All sums are exact, as they are in float32.
    in_bytes = can && q.bits <= 8 && k.bits <= 8 && q.from_lowest() * k.largest() * width < kExact;
    // The sum of the probabilities' codes is; the zero point of values may not make up most of the result.
    rounded_in_bytes = can && !p.log2 && p.bits <= 8 && v.bits <= 8 && v.largest() <= 5.0f * -v.grid.low &&
                       -2.0f * p.grid.low * columns < kExact;
  }

  // Codes of rows, counted from that of zero. What is beside and below them is zero.
  void write(int operand, const HeadGrid& grid, int64_t first, int64_t count, int64_t padded, const Memory& memory,
             float* codes) const {
    for (int64_t row = 0; row < count; ++row) {
      const T* source = row_at<T>(params.x[operand], image, head, first + row);
      const float* __restrict x = read_row(source, params.width, memory.line);
      float* __restrict target = codes + row * memory.width;
      const Affine affine = grid.affine;
      for (int64_t i = 0; i < params.width; ++i) {
        target[i] = add(quantize(x[i], affine, grid.grid.low, grid.grid.high), affine.zero_point);
      }
      fill(target + params.width, memory.width - params.width, 0.0f);
    }
    fill(codes + count * memory.width, (padded - count) * memory.width, 0.0f);
  }

  void write_keys(const Memory& memory) const {
    write(kKeys, k, 0, params.columns, memory.columns, memory, memory.keys);
    write(kValues, v, 0, params.columns, memory.columns, memory, memory.values);
    if (!in_bytes) {
      write_across(memory.keys, memory.columns, memory.width, memory.across, memory.stride);
      return;
    }
    // With u the queries' codes from the lowest one, Q = u + shift and C the keys' own: the sum of Q K is that of u C,
    // plus the keys' zero point times the sum of u, plus shift times the sum of K.
    const float shift = q.affine.zero_point + q.grid.low;
    for (int64_t row = 0; row < memory.columns; ++row) {
      const bool there = row < params.columns;
      const float sum = pack_codes(memory.keys + row * memory.width, params.width, memory.bytes,
                                   there ? -k.affine.zero_point : 0.0f, memory.codes + row * memory.bytes);
      memory.of_column[row] = shift * sum;
    }
    write_across(reinterpret_cast<const float*>(memory.codes), memory.columns, memory.bytes / kCodes, memory.across,
                 memory.columns);
  }

  void pack_values(const Memory& memory) const {
    const float zero = v.affine.zero_point;
    fill(memory.of_width, memory.width, 0.0f);
    for (int64_t row = 0; row < memory.columns; row += kCodes) {
      int32_t* __restrict target = memory.packed + row / kCodes * memory.width;
      for (int64_t i = 0; i < memory.width; ++i) target[i] = 0;
      for (int64_t j = 0; j < kCodes && row + j < params.columns; ++j) {
        const float* __restrict codes = memory.values + (row + j) * memory.width;
        float* __restrict of_width = memory.of_width;
        for (int64_t i = 0; i < params.width; ++i) {
          target[i] |= (static_cast<int32_t>(codes[i] - zero) & 255) << (8 * j);
          of_width[i] += codes[i] * 0.0f;
        }
      }
    }
  }

  // Codes of a block of queries, and their products with those of the keys.
  void multiply_keys(int64_t first, int64_t count, int64_t padded, const Memory& memory) const {
    write(kQueries, q, first, count, padded, memory, memory.queries);
    if (!in_bytes) {
      product(memory.queries, memory.width, 1, padded, memory.across, memory.stride, memory.columns, params.width,
              memory.logits, memory.stride);
      return;
    }
    const float shift = q.affine.zero_point + q.grid.low;
    for (int64_t row = 0; row < padded; ++row) {
      const bool there = row < count;
      const float sum = pack_codes(memory.queries + row * memory.width, params.width, memory.bytes,
                                   there ? -shift : 0.0f, memory.codes + row * memory.bytes);
      memory.of_row[row] = k.affine.zero_point * (sum - shift * static_cast<float>(params.width));
    }
    multiply_codes(memory.codes, memory.bytes, padded, reinterpret_cast<const int32_t*>(memory.across), memory.columns,
                   memory.columns, (params.width + kCodes - 1) / kCodes, reinterpret_cast<int32_t*>(memory.logits),
                   memory.stride);
  }

  // Turns a row of products of a block into logits, and returns the greatest.
  float write_row(int64_t first, int64_t row, const Memory& memory) const {
    float* values = memory.logits + row * memory.stride;
    const Summands summands(params, image, head, first + row);
    if (!in_bytes) {
      return write_logits(values, params.columns, memory.columns, factor, summands,
                          [&](int64_t i) { return load_vector(values + i); });
    }
    const float of_row = memory.of_row[row];
    return write_logits(values, params.columns, memory.columns, factor, summands, [&](int64_t i) {
      return load_sums(values + i) + (load_vector(memory.of_column + i) + of_row);
    });
  }

  // Turns rows of products of a block into exponentials, and calls then(row, the inverse of their sum). Step by step
  // for several rows: what a step needs of a whole row is there by the time the others had theirs.
  template <typename Then>
  void for_each_row(int64_t first, int64_t count, const Memory& memory, Then then) const {
    constexpr int64_t kGroup = 8;
    float known[kGroup];
    for (int64_t begin = 0; begin < count; begin += kGroup) {
      const int64_t rows = count - begin < kGroup ? count - begin : kGroup;
      for (int64_t i = 0; i < rows; ++i) known[i] = write_row(first, begin + i, memory);
      for (int64_t i = 0; i < rows; ++i) {
        known[i] = write_exponentials(memory.logits + (begin + i) * memory.stride, memory.columns, known[i]);
      }
      for (int64_t i = 0; i < rows; ++i) then(begin + i, known[i]);
    }
  }
};

}  // namespace
}  // namespace synq::cpu
