"""The Triton kernels on heads of attention compile for every GPU and spill nothing."""

import pytest
import torch

from tests.compile.ptx_checks import entries, resources
from tests.compile.test_triton_compile import (
    DTYPES,
    Compiler,
    compiler,
    pytestmark,
)

__all__ = ["compiler", "pytestmark"]  # used by pytest

MAXIMUM_REGISTERS = 255  # covariances and rows of a query live in registers
KERNELS = {
    "head_gradient_kernel",
    "head_pairs_kernel",
    "similarity_gradient_kernel",
    "similarity_statistics_kernel",
}


def launch_all(dtype: torch.dtype) -> None:
    """Calls the launchers for few and for many heads, whole and cut, with and without weights."""
    from synq_fast import kernels

    grad = torch.zeros(())
    for heads, keys in ((3, 196), (24, 49), (48, 49)):
        logits = torch.zeros(2, heads, 6, keys, dtype=dtype)
        for x in (logits, logits[:, :, 1:, 1:])[: 2 if heads == 3 else 1]:
            kernels.inter_head_similarity_loss(x)
            kernels.inter_head_similarity_loss_backward(grad, x)
    for positions, channels in ((196, 64), (7, 5), (1, 1)):
        student = torch.zeros(2, 3, positions + 1, channels, dtype=dtype)
        x = student[:, :, 1:]
        for weight in (None, torch.ones(2, 1, positions)):
            _, statistics = kernels.structural_similarity_loss(x, x, weight)
            kernels.structural_similarity_loss_backward(grad, x, x, weight, statistics)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_launches(compiler: Compiler, dtype: torch.dtype) -> None:
    launch_all(dtype)
    assert {name for name, _ in compiler.ptx} == KERNELS
    compiled = resources(compiler.log.getvalue())
    assert compiled
    assert [kernel for kernel in compiled if kernel.spilled_bytes > 0] == []
    assert [kernel for kernel in compiled if kernel.registers > MAXIMUM_REGISTERS] == []
    for name, ptx in compiler.ptx:
        for instructions in entries(ptx).values():
            # No sum in no fixed order, and no product of fewer bits than float32 has.
            for instruction in instructions:
                assert not instruction.startswith(("atom", "red.")), (name, instruction)
                assert "tf32" not in instruction, (name, instruction)
            if name.startswith("head_"):
                assert any(i.startswith("fma.rn.f32") for i in instructions), name
