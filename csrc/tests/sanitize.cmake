# Compiles everything that follows with the sanitizers of SYNQ_SANITIZE; those that do not work here are listed in
# SYNQ_MISSING_SANITIZERS.
include(CheckCXXSourceRuns)

set(SYNQ_SANITIZERS)
set(SYNQ_MISSING_SANITIZERS)
foreach(sanitizer ${SYNQ_SANITIZE})
  set(CMAKE_REQUIRED_FLAGS -fsanitize=${sanitizer})
  check_cxx_source_runs("int main() { return 0; }" SYNQ_HAS_${sanitizer}_SANITIZER)
  if(SYNQ_HAS_${sanitizer}_SANITIZER)
    list(APPEND SYNQ_SANITIZERS ${sanitizer})
  else()
    list(APPEND SYNQ_MISSING_SANITIZERS ${sanitizer})
    message(WARNING "The ${sanitizer} sanitizer does not work with ${CMAKE_CXX_COMPILER}; it is skipped.")
  endif()
endforeach()
unset(CMAKE_REQUIRED_FLAGS)

if(SYNQ_SANITIZERS)
  list(JOIN SYNQ_SANITIZERS "," sanitizers)
  set(sanitizer_options -fsanitize=${sanitizers} -fno-sanitize-recover=all)
  # Instrumented code takes minutes to optimize.
  set(KERNEL_OPTIMIZATION -O1)
  if("undefined" IN_LIST SYNQ_SANITIZERS)
    set(TEST_OPTIMIZATION -O0)
    # Not part of `undefined`, and a kernel turns floats into codes.
    list(APPEND sanitizer_options -fsanitize=float-cast-overflow)
  endif()
  add_compile_options(${sanitizer_options} -g1 -fno-omit-frame-pointer)
  add_link_options(${sanitizer_options})
endif()
