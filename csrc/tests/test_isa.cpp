// The choice of the instruction set. The first test must run before anything else asks for it, so each test that needs
// a fresh answer runs in a child process.
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include <stdexcept>

#include "check.h"
#include "cpu/isa.h"
#include "kernels.h"

namespace {

using namespace synq;
using namespace synq::test;

// What isa_name() answers in a new process in which the variable has this value; an error's message after "! ".
std::string answer(const char* wanted) {
  int ends[2];
  if (pipe(ends) != 0) throw std::runtime_error("pipe failed");
  const pid_t child = fork();
  if (child == 0) {
    std::string text;
    if (wanted == nullptr) {
      unsetenv("SYNQ_FAST_CPU_ISA");
    } else {
      setenv("SYNQ_FAST_CPU_ISA", wanted, 1);
    }
    try {
      text = cpu::isa_name();
    } catch (const std::invalid_argument& error) {
      text = std::string("! ") + error.what();
    }
    _exit(write(ends[1], text.data(), text.size()) == static_cast<ssize_t>(text.size()) ? 0 : 1);
  }
  close(ends[1]);
  std::string text;
  char buffer[256];
  for (ssize_t size; (size = read(ends[0], buffer, sizeof buffer)) > 0;) text.append(buffer, static_cast<size_t>(size));
  close(ends[0]);
  int status = 0;
  waitpid(child, &status, 0);
  CHECK_EQUAL(status, 0);
  return text;
}

}  // namespace

TEST(the_fastest_set_is_the_default) {
  const std::string fastest = cpu::supported_isas().back();
  CHECK_EQUAL(answer(nullptr), fastest);
  CHECK_EQUAL(answer(""), fastest);
}

TEST(a_supported_set_can_be_asked_for) {
  CHECK_EQUAL(cpu::supported_isas().front(), std::string("default"));
  for (const std::string& name : cpu::supported_isas()) CHECK_EQUAL(answer(name.c_str()), name);
}

TEST(an_unknown_set_is_refused_with_the_choices) {
  for (const char* wanted : {"sse9", "AVX2", "avx", " default", "avx5121"}) {
    const std::string text = answer(wanted);
    WHERE(wanted, "answered", text);
    CHECK(text.rfind("! ", 0) == 0);
    CHECK(text.find(std::string("'") + wanted + "'") != std::string::npos);
    for (const std::string& name : cpu::supported_isas()) CHECK(text.find(name) != std::string::npos);
  }
}

TEST(a_refusal_does_not_stick) {
  setenv("SYNQ_FAST_CPU_ISA", "sse9", 1);
  bool refused = false;
  try {
    cpu::isa();
  } catch (const std::invalid_argument&) {
    refused = true;
  }
  CHECK(refused);
  unsetenv("SYNQ_FAST_CPU_ISA");
}

TEST(threads_that_ask_first_get_the_same_answer) {
  std::vector<cpu::Isa> answers(8, cpu::Isa::kDefault);
  Split one_each;
  for (int64_t i = 0; i < 8; ++i) one_each.emplace_back(i, i + 1);
  in_threads(one_each, [&](int64_t begin, int64_t) { answers[static_cast<size_t>(begin)] = cpu::isa(); });
  for (const cpu::Isa given : answers) CHECK(given == cpu::isa());
  CHECK_EQUAL(cpu::isa_name(), cpu::supported_isas().back());
}
