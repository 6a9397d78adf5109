#include "cpu/dispatch.h"

#include <stdlib.h>

#include <stdexcept>

namespace synq::cpu {
namespace {

std::vector<const Kernels*> supported() {
  std::vector<const Kernels*> tables{&kDefaultKernels};
#if defined(SYNQ_X86)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c")) tables.push_back(&kAvx2Kernels);
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("f16c")) {
    tables.push_back(&kAvx512Kernels);
  }
#endif
  return tables;
}

const Kernels& choose() {
  const auto tables = supported();
  const char* wanted = getenv("SYNQ_FAST_CPU_ISA");
  if (wanted == nullptr || *wanted == '\0') return *tables.back();
  std::string names;
  for (const Kernels* table : tables) {
    if (table->name == std::string(wanted)) return *table;
    names += names.empty() ? table->name : std::string(", ") + table->name;
  }
  throw std::invalid_argument("SYNQ_FAST_CPU_ISA is '" + std::string(wanted) +
                              "', but this processor and build offer " + names +
                              "; set one of these or unset the variable");
}

}  // namespace

std::vector<std::string> supported_isas() {
  std::vector<std::string> names;
  for (const Kernels* table : supported()) names.emplace_back(table->name);
  return names;
}

const Kernels& kernels() {
  static const Kernels& chosen = choose();
  return chosen;
}

}  // namespace synq::cpu
