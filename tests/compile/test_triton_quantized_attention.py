"""The Triton kernels of attention on quantized operands compile."""

import pytest
import torch

from tests.compile.ptx_checks import entries, inexact, resources
from tests.compile.test_triton_compile import Compiler, compiler, pytestmark

__all__ = ["compiler", "pytestmark"]  # used by pytest

# Exponentials are right to a few units, and products of tiles are fused; the quantizers are exact.
TOLERANT = {"ex2.approx.f32", "ex2.approx.ftz.f32", "fma.rn.f32"}
MAXIMUM_REGISTERS = 255
KERNELS = {
    "attention_kernel",
    "attention_moments_kernel",
    "attention_query_gradient_kernel",
    "attention_key_gradient_kernel",
}


@pytest.mark.parametrize("log2", [False, True], ids=["equal steps", "powers of two"])
@pytest.mark.parametrize("compiler", [90], indirect=True, ids="sm_{}".format)
def test_launches(compiler: Compiler, log2: bool) -> None:
    """For one GPU and one type, without summands: products of tiles take seconds to compile."""
    from synq_fast import kernels

    x = torch.zeros(2, 3, 40, 64, dtype=torch.float16)
    one = torch.ones(1)
    arguments = (x, x, x, *[one] * 7, None, None, (4,) * 4, 0.125, log2)
    kernels.quantized_attention(*arguments)
    kernels.quantized_attention_backward(x, *arguments, (1.0,) * 4, False)
    assert {name for name, _ in compiler.ptx} == KERNELS
    assert compiler.fused == []
    found = resources(compiler.log.getvalue())
    assert found
    assert [kernel for kernel in found if kernel.spilled_bytes > 0] == []
    assert [kernel for kernel in found if kernel.registers > MAXIMUM_REGISTERS] == []
    for name, ptx in compiler.ptx:
        for instructions in entries(ptx).values():
            assert set(inexact(instructions)) <= TOLERANT, name
