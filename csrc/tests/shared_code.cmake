# Passes when no object of OBJECTS defines code or data that the linker shares between objects (weak symbols: what inline
# functions and templates become). The linker keeps one copy of it, and that could be the copy compiled for an
# instruction set that the running processor lacks.
set(found)
foreach(object ${OBJECTS})
  execute_process(COMMAND ${NM} --defined-only ${object} OUTPUT_VARIABLE symbols COMMAND_ERROR_IS_FATAL ANY)
  string(REGEX MATCHALL "[^\n]* [WVu] [^\n]*" shared "${symbols}")
  foreach(symbol ${shared})
    string(APPEND found "${object}: ${symbol}\n")
  endforeach()
endforeach()
if(found)
  message("${found}")
  message(FATAL_ERROR "Kernels share code between instruction sets; put it in an anonymous namespace.")
endif()
