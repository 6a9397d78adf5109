// Runs every test of the program, or those named by its arguments.
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include <exception>

#include "check.h"
#include "memory.h"

namespace synq::test {
namespace {

constexpr int kMostPrinted = 10;

int failures = 0;
std::vector<std::string>& circumstances() {
  static std::vector<std::string> list;
  return list;
}

#if !defined(SYNQ_ADDRESS_SANITIZER)
// The name of the test is on the line before: it was printed when the test began.
void explain_crash(int signal) {
  static const char message[] = "crashed, perhaps by reading or writing beyond the edge of a buffer (memory.h)\n";
  const ssize_t written = write(STDERR_FILENO, message, sizeof message - 1);
  static_cast<void>(written);
  _exit(128 + signal);
}
#endif

void run(const Test& test) {
  printf("%s\n", test.name);
  fflush(stdout);
  try {
    test.body();
  } catch (const std::exception& error) {
    fail(test.name, 0, std::string("threw: ") + error.what());
  }
}

}  // namespace

std::vector<Test>& tests() {
  static std::vector<Test> list;
  return list;
}

Where::~Where() { circumstances().pop_back(); }
void Where::push(std::string text) { circumstances().push_back(std::move(text)); }

void fail(const char* file, int line, const std::string& message) {
  if (++failures > kMostPrinted) return;
  fprintf(stderr, "%s:%d: %s", file, line, message.c_str());
  for (const std::string& text : circumstances())
    fprintf(stderr, "%s%s", &text == &circumstances()[0] ? "\n  at " : "", text.c_str());
  fprintf(stderr, "\n");
}

}  // namespace synq::test

int main(int count, char** arguments) {
  using namespace synq::test;
#if !defined(SYNQ_ADDRESS_SANITIZER)
  signal(SIGSEGV, explain_crash);
  signal(SIGBUS, explain_crash);
#endif
  int ran = 0;
  for (const Test& test : tests()) {
    bool wanted = count == 1;
    for (int i = 1; i < count; ++i) wanted |= arguments[i] == std::string(test.name);
    if (!wanted) continue;
    run(test);
    ++ran;
  }
  printf("%d tests, %d failed checks\n", ran, failures);
  return failures > 0 || ran == 0 ? 1 : 0;
}
