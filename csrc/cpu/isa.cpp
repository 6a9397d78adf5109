#include "cpu/isa.h"

#include <stdlib.h>
#if defined(SYNQ_X86)
#include <cpuid.h>
#endif

#include <stdexcept>

namespace synq::cpu {
namespace {

constexpr const char* kNames[] = {"default", "avx2", "avx512"};

const char* name_of(Isa isa) { return kNames[static_cast<int>(isa)]; }

#if defined(SYNQ_X86)
// Not every compiler's __builtin_cpu_supports knows this name.
bool has_f16c() {
  unsigned a, b, c, d;
  return __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_F16C) != 0;
}
#endif

std::vector<Isa> supported() {
  std::vector<Isa> sets{Isa::kDefault};
#if defined(SYNQ_X86)
  if (__builtin_cpu_supports("avx2") && has_f16c() && __builtin_cpu_supports("fma")) {
    sets.push_back(Isa::kAvx2);
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl")) {
      sets.push_back(Isa::kAvx512);
    }
  }
#endif
  return sets;
}

Isa choose() {
  const auto sets = supported();
  const char* wanted = getenv("SYNQ_FAST_CPU_ISA");
  if (wanted == nullptr || *wanted == '\0') return sets.back();
  std::string names;
  for (const Isa set : sets) {
    if (name_of(set) == std::string(wanted)) return set;
    names += names.empty() ? name_of(set) : std::string(", ") + name_of(set);
  }
  throw std::invalid_argument("SYNQ_FAST_CPU_ISA is '" + std::string(wanted) +
                              "', but this processor and build offer " + names +
                              "; set one of these or unset the variable");
}

}  // namespace

std::vector<std::string> supported_isas() {
  std::vector<std::string> names;
  for (const Isa set : supported()) names.emplace_back(name_of(set));
  return names;
}

Isa isa() {
  static const Isa chosen = choose();
  return chosen;
}

std::string isa_name() { return name_of(isa()); }

}  // namespace synq::cpu
