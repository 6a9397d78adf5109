// Coroutines that change places without a system call; swapcontext makes one each time, for the signal mask.
#pragma once

#include <ucontext.h>

#include <vector>

namespace emulation {

// Where something goes on. The compiler's own jumps: a hardened longjmp refuses to leave a stack.
struct Resumption {
  void* words[5];
};

[[noreturn]] __attribute__((noinline)) inline void resume(Resumption& there) { __builtin_longjmp(there.words, 1); }

__attribute__((noinline)) inline void change_places(Resumption& here, Resumption& there) {
  if (__builtin_setjmp(here.words) == 0) resume(there);
}

struct Coroutine {
  Resumption resumption;
  std::vector<char> stack = std::vector<char>(64 * 1024);
  bool started = false;
};

// Goes on with a coroutine, or begins `run` in it, which must never return.
__attribute__((noinline)) inline void go_on(Resumption& here, Coroutine& there, void (*run)()) {
  if (there.started) {
    change_places(here, there.resumption);
    return;
  }
  there.started = true;
  ucontext_t context;
  getcontext(&context);
  context.uc_stack.ss_sp = there.stack.data();
  context.uc_stack.ss_size = there.stack.size();
  context.uc_link = nullptr;
  makecontext(&context, run, 0);
  if (__builtin_setjmp(here.words) == 0) setcontext(&context);
}

}  // namespace emulation
