// Similarity of the heads of attention, a query at a time, and its gradient, for one instruction set.
#include "inter_head_similarity_loss.h"

#include <math.h>

#include "cpu/elements.h"
#include "cpu/rows.h"

namespace synq::cpu {
namespace {

using Params = InterHeadSimilarityParams;

constexpr int kSide = 4;  // rows that are handled together

inline int64_t rounded_up(int64_t count, int64_t multiple) { return (count + multiple - 1) / multiple * multiple; }

// The heads of a query in scratch memory: rows of whole vectors.
struct Query {
  int64_t heads;
  int64_t keys;
  int64_t width;      // of a row
  int64_t span;       // of what there is for each head
  float* centred;     // (heads, width): scaled to 0..1, less the mean, zeros behind
  float* covariance;  // (heads, span), zeros behind
  float* factors;     // (heads up to whole sides, span): of the heads in a head's gradient
  float* mean;        // (span)
  float* variance;    // (span)
  float* inverse;     // (span), of the range
  float* row;         // (kSide, width)
  // Of each head, the first of the least and the first of the greatest logits; backward only.
  int64_t low_place[kMaximumHeads];
  int64_t high_place[kMaximumHeads];

  Query(const Params& params, float* scratch)
      : heads(params.heads),
        keys(params.keys),
        width(rounded_up(keys, kLanes)),
        span(rounded_up(heads, kLanes)),
        centred(scratch),
        covariance(centred + heads * width),
        factors(covariance + heads * span),
        mean(factors + rounded_up(heads, kSide) * span),
        variance(mean + span),
        inverse(variance + span),
        row(inverse + span) {
    for (float* value = covariance; value < row; ++value) *value = 0.0f;
  }

  static int64_t floats(const Params& params) {
    const Query query(params);
    return query.heads * query.width + (query.heads + rounded_up(query.heads, kSide) + 3) * query.span +
           kSide * query.width;
  }

