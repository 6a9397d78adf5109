// Ranges are constants to autograd: the range ops pass it by.
#include <torch/library.h>

TORCH_LIBRARY_IMPL(synq_fast, Autograd, m) {
  m.impl("update_range", torch::CppFunction::makeFallthrough());
  m.impl("search_range", torch::CppFunction::makeFallthrough());
}
