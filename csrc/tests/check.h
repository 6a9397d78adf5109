// Checks that say what was given and what was expected. A file of tests is TEST(name) { ... } blocks; main is in
// main.cpp.
#pragma once

#include <stdint.h>
#include <string.h>

#include <sstream>
#include <string>
#include <type_traits>
#include <vector>

#include "cpu/half.h"

namespace synq::test {

struct Test {
  const char* name;
  void (*body)();
};

std::vector<Test>& tests();

struct Registered {
  Registered(const char* name, void (*body)()) { tests().push_back({name, body}); }
};

// Counts and prints a failure of the running test, together with the circumstances in force.
void fail(const char* file, int line, const std::string& message);

// Names the circumstances of the checks in its scope, such as the instruction set and the size.
class Where {
 public:
  template <typename... Parts>
  explicit Where(const Parts&... parts) {
    std::ostringstream text;
    static_cast<void>(((text << parts << ' '), ...));
    push(text.str());
  }
  ~Where();
  Where(const Where&) = delete;
  Where& operator=(const Where&) = delete;

 private:
  static void push(std::string text);
};

inline double as_double(cpu::Float16 value) { return cpu::widen(value); }
inline double as_double(cpu::BFloat16 value) { return cpu::widen(value); }
template <typename T>
double as_double(T value) {
  return static_cast<double>(value);
}

// The same bits, or both NaN: which NaN it is depends on the instruction.
template <typename T>
bool same(const T& given, const T& expected) {
  if (memcmp(&given, &expected, sizeof(T)) == 0) return true;
  return as_double(given) != as_double(given) && as_double(expected) != as_double(expected);
}

template <typename T>
std::string text(const T& value) {
  std::ostringstream stream;
  stream.precision(17);
  if constexpr (std::is_convertible_v<T, std::string>) {
    stream << '"' << value << '"';
  } else {
    uint64_t bits = 0;
    memcpy(&bits, &value, sizeof(T));
    stream << as_double(value) << " (0x" << std::hex << bits << ")";
  }
  return stream.str();
}

template <typename T>
void check_equal(const char* file, int line, const char* expression, const T& given,
                 const std::common_type_t<T>& expected) {
  bool equal;
  if constexpr (std::is_convertible_v<T, std::string>) {
    equal = given == expected;
  } else {
    equal = same(given, expected);
  }
  if (!equal) fail(file, line, std::string(expression) + " is " + text(given) + ", expected " + text(expected));
}

// Reports the first difference and how many there are.
template <typename T>
void check_all_equal(const char* file, int line, const char* expression, const T* given, const T* expected,
                     int64_t count) {
  int64_t first = -1;
  int64_t different = 0;
  for (int64_t i = 0; i < count; ++i) {
    if (same(given[i], expected[i])) continue;
    if (different++ == 0) first = i;
  }
  if (different == 0) return;
  fail(file, line,
       std::string(expression) + "[" + std::to_string(first) + "] is " + text(given[first]) + ", expected " +
           text(expected[first]) + "; " + std::to_string(different) + " of " + std::to_string(count) + " differ");
}

}  // namespace synq::test

#define SYNQ_CONCATENATE_EXPANDED(a, b) a##b
#define SYNQ_CONCATENATE(a, b) SYNQ_CONCATENATE_EXPANDED(a, b)

#define TEST(name)                                                       \
  static void name();                                                    \
  static const ::synq::test::Registered name##_registered{#name, &name}; \
  static void name()

#define WHERE(...) const ::synq::test::Where SYNQ_CONCATENATE(where_, __LINE__)(__VA_ARGS__)

#define CHECK(condition) \
  ((condition) ? static_cast<void>(0) : ::synq::test::fail(__FILE__, __LINE__, "expected " #condition))
#define CHECK_EQUAL(given, expected) ::synq::test::check_equal(__FILE__, __LINE__, #given, given, expected)
#define CHECK_ALL_EQUAL(given, expected, count) \
  ::synq::test::check_all_equal(__FILE__, __LINE__, #given, given, expected, count)
