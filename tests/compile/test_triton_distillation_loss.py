"""The Triton kernels of the distillation losses compile for every GPU and spill nothing."""

import pytest
import torch

from tests.compile.ptx_checks import entries, inexact, resources, widest_access
from tests.compile.test_triton_compile import (
    DTYPES,
    MAXIMUM_REGISTERS,
    Compiler,
    compiler,
    pytestmark,
)

__all__ = ["compiler", "pytestmark"]  # used by pytest


def launch_all(dtype: torch.dtype) -> None:
    """Calls the launchers for few and for many classes, with and without gradients."""
    from synq_fast import kernels

    for classes in (10, 1024):
        logits, labels = torch.zeros(16, classes, dtype=dtype), torch.zeros(16, dtype=torch.int64)
        kernels.distillation_loss(logits, logits, labels, 20.0, 20.0, 0.5)
        kernels.distillation_loss_with_gradient(logits, logits, labels, 20.0, 20.0, 0.5, True, True)
    gradients, scale = torch.zeros(2, 16, 1024), torch.zeros(())
    for kl, ce in ((scale, scale), (scale, None), (None, scale)):
        kernels.distillation_loss_backward(kl, ce, gradients, logits)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_launches(compiler: Compiler, dtype: torch.dtype) -> None:
    launch_all(dtype)
    assert {name for name, _ in compiler.ptx} == {"combine_kernel", "rows_kernel", "total_kernel"}
    kernels = resources(compiler.log.getvalue())
    assert kernels
    assert [kernel for kernel in kernels if kernel.spilled_bytes > 0] == []
    assert [kernel for kernel in kernels if kernel.registers > MAXIMUM_REGISTERS] == []
    wide = set()
    for name, ptx in compiler.ptx:
        for instructions in entries(ptx).values():
            wrong = inexact(instructions)
            assert not [w for w in wrong if w.startswith(("atom", "red"))], name
            if widest_access(instructions, "ld") >= 128:
                wide.add(name)
    assert "combine_kernel" in wide
