#include "../quantized_attention.h"
#include "memory.cuh"
namespace synq {
int quantized_attention_cuda(const QuantizedAttentionParams&, void*) { return cudaErrorNotSupported; }
int64_t quantized_attention_workspace_cuda(const QuantizedAttentionParams&) { return 1; }
int quantized_attention_backward_cuda(const QuantizedAttentionParams&, void*) { return cudaErrorNotSupported; }
}
