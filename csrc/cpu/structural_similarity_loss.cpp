// Similarity of the channels of heads, and its gradient, for one instruction set.
#include "structural_similarity_loss.h"

#include "cpu/row_sums.h"

namespace synq::cpu {
namespace {

using Params = StructuralSimilarityParams;

constexpr int64_t kStretch = 256;  // positions that are added up before their sum is

static_assert(kChannelTile == kLanes);

float weight_of(const Params& params, int64_t matrix, int64_t position) {
  if (params.weight == nullptr) return 1.0f;
  return params.weight[params.weight_strides.offset(matrix, params.heads, position)];
}

// A tile of neighbouring channels at a position; channels that are not there are zero.
template <typename T>
SYNQ_INLINE Wide read_tile(const T* x, int64_t count) {
  if constexpr (std::is_same_v<T, float>) {
    if (count == kLanes) return read(x, Wide{});
  }
  float lanes[kLanes] = {};
  if constexpr (std::is_same_v<T, float>) {
    for (int64_t i = 0; i < count; ++i) lanes[i] = x[i];
  } else {
    load(x, lanes, count);
  }
  return read(lanes, Wide{});
}

void write_tile(const Wide& value, int64_t count, float* target) {
  float lanes[kLanes];
  store(value, lanes);
  for (int64_t i = 0; i < count; ++i) target[i] = lanes[i];
}

// Calls term(position, sums) for all positions, with sums that begin at zero for each stretch, and returns those of
// all.
struct Sums {
  Wide a, b, c;
};
template <typename Term>
SYNQ_INLINE Sums sum_positions(int64_t positions, Term term) {
  Sums total{};
  for (int64_t begin = 0; begin < positions; begin += kStretch) {
    const int64_t end = positions - begin < kStretch ? positions : begin + kStretch;
    Sums part{};
    for (int64_t position = begin; position < end; ++position) term(position, part);
    total.a += part.a;
    total.b += part.b;
    total.c += part.c;
  }
  return total;
}

template <typename T>
double tile_statistics(const Params& params, int64_t matrix, int64_t first) {
  const int64_t count = params.channels - first < kLanes ? params.channels - first : kLanes;
  const T* teacher =
      static_cast<const T*>(params.teacher) + params.teacher_strides.offset(matrix, params.heads, 0) + first;
  const T* student =
      static_cast<const T*>(params.student) + params.student_strides.offset(matrix, params.heads, 0) + first;
  const int64_t teacher_step = params.teacher_strides.row, student_step = params.student_strides.row;

  double weights = 0.0;
  for (int64_t position = 0; position < params.positions; ++position) weights += weight_of(params, matrix, position);
  const float inverse = static_cast<float>(1.0 / weights);

  const Sums means = sum_positions(params.positions, [&](int64_t position, Sums& sums) {
    const float weight = weight_of(params, matrix, position);
    sums.a += read_tile(teacher + position * teacher_step, count) * weight;
    sums.b += read_tile(student + position * student_step, count) * weight;
  });
  const Wide mean_t = means.a * inverse, mean_q = means.b * inverse;
  const Sums products = sum_positions(params.positions, [&](int64_t position, Sums& sums) {
    const float weight = weight_of(params, matrix, position);
    const Wide t = read_tile(teacher + position * teacher_step, count) - mean_t;
    const Wide q = read_tile(student + position * student_step, count) - mean_q;
    sums.a += t * t * weight;
    sums.b += q * q * weight;
    sums.c += t * q * weight;
  });
  const Wide deviations = (products.a + products.b) * inverse + kStructureOffset;
  const Wide similarity = (products.c * inverse * 2.0f + kStructureOffset) / deviations;
  const double factor = 2.0 / (weights * static_cast<double>(params.similarities()));
  const Wide slope = static_cast<float>(factor) / deviations;

  float* statistics = params.statistics + 4 * matrix * params.channels + first;
  write_tile(mean_t, count, statistics);
  write_tile(mean_q, count, statistics + params.channels);
  write_tile(similarity, count, statistics + 2 * params.channels);
  write_tile(slope, count, statistics + 3 * params.channels);
  return sum_lanes_double(select(first_lanes(count), similarity, Wide{}));
}

template <typename T>
void backward_typed(const Params& params, int64_t begin, int64_t end) {
  const float gradient = *params.gradient;
  const int64_t channels = params.channels;
  Reader<T> teacher_reader, student_reader;
  Writer<T> writer;
  for (int64_t row = begin; row < end; ++row) {
    const int64_t matrix = row / params.positions, position = row % params.positions;
    const T* teacher =
        static_cast<const T*>(params.teacher) + params.teacher_strides.offset(matrix, params.heads, position);
    const T* student =
        static_cast<const T*>(params.student) + params.student_strides.offset(matrix, params.heads, position);
    T* target = static_cast<T*>(params.result) + params.result_strides.offset(matrix, params.heads, position);
    const float* statistics = params.statistics + 4 * matrix * channels;
    const float factor = gradient * weight_of(params, matrix, position);
    for (int64_t first = 0; first < channels; first += kBlock) {
      const int64_t size = channels - first < kBlock ? channels - first : kBlock;
      const float* t = teacher_reader.read(teacher + first, size);
      const float* q = student_reader.read(student + first, size);
      const float* of = statistics + first;
      write_floats(writer.open(target + first), size, [&](int64_t i, auto type) {
        const auto from_t = read(t + i, type) - read(of + i, type);
        const auto from_q = read(q + i, type) - read(of + channels + i, type);
        const auto slope = read(of + 3 * channels + i, type) * factor;
        return slope * (read(of + 2 * channels + i, type) * from_q - from_t);
      });
      writer.close(target + first, size);
    }
  }
}

void statistics(const Params& params, int64_t begin, int64_t end, double* sums) {
  const int64_t tiles = (params.channels + kLanes - 1) / kLanes;
  with_type(params.dtype, [&](auto tag) {
    for (int64_t tile = begin; tile < end; ++tile) {
      sums[tile - begin] = tile_statistics<decltype(tag)>(params, tile / tiles, tile % tiles * kLanes);
    }
  });
}

void backward(const Params& params, int64_t begin, int64_t end) {
  with_type(params.dtype, [&](auto tag) { backward_typed<decltype(tag)>(params, begin, end); });
}

}  // namespace

SYNQ_DEFINE_TABLE(StructuralSimilarityKernels, structural_similarity_kernels) = {statistics, backward};

}  // namespace synq::cpu
