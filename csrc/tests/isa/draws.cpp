#include "isa/draws.h"

#include "cpu/draws.h"

namespace synq::cpu {
namespace {

void flags_of(const Chance& chance, int64_t begin, int64_t end, int32_t* target) {
  for_each_drawn_block(chance, begin, end, [&](int64_t start, int64_t size, const int32_t* flags) {
    memcpy(target + (start - begin), flags, sizeof(int32_t) * static_cast<size_t>(size));
  });
}

}  // namespace

SYNQ_DEFINE_TABLE(DrawsKernels, draws_kernels) = {flags_of};

}  // namespace synq::cpu
