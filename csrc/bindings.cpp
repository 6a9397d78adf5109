// The module synq_fast._C: loading it registers the ops; it answers how it was built and what the processor has.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "cpu/isa.h"
#include "ops/matmul_precision.h"

PYBIND11_MODULE(_C, m) {
  m.doc() = "Native kernels of synq_fast; importing the module registers them under torch.ops.synq_fast.";
  m.attr("compiler") = SYNQ_COMPILER;
  m.attr("torch_version") = SYNQ_TORCH_VERSION;
#if defined(SYNQ_CUDA_VERSION)
  m.attr("cuda_version") = SYNQ_CUDA_VERSION;
  m.attr("cuda_architectures") = SYNQ_CUDA_ARCHITECTURES;
#else
  m.attr("cuda_version") = pybind11::none();
  m.attr("cuda_architectures") = "";
#endif
  m.def("supported_cpu_isas", &synq::cpu::supported_isas, "Instruction sets built and present here, slowest first.");
  m.def("cpu_isa", &synq::cpu::isa_name,
        "The instruction set in use; raises ValueError if SYNQ_FAST_CPU_ISA names one that is not supported.");
  m.def("matmul_uses_tf32", &synq::matmul_uses_tf32,
        "Whether the caller allows TF32 in a GPU's float32 matrix products, as the CUDA kernels see it.");
}
