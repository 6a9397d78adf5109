// Shared memory: the thread-local variables of this library, all of which `__shared__` makes. Filled before each block
// with bits that are NaN as floats and -1 as integers, so that what is read unwritten shows.
#pragma once

#include <link.h>

#include <cstdint>
#include <cstring>

namespace emulation {

inline thread_local char shared_marker;

struct SharedMemory {
  char* begin = nullptr;
  size_t size = 0;

  bool contains(const void* pointer) const {
    const uintptr_t address = reinterpret_cast<uintptr_t>(pointer), first = reinterpret_cast<uintptr_t>(begin);
    return address >= first && address < first + size;
  }
};

inline int find_shared_memory(dl_phdr_info* library, size_t, void* result) {
  SharedMemory& shared = *static_cast<SharedMemory*>(result);
  for (int i = 0; i < library->dlpi_phnum; ++i) {
    if (library->dlpi_phdr[i].p_type != PT_TLS || library->dlpi_tls_data == nullptr) continue;
    const SharedMemory here = {static_cast<char*>(library->dlpi_tls_data), library->dlpi_phdr[i].p_memsz};
    if (here.contains(&shared_marker)) shared = here;
  }
  return shared.size != 0;
}

inline SharedMemory& shared_memory() {
  static SharedMemory instance;
  return instance;
}

inline void poison_shared_memory() {
  SharedMemory& shared = shared_memory();
  // Kernels run on the thread that calls; its copy may be another's no longer.
  if (!shared.contains(&shared_marker)) dl_iterate_phdr(find_shared_memory, &(shared = SharedMemory()));
  std::memset(shared.begin, 0xff, shared.size);
}

}  // namespace emulation
