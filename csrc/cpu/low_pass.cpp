// Low-pass filters along one axis, for one instruction set; the table at the end is named after it.
// Nothing here may instantiate shared inline code (the standard library, torch): the linker keeps one copy of it, and
// that could be the copy compiled for an instruction set that the running machine lacks.
#include "cpu/low_pass.h"

#include "cpu/elements.h"
#include "cpu/fold.h"
#include "cpu/transpose.h"

namespace synq::cpu {
namespace {

#if SYNQ_VECTOR_BYTES == 64 || defined(__aarch64__)
constexpr int kRows = 12;  // 24 of 32 registers hold sums
#else
constexpr int kRows = 6;  // 12 of 16
#endif

int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// kHeight rows of the matrix times all lines of the tile.
template <int kHeight, int kVectors>
void multiply_block(const float* __restrict matrix, const float* __restrict in, float* __restrict out, int64_t depth) {
  Vector sums[kHeight][kVectors] = {};
  for (int64_t k = 0; k < depth; ++k, matrix += kHeight, in += kTile) {
    Vector values[kVectors];
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) values[v] = load_vector(in + v * kLanes);
#pragma GCC unroll 12
    for (int row = 0; row < kHeight; ++row) {
      const Vector factor = broadcast(matrix[row]);
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) sums[row][v] = multiply_add(factor, values[v], sums[row][v]);
    }
  }
#pragma GCC unroll 12
  for (int row = 0; row < kHeight; ++row) {
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) store_vector(out + row * kTile + v * kLanes, sums[row][v]);
  }
}

template <int kVectors, int kHeight = kRows>
void multiply_any(int64_t height, const float* matrix, const float* in, float* out, int64_t depth) {
  if constexpr (kHeight > 0) {
    if (height == kHeight) return multiply_block<kHeight, kVectors>(matrix, in, out, depth);
    multiply_any<kVectors, kHeight - 1>(height, matrix, in, out, depth);
  }
}

// out = matrices * in, segment by segment; neither is read or written beyond `vectors` vectors of lines.
void multiply(const FilterAxis& axis, const float* FilterSegment::* matrix, const float* in, float* out, int vectors) {
  for (int64_t s = 0; s < axis.segment_count; ++s) {
    const FilterSegment& segment = axis.segments[s];
    const float* packed = segment.*matrix;
    const float* source = in + segment.begin * kTile;
    float* target = out + segment.begin * kTile;
    const int64_t blocks = block_count(segment.size, kRows);
    for (int64_t block = 0; block < blocks; ++block) {
      const int64_t height = block_height(segment.size, blocks, block);
      if (vectors == 1) {
        multiply_any<1>(height, packed, source, target, segment.size);
      } else {
        multiply_any<2>(height, packed, source, target, segment.size);
      }
      packed += height * segment.size;
      target += height * kTile;
    }
  }
}

int vectors_of(int64_t lines) { return lines > kLanes ? 2 : 1; }

// A tile of lines in two buffers of n rows; each step goes from one to the other or works in place.
struct Tile {
  float* folded;
  float* result;
  int vectors;

  void work(const FilterPass& pass) const {
    const FilterAxis& axis = pass.axis;
    if (pass.step == FilterStep::kFilter) multiply(axis, &FilterSegment::filter, folded, result, vectors);
    if (pass.step == FilterStep::kAnalyse) multiply(axis, &FilterSegment::analysis, folded, result, vectors);
    if (pass.step == FilterStep::kSynthesize) multiply(axis, &FilterSegment::synthesis, folded, result, vectors);
  }

  // Of a row of the mask either all lines take the first gain or, `spread`, each takes its own.
  void work_masked(const FilterPass& pass, const float* mask, bool spread) const {
    const FilterAxis& axis = pass.axis;
    multiply(axis, &FilterSegment::analysis, folded, result, vectors);
    const int64_t stride = pass.mask_period + kTile;
    for (int64_t i = 0; i < axis.n; ++i, mask += stride) {
      for (int v = 0; v < vectors; ++v) {
        float* place = result + i * kTile + v * kLanes;
        const Vector gain = spread ? load_vector(mask + v * kLanes) : broadcast(mask[0]);
        store_vector(place, load_vector(place) * gain);
      }
    }
    multiply(axis, &FilterSegment::synthesis, result, folded, vectors);
  }
};

