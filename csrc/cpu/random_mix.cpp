// Mixing two tensors by chance, for one instruction set; what fake_quantize.cpp says about shared code holds here too.
#include "random_mix.h"

#include "cpu/draws.h"

namespace synq::cpu {
namespace {

Chance chance_of(const RandomMixParams& params) {
  return {static_cast<uint64_t>(*params.seed), params.threshold, params.offset};
}

// With bits, because a choice between loads is a branch where the instruction set has no masked ones.
template <typename Word>
void mix(const Word* __restrict a, const Word* __restrict b, const int32_t* __restrict flags, Word* __restrict y,
         int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    const Word flag = static_cast<Word>(flags[i]);
    y[i] = static_cast<Word>((a[i] & flag) | (b[i] & ~flag));
  }
}

template <typename Word>
void part(const Word* __restrict gradient, const int32_t* __restrict flags, bool kept, Word* __restrict y,
          int64_t count) {
  const Word turn = kept ? Word{0} : static_cast<Word>(-1);
  for (int64_t i = 0; i < count; ++i) {
    y[i] = static_cast<Word>(gradient[i] & (static_cast<Word>(flags[i]) ^ turn));
  }
}

template <typename Word>
void forward_typed(const RandomMixParams& params, int64_t begin, int64_t end) {
  for_each_drawn_block(chance_of(params), begin, end, [&](int64_t start, int64_t size, const int32_t* flags) {
    mix(static_cast<const Word*>(params.a) + start, static_cast<const Word*>(params.b) + start, flags,
        static_cast<Word*>(params.y) + start, size);
  });
}

template <typename Word>
void backward_typed(const RandomMixParams& params, int64_t begin, int64_t end) {
  for_each_drawn_block(chance_of(params), begin, end, [&](int64_t start, int64_t size, const int32_t* flags) {
    const Word* gradient = static_cast<const Word*>(params.gradient) + start;
    if (params.grad_a != nullptr) part(gradient, flags, true, static_cast<Word*>(params.grad_a) + start, size);
    if (params.grad_b != nullptr) part(gradient, flags, false, static_cast<Word*>(params.grad_b) + start, size);
  });
}

void forward(const RandomMixParams& params, int64_t begin, int64_t end) {
  if (params.dtype == DType::kFloat32) return forward_typed<uint32_t>(params, begin, end);
  forward_typed<uint16_t>(params, begin, end);
}

void backward(const RandomMixParams& params, int64_t begin, int64_t end) {
  if (params.dtype == DType::kFloat32) return backward_typed<uint32_t>(params, begin, end);
  backward_typed<uint16_t>(params, begin, end);
}

}  // namespace

SYNQ_DEFINE_TABLE(RandomMixKernels, random_mix_kernels) = {forward, backward};

}  // namespace synq::cpu
