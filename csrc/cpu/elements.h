// Reading any element type as float32, block by block.
#pragma once

#include <stdint.h>

#include <type_traits>

#include "cpu/half.h"
#include "dtype.h"

#if !defined(SYNQ_VECTOR_BYTES)
#define SYNQ_VECTOR_BYTES 16
#endif

namespace synq::cpu {
namespace {

constexpr int64_t kBlock = 512;

// Feeds body(offset, count, input as float) with blocks; 16-bit types pass through a buffer that stays in cache.
template <typename T, typename Body>
void for_each_block(const T* x, int64_t count, Body body) {
  if constexpr (std::is_same_v<T, float>) {
    body(int64_t{0}, count, x);
  } else {
    float buffer[kBlock];
    for (int64_t i = 0; i < count; i += kBlock) {
      const int64_t size = count - i < kBlock ? count - i : kBlock;
      load(x + i, buffer, size);
      body(i, size, static_cast<const float*>(buffer));
    }
  }
}

// At most kBlock elements as float32: where they lie, or for 16-bit types in a buffer.
template <typename T>
struct Reader {
  float buffer[kBlock];
  const float* read(const T* source, int64_t size) {
    load(source, buffer, size);
    return buffer;
  }
};

template <>
struct Reader<float> {
  const float* read(const float* source, int64_t) { return source; }
};

// Room for at most kBlock results in float32, stored by close().
template <typename T>
struct Writer {
  float buffer[kBlock];
  float* open(T*) { return buffer; }
  void close(T* target, int64_t size) { store(buffer, target, size); }
};

template <>
struct Writer<float> {
  float* open(float* target) { return target; }
  void close(float*, int64_t) {}
};

// Calls call(a value of the element type).
template <typename Call>
void with_type(DType dtype, Call call) {
  switch (dtype) {
    case DType::kFloat32:
      return call(float{});
    case DType::kFloat16:
      return call(Float16{});
    case DType::kBFloat16:
      return call(BFloat16{});
  }
}

}  // namespace
}  // namespace synq::cpu