bool folds(FilterStep step) { return step != FilterStep::kSynthesize; }
bool unfolds(FilterStep step) { return step != FilterStep::kAnalyse; }

// Reads `lines` neighbouring values as a whole number of vectors, the missing ones as zero.
template <typename T>
void load_lines(const T* source, float* target, int64_t lines, int vectors) {
  if constexpr (std::is_same_v<T, float>) {
    memcpy(target, source, lines * sizeof(float));
  } else {
    load(source, target, lines);
  }
  for (int64_t i = lines; i < vectors * kLanes; ++i) target[i] = 0.0f;
}

template <typename T>
void store_lines(const float* source, T* target, int64_t lines) {
  if constexpr (std::is_same_v<T, float>) {
    memcpy(target, source, lines * sizeof(float));
  } else {
    store(source, target, lines);
  }
}

bool is_whole(int64_t lines) { return lines == kTile || lines == kLanes; }

// Lines lie side by side in memory.
template <typename X, typename Y>
void run_lines(const FilterPass& pass, float* scratch, int64_t begin, int64_t end) {
  const FilterAxis& axis = pass.axis;
  const int64_t n = axis.n;
  const int64_t tiles = (pass.inner + kTile - 1) / kTile;
  for (int64_t index = begin; index < end; ++index) {
    const int64_t outer = index / tiles;
    const int64_t first = (index - outer * tiles) * kTile;
    const int64_t lines = smaller(kTile, pass.inner - first);
    const X* x = static_cast<const X*>(pass.x) + outer * n * pass.inner + first;
    Y* y = static_cast<Y*>(pass.y) + outer * n * pass.inner + first;
    Tile tile{scratch, scratch + n * kTile, vectors_of(lines)};

    bool direct = false;
    if constexpr (std::is_same_v<X, float>) {
      direct = folds(pass.step) && is_whole(lines);
      if (direct) fold(x, pass.inner, tile.folded, axis, tile.vectors);
    }
    if (!direct) {
      for (int64_t i = 0; i < n; ++i) load_lines(x + i * pass.inner, tile.folded + i * kTile, lines, tile.vectors);
      if (folds(pass.step)) fold(tile.folded, kTile, tile.folded, axis, tile.vectors);
    }
    float* done = tile.result;
    if (pass.step == FilterStep::kMask) {
      tile.work_masked(pass, pass.mask + outer % pass.mask_period, false);
      done = tile.folded;
    } else {
      tile.work(pass);
    }
    if constexpr (std::is_same_v<Y, float>) {
      if (unfolds(pass.step) && is_whole(lines)) {
        unfold(done, y, pass.inner, axis, tile.vectors);
        continue;
      }
    }
    if (unfolds(pass.step)) unfold(done, done, kTile, axis, tile.vectors);
    for (int64_t i = 0; i < n; ++i) store_lines(done + i * kTile, y + i * pass.inner, lines);
  }
}

// Row `position` of the memory order (n, inner) is row `position / inner` of the tile of channel `position % inner`.
struct RowOrder {
  int64_t n;
  int64_t inner;
  int64_t operator()(int64_t position) const {
    return inner == 1 ? position : (position % inner) * n + position / inner;
  }
};

// Lines lie one after the other in memory, or mixed with the few lines of the other channels.
void load_transposed(const float* x, float* tile, RowOrder order, int64_t lines) {
  const int64_t length = order.n * order.inner;
  for (int64_t group = 0; group < lines; group += kLanes) {
    const float* rows[kLanes];
    for (int i = 0; i < kLanes; ++i) rows[i] = x + smaller(group + i, lines - 1) * length;
    int64_t position = 0;
    for (; position + kLanes <= length; position += kLanes) {
      Vector block[kLanes];
      for (int i = 0; i < kLanes; ++i) block[i] = load_vector(rows[i] + position);
      transpose(block);
      for (int i = 0; i < kLanes; ++i) store_vector(tile + order(position + i) * kTile + group, block[i]);
    }
    for (; position < length; ++position) {
      float* target = tile + order(position) * kTile + group;
      for (int i = 0; i < kLanes; ++i) target[i] = rows[i][position];
    }
  }
}

