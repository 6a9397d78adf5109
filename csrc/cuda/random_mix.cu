// Mixing two tensors by chance, and the parts of the gradient.
#include "../random_mix.h"

#include "draws.cuh"

namespace synq {
namespace {

template <typename Word>
struct MixArguments {
  const Word* a;
  const Word* b;
  Word* y;
  const Word* gradient;
  Word* grad_a;
  Word* grad_b;
  ChanceArguments chance;
  int64_t elements;
  int64_t head;   // elements before the first pack
  int64_t packs;  // whole packs after the head; what is left is the tail
};

template <typename Word, int kCount>
struct Forward {
  __device__ __forceinline__ static void run(const MixArguments<Word>& arguments, const Chance& chance, int64_t place) {
    const Pack<Word, kCount> a = load_pack<kCount>(arguments.a + place);
    const Pack<Word, kCount> b = load_pack<kCount>(arguments.b + place);
    const unsigned flags = pack_flags<kCount>(chance, place);
    Pack<Word, kCount> y;
#pragma unroll
    for (int i = 0; i < kCount; ++i) y.values[i] = flags >> i & 1 ? a.values[i] : b.values[i];
    store_pack<kCount>(arguments.y + place, y);
  }
};

template <typename Word, int kCount>
struct Backward {
  __device__ __forceinline__ static void run(const MixArguments<Word>& arguments, const Chance& chance, int64_t place) {
    const Pack<Word, kCount> gradient = load_pack<kCount>(arguments.gradient + place);
    const unsigned flags = pack_flags<kCount>(chance, place);
    store_part(gradient, flags, arguments.grad_a, place);
    store_part(gradient, ~flags, arguments.grad_b, place);
  }
  __device__ __forceinline__ static void store_part(const Pack<Word, kCount>& gradient, unsigned flags, Word* target,
                                                    int64_t place) {
    if (target == nullptr) return;
    Pack<Word, kCount> y;
#pragma unroll
    for (int i = 0; i < kCount; ++i) y.values[i] = flags >> i & 1 ? gradient.values[i] : Word{0};
    store_pack<kCount>(target + place, y);
  }
};

template <template <typename, int> typename Pass, typename Word, int kCount>
__global__ void __launch_bounds__(kThreads, kMinimumBlocks) mix_kernel(const MixArguments<Word> arguments) {
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const int64_t threads = static_cast<int64_t>(gridDim.x) * blockDim.x;
  const Chance chance = arguments.chance.load();
  for (int64_t pack = thread; pack < arguments.packs; pack += threads) {
    Pass<Word, kCount>::run(arguments, chance, arguments.head + pack * kCount);
  }
  const int64_t packed = arguments.packs * kCount;
  if (thread < arguments.elements - packed) {
    Pass<Word, 1>::run(arguments, chance, thread < arguments.head ? thread : thread + packed);
  }
}

template <template <typename, int> typename Pass, typename Word, int kCount>
int launch_packs(MixArguments<Word> arguments, void* stream) {
  arguments.packs = (arguments.elements - arguments.head) / kCount;
  const int64_t needed = std::max<int64_t>(ceil_divide(arguments.packs, kThreads), 1);
  return launch_striding(mix_kernel<Pass, Word, kCount>, needed, kThreads, 0, stream, arguments);
}

// Packs need all tensors to reach a pack boundary at the same element; otherwise elements go one by one.
template <template <typename, int> typename Pass, typename Word>
int launch_typed(const RandomMixParams& params, void* stream) {
  constexpr int kCount = pack_size<Word>();
  MixArguments<Word> arguments = {static_cast<const Word*>(params.a),
                                  static_cast<const Word*>(params.b),
                                  static_cast<Word*>(params.y),
                                  static_cast<const Word*>(params.gradient),
                                  static_cast<Word*>(params.grad_a),
                                  static_cast<Word*>(params.grad_b),
                                  {params.seed, params.threshold, params.offset},
                                  params.elements,
                                  0,
                                  0};
  const Word* tensors[] = {arguments.a,        arguments.b,      arguments.y,
                           arguments.gradient, arguments.grad_a, arguments.grad_b};
  int64_t head = -1;
  for (const Word* tensor : tensors) {
    if (tensor == nullptr) continue;
    const int64_t own = elements_to_boundary(tensor);
    if (head >= 0 && own != head) return launch_packs<Pass, Word, 1>(arguments, stream);
    head = own;
  }
  arguments.head = std::min(head, params.elements);
  return launch_packs<Pass, Word, kCount>(arguments, stream);
}

template <template <typename, int> typename Pass>
int launch_any(const RandomMixParams& params, void* stream) {
  if (params.dtype == DType::kFloat32) return launch_typed<Pass, uint32_t>(params, stream);
  return launch_typed<Pass, uint16_t>(params, stream);
}

}  // namespace

int random_mix_cuda(const RandomMixParams& params, void* stream) { return launch_any<Forward>(params, stream); }

int random_mix_backward_cuda(const RandomMixParams& params, void* stream) {
  return launch_any<Backward>(params, stream);
}

}  // namespace synq
