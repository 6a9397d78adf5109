# Passes when COMMAND fails and its output matches REPORT: a failure of another kind proves nothing.
execute_process(COMMAND ${COMMAND} RESULT_VARIABLE status OUTPUT_VARIABLE output ERROR_VARIABLE output)
message("${output}exit status: ${status}")
if(status STREQUAL "0")
  message(FATAL_ERROR "It did not fail: ${COMMAND}")
endif()
if(NOT output MATCHES "${REPORT}")
  message(FATAL_ERROR "It failed without reporting: ${REPORT}")
endif()