template <typename Y>
void store_transposed(const float* tile, Y* y, RowOrder order, int64_t lines) {
  const int64_t length = order.n * order.inner;
  for (int64_t group = 0; group < lines; group += kLanes) {
    const int64_t count = smaller(kLanes, lines - group);
    Y* rows = y + group * length;
    int64_t position = 0;
    for (; position + kLanes <= length; position += kLanes) {
      Vector block[kLanes];
      for (int i = 0; i < kLanes; ++i) block[i] = load_vector(tile + order(position + i) * kTile + group);
      transpose(block);
      for (int i = 0; i < count; ++i) {
        store_lines(reinterpret_cast<const float*>(&block[i]), rows + i * length + position, kLanes);
      }
    }
    for (; position < length; ++position) {
      const float* source = tile + order(position) * kTile + group;
      for (int i = 0; i < count; ++i) store_lines(source + i, rows + i * length + position, 1);
    }
  }
}

template <typename Y>
void run_transposed(const FilterPass& pass, float* scratch, int64_t begin, int64_t end) {
  const FilterAxis& axis = pass.axis;
  const RowOrder order{axis.n, pass.inner};
  const int64_t length = axis.n * pass.inner;
  for (int64_t index = begin; index < end; ++index) {
    const int64_t first = index * kTile;
    const int64_t lines = smaller(kTile, pass.outer - first);
    float* loaded = scratch;
    float* result = scratch + length * kTile;
    load_transposed(static_cast<const float*>(pass.x) + first * length, loaded, order, lines);
    for (int64_t channel = 0; channel < pass.inner; ++channel) {
      const int64_t offset = channel * axis.n * kTile;
      const Tile tile{loaded + offset, result + offset, vectors_of(lines)};
      if (folds(pass.step)) fold(tile.folded, kTile, tile.folded, axis, tile.vectors);
      if (pass.step == FilterStep::kMask) {
        tile.work_masked(pass, pass.mask + first % pass.mask_period, true);
      } else {
        tile.work(pass);
      }
      float* done = pass.step == FilterStep::kMask ? tile.folded : tile.result;
      if (unfolds(pass.step)) unfold(done, done, kTile, axis, tile.vectors);
    }
    const float* done = pass.step == FilterStep::kMask ? loaded : result;
    store_transposed(done, static_cast<Y*>(pass.y) + first * length, order, lines);
  }
}

// Transposing pays while a vector would hold mostly nothing.
bool is_transposed(const FilterPass& pass) {
  return pass.inner < kLanes && pass.outer > 1 && pass.x_type == DType::kFloat32;
}

int64_t tiles(const FilterPass& pass) {
  const int64_t lines = is_transposed(pass) ? pass.outer : pass.inner;
  return (lines + kTile - 1) / kTile * (is_transposed(pass) ? 1 : pass.outer);
}

int64_t scratch(const FilterPass& pass) { return 2 * pass.axis.n * kTile * (is_transposed(pass) ? pass.inner : 1); }

void run(const FilterPass& pass, float* scratch, int64_t begin, int64_t end) {
  with_type(pass.y_type, [&](auto y) {
    if (is_transposed(pass)) return run_transposed<decltype(y)>(pass, scratch, begin, end);
    with_type(pass.x_type, [&](auto x) { run_lines<decltype(x), decltype(y)>(pass, scratch, begin, end); });
  });
}

}  // namespace

SYNQ_DEFINE_TABLE(LowPassKernels, low_pass_kernels) = {kTile, kRows, tiles, scratch, run};

}  // namespace synq::cpu