 private:
  explicit Query(const Params& params)
      : heads(params.heads), keys(params.keys), width(rounded_up(keys, kLanes)), span(rounded_up(heads, kLanes)) {}
};

// The place of the first value that equals this one; zero where none does.
int64_t first_equal(const float* x, int64_t count, float value) {
  constexpr int64_t kStep = 16;
  int64_t i = 0;
  for (; i + kStep <= count; i += kStep) {
    int found = 0;
    for (int64_t k = 0; k < kStep; ++k) found |= x[i + k] == value;
    if (found != 0) break;
  }
  for (; i < count; ++i) {
    if (x[i] == value) return i;
  }
  return 0;
}

// Scales a row that lies in its place to 0..1 and takes off its mean.
template <bool kPlaces>
void centre(Query& query, int64_t head) {
  float* x = query.centred + head * query.width;
  const int64_t keys = query.keys, width = query.width;
  for (int64_t i = keys; i < width; ++i) x[i] = x[0];
  // NaN is passed over: it meets the mean.
  Vector least = Vector{} + INFINITY, most = Vector{} - INFINITY;
  for (int64_t i = 0; i < width; i += kLanes) {
    const Vector value = load_vector(x + i);
    least = smaller(value, least);
    most = larger(value, most);
  }
  const float low = folded(least, [](Vector a, Vector b) { return smaller(a, b); });
  const float high = folded(most, [](Vector a, Vector b) { return larger(a, b); });
  if constexpr (kPlaces) {
    query.low_place[head] = first_equal(x, keys, low);
    query.high_place[head] = first_equal(x, keys, high);
  }
  const float inverse = 1.0f / (high - low + kLeastRange);
  float sum = 0.0f;
  for_each_stretch(keys, [&](int64_t begin, int64_t end) {
    Vector part = {};
    for_each_vector(begin, end, [&](int64_t i, auto lanes) {
      lanes.store(x + i, (lanes.load(x + i, 0.0f) - low) * inverse);
      // Missing lanes are read back as zeros.
      part += lanes.load(x + i, 0.0f);
    });
    sum += folded(part);
  });
  const float mean = sum / static_cast<float>(keys);
  for (int64_t i = 0; i < width; i += kLanes) store_vector(x + i, load_vector(x + i) - mean);
  for (int64_t i = keys; i < width; ++i) x[i] = 0.0f;
  query.mean[head] = mean;
  query.inverse[head] = inverse;
}

// The products of one row with kSide others, which may be the same.
void products(const float* one, const float* const (&others)[kSide], int64_t width, float (&sums)[kSide]) {
  float totals[kSide] = {};
  for_each_stretch(width, [&](int64_t begin, int64_t end) {
    Vector parts[kSide] = {};
    for (int64_t i = begin; i < end; i += kLanes) {
      const Vector value = load_vector(one + i);
      for (int k = 0; k < kSide; ++k) parts[k] = multiply_add(value, load_vector(others[k] + i), parts[k]);
    }
    for (int k = 0; k < kSide; ++k) totals[k] += folded(parts[k]);
  });
  for (int k = 0; k < kSide; ++k) sums[k] = totals[k];
}

void find_covariances(Query& query) {
  const float share = 1.0f / static_cast<float>(query.keys);
  for (int64_t h = 0; h < query.heads; ++h) {
    for (int64_t first = 0; first <= h; first += kSide) {
      const float* others[kSide];
      for (int k = 0; k < kSide; ++k) {
        const int64_t g = first + k < h ? first + k : h;
        others[k] = query.centred + g * query.width;
      }
      float sums[kSide];
      products(query.centred + h * query.width, others, query.width, sums);
      for (int k = 0; k < kSide && first + k <= h; ++k) {
        const int64_t g = first + k;
        query.covariance[h * query.span + g] = query.covariance[g * query.span + h] = sums[k] * share;
      }
    }
    query.variance[h] = query.covariance[h * query.span + h];
  }
}

template <bool kPlaces, typename T>
void read_query(const Params& params, Query& query, int64_t item) {
  const int64_t batch = item / params.queries, index = item - batch * params.queries;
  const T* logits = static_cast<const T*>(params.logits) + batch * params.strides.batch + index * params.strides.row;
  for (int64_t head = 0; head < query.heads; ++head) {
    const T* source = logits + head * params.strides.head;
    float* target = query.centred + head * query.width;
    if constexpr (std::is_same_v<T, float>) {
      for (int64_t i = 0; i < query.keys; ++i) target[i] = source[i];
    } else {
      load(source, target, query.keys);
    }
    centre<kPlaces>(query, head);
  }
  find_covariances(query);
}

// The similarities of one head and some others, and what they are made of.
struct Similarity {
  Vector mean;
  Vector a;
  Vector c;
  Vector d;
  Vector s;

