// Kernel tables: one source per op, compiled once per instruction set, chosen at run time.
//
// <op>.h declares a struct of function pointers and its tables with SYNQ_DECLARE_TABLES; <op>.cpp defines the table of
// the instruction set it is compiled for with SYNQ_DEFINE_TABLE; callers take the best one with SYNQ_SELECT.
#pragma once

#if defined(SYNQ_X86)
#define SYNQ_DECLARE_TABLES(Type, name) \
  extern const Type name##_default;     \
  extern const Type name##_avx2;        \
  extern const Type name##_avx512
#define SYNQ_SELECT(name) (::synq::cpu::select(name##_default, name##_avx2, name##_avx512))
#else
#define SYNQ_DECLARE_TABLES(Type, name) extern const Type name##_default
#define SYNQ_SELECT(name) (name##_default)
#endif

// SYNQ_ISA is set by the build: default, avx2 or avx512.
#define SYNQ_JOIN_EXPANDED(name, isa) name##_##isa
#define SYNQ_JOIN(name, isa) SYNQ_JOIN_EXPANDED(name, isa)
#define SYNQ_DEFINE_TABLE(Type, name) extern const Type SYNQ_JOIN(name, SYNQ_ISA)

namespace synq::cpu {

enum class Isa { kDefault, kAvx2, kAvx512 };

// The fastest supported set, or the one named by the environment variable SYNQ_FAST_CPU_ISA when first asked for.
// Throws std::invalid_argument when that name is unknown or unsupported.
Isa isa();

#if defined(SYNQ_X86)
template <typename Table>
const Table& select(const Table& basic, const Table& avx2, const Table& avx512) {
  switch (isa()) {
    case Isa::kAvx512:
      return avx512;
    case Isa::kAvx2:
      return avx2;
    default:
      return basic;
  }
}
#endif

}  // namespace synq::cpu
