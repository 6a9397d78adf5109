// Memory that notices what is done outside it: reads and writes beyond a page edge crash, writes beyond any other edge
// are found afterwards, and AddressSanitizer reports both at once.
#pragma once

#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <initializer_list>
#include <new>
#include <type_traits>
#include <vector>

#include "check.h"

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define SYNQ_ADDRESS_SANITIZER
#endif
#endif
#if defined(__SANITIZE_ADDRESS__) && !defined(SYNQ_ADDRESS_SANITIZER)
#define SYNQ_ADDRESS_SANITIZER
#endif
#if defined(SYNQ_ADDRESS_SANITIZER)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(address, size) (static_cast<void>(address), static_cast<void>(size))
#define ASAN_UNPOISON_MEMORY_REGION(address, size) (static_cast<void>(address), static_cast<void>(size))
#endif

namespace synq::test {

// Where in its pages a buffer lies. Only kStart is sure to be aligned for vectors; the end of a page is aligned for
// counts that are a multiple of the vector, and kShifted, one element past a boundary, never.
enum class Place { kStart, kEnd, kShifted };
constexpr Place kPlaces[] = {Place::kStart, Place::kEnd, Place::kShifted};

inline const char* name_of(Place place) {
  return place == Place::kStart ? "at a page's start" : place == Place::kEnd ? "at a page's end" : "unaligned";
}

// An array of `count` elements between two pages that nothing may touch. Fresh memory is NaN, so that reading what was
// never written shows.
template <typename T>
class Buffer {
 public:
  static constexpr unsigned char kFill = std::is_integral_v<T> ? 0xa5 : 0xff;

  explicit Buffer(int64_t count, Place place = Place::kEnd) : count_(count) {
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    const size_t bytes = static_cast<size_t>(count) * sizeof(T);
    inside_ = (bytes + sizeof(T) + page - 1) / page * page;
    mapped_ = inside_ + 2 * page;
    void* memory = mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    base_ = static_cast<unsigned char*>(memory);
    mprotect(base_, page, PROT_NONE);
    mprotect(base_ + page + inside_, page, PROT_NONE);
    start_ = base_ + page;
    memset(start_, kFill, inside_);
    const size_t offset = place == Place::kStart ? 0 : place == Place::kEnd ? inside_ - bytes : sizeof(T);
    data_ = reinterpret_cast<T*>(start_ + offset);
    ASAN_POISON_MEMORY_REGION(start_, offset);
    ASAN_POISON_MEMORY_REGION(start_ + offset + bytes, inside_ - offset - bytes);
  }
  Buffer(const std::vector<T>& values, Place place) : Buffer(static_cast<int64_t>(values.size()), place) {
    std::copy(values.begin(), values.end(), data_);
  }
  ~Buffer() {
    ASAN_UNPOISON_MEMORY_REGION(start_, inside_);
    const unsigned char* first = reinterpret_cast<const unsigned char*>(data_);
    const unsigned char* last = reinterpret_cast<const unsigned char*>(data_ + count_);
    const auto touched = [](unsigned char byte) { return byte != kFill; };
    if (std::any_of(static_cast<const unsigned char*>(start_), first, touched)) {
      fail(__FILE__, __LINE__, "bytes before the buffer were written");
    }
    if (std::any_of(last, static_cast<const unsigned char*>(start_ + inside_), touched)) {
      fail(__FILE__, __LINE__, "bytes after the buffer were written");
    }
    munmap(base_, mapped_);
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  T* data() { return data_; }
  const T* data() const { return data_; }
  int64_t count() const { return count_; }
  T& operator[](int64_t i) { return data_[i]; }
  const T& operator[](int64_t i) const { return data_[i]; }
  void clear() { memset(data_, kFill, static_cast<size_t>(count_) * sizeof(T)); }
  void fill(T value) { std::fill(data_, data_ + count_, value); }

  // Whether elements [begin, end) still hold the bytes of fresh memory.
  bool is_untouched(int64_t begin, int64_t end) const {
    const unsigned char* first = reinterpret_cast<const unsigned char*>(data_ + begin);
    const unsigned char* last = reinterpret_cast<const unsigned char*>(data_ + end);
    return std::all_of(first, last, [](unsigned char byte) { return byte == kFill; });
  }

 private:
  int64_t count_;
  size_t inside_;
  size_t mapped_;
  unsigned char* base_;
  unsigned char* start_;
  T* data_;
};

}  // namespace synq::test