  Similarity(const Query& query, int64_t h, int64_t first) {
    const float own = query.mean[h];
    mean = load_vector(query.mean + first);
    a = mean * (2.0f * own) + kLuminanceOffset;
    c = mean * mean + own * own + kLuminanceOffset;
    const Vector b = load_vector(query.covariance + h * query.span + first) * 2.0f + kContrastOffset;
    d = load_vector(query.variance + first) + query.variance[h] + kContrastOffset;
    s = a * b / (c * d);
  }
};

double sum_of_pairs(const Query& query) {
  double total = 0.0;
  float terms[kLanes];
  for (int64_t h = 0; h < query.heads; ++h) {
    for (int64_t first = 0; first < query.heads; first += kLanes) {
      const Similarity pairs(query, h, first);
      store_vector(terms, 1.0f - pairs.s * pairs.s);
      const int64_t count = query.heads - first < kLanes ? query.heads - first : kLanes;
      for (int64_t k = 0; k < count; ++k) total += static_cast<double>(terms[k]);
    }
  }
  return total;
}

// The gradient of the scaled logits of a head is offset / keys + the sum over g of its factors times the centred rows.
// Fills in the factors; `scale` is the gradient of the sum over all pairs.
float find_factors(Query& query, int64_t h, float scale) {
  const float own = query.mean[h];
  float offset = 0.0f, of_variance = 0.0f;
  float* factors = query.factors + h * query.span;
  for (int64_t first = 0; first < query.heads; first += kLanes) {
    const Similarity pairs(query, h, first);
    const Part lanes{query.heads - first < kLanes ? query.heads - first : kLanes};
    const Vector slope = pairs.s * (-2.0f * scale);
    const Vector quotient = slope / (pairs.c * pairs.d);
    const Vector of_mean = slope * pairs.s * (pairs.mean / pairs.a - own / pairs.c);
    float kept[2][kLanes] = {};
    lanes.store(kept[0], of_mean);
    lanes.store(kept[1], slope * pairs.s / pairs.d);
    lanes.store(factors + first, quotient * pairs.a * 4.0f);
    offset += folded(load_vector(kept[0]));
    of_variance += folded(load_vector(kept[1]));
  }
  factors[h] -= 4.0f * of_variance;
  return 4.0f * offset;
}

template <typename T>
void write_row(const float* row, int64_t count, T* target) {
  if constexpr (std::is_same_v<T, float>) {
    for (int64_t i = 0; i < count; ++i) target[i] = row[i];
  } else {
    store(row, target, count);
  }
}

template <typename T>
void backward_query(const Params& params, Query& query, int64_t item, float scale) {
  const int64_t batch = item / params.queries, index = item - batch * params.queries;
  T* result = static_cast<T*>(params.result) + batch * params.result_strides.batch + index * params.result_strides.row;
  const float share = 1.0f / static_cast<float>(query.keys);
  for (int64_t first = 0; first < query.heads; first += kSide) {
    const int64_t count = query.heads - first < kSide ? query.heads - first : kSide;
    float offsets[kSide] = {}, of_high[kSide] = {};
    for (int64_t k = 0; k < count; ++k) {
      const int64_t h = first + k;
      offsets[k] = find_factors(query, h, scale);
      float along = offsets[k] * query.mean[h];
      for (int64_t g = 0; g < query.heads; ++g) {
        along += query.factors[h * query.span + g] * query.covariance[h * query.span + g];
      }
      of_high[k] = along;
    }
    const float* factors = query.factors + first * query.span;
    for (int64_t i = 0; i < query.width; i += kLanes) {
      Vector sums[kSide];
      for (int k = 0; k < kSide; ++k) sums[k] = Vector{} + offsets[k];
      for (int64_t g = 0; g < query.heads; ++g) {
        const Vector value = load_vector(query.centred + g * query.width + i);
        for (int k = 0; k < kSide; ++k) sums[k] = multiply_add(value, Vector{} + factors[k * query.span + g], sums[k]);
      }
      for (int64_t k = 0; k < count; ++k) {
        store_vector(query.row + k * query.width + i, sums[k] * (query.inverse[first + k] * share));
      }
    }
    for (int64_t k = 0; k < count; ++k) {
      const int64_t h = first + k;
      float* row = query.row + k * query.width;
      row[query.high_place[h]] -= query.inverse[h] * of_high[k];
      row[query.low_place[h]] -= query.inverse[h] * (offsets[k] - of_high[k]);
      write_row(row, query.keys, result + h * params.result_strides.head);
    }
  }
}

int64_t scratch_floats(const Params& params) { return Query::floats(params); }

void forward(const Params& params, int64_t begin, int64_t end, double* terms, float* scratch) {
  Query query(params, scratch);
  with_type(params.dtype, [&](auto tag) {
    for (int64_t item = begin; item < end; ++item) {
      read_query<false, decltype(tag)>(params, query, item);
      terms[item - begin] = sum_of_pairs(query);
    }
  });
}

void backward(const Params& params, int64_t begin, int64_t end, float* scratch) {
  Query query(params, scratch);
  const float scale = static_cast<float>(*params.gradient / params.pairs());
  with_type(params.dtype, [&](auto tag) {
    for (int64_t item = begin; item < end; ++item) {
      read_query<true, decltype(tag)>(params, query, item);
      backward_query<decltype(tag)>(params, query, item, scale);
    }
  });
}

}  // namespace

SYNQ_DEFINE_TABLE(InterHeadSimilarityKernels, inter_head_similarity_kernels) = {scratch_floats, forward, backward};

}  // namespace synq::cpu
