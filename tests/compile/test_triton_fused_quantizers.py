"""The Triton kernels of activations fused with learned grids compile for every GPU."""

import pytest
import torch

from tests.compile.ptx_checks import divisions, entries, inexact, resources, widest_access
from tests.compile.test_triton_compile import (
    DTYPES,
    MAXIMUM_REGISTERS,
    Compiler,
    compiler,
    pytestmark,
)

__all__ = ["compiler", "pytestmark"]  # used by pytest

# Exponentials are right to a few units; the quantizer after them is exact.
TOLERANT = {"ex2.approx.f32", "ex2.approx.ftz.f32"}


def launch_all(x: torch.Tensor) -> None:
    """Calls the launchers, both ways."""
    from synq_fast import kernels

    one = torch.ones(1)
    kernels.gelu_fake_quantize(x, one, one, 4)
    kernels.gelu_fake_quantize_backward(x, x, one, one, 4, 0.5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_launches(compiler: Compiler, dtype: torch.dtype) -> None:
    for shape in ((4, 16, 64), (3, 5, 7)):
        launch_all(torch.zeros(shape, dtype=dtype))
    names = {"gelu_kernel", "gelu_gradient_kernel", "finish_sums_kernel"}
    assert {name for name, _ in compiler.ptx} == names
    assert compiler.fused == []
    kernels = resources(compiler.log.getvalue())
    assert kernels
    assert [kernel for kernel in kernels if kernel.spilled_bytes > 0] == []
    assert [kernel for kernel in kernels if kernel.registers > MAXIMUM_REGISTERS] == []
    wide = set()
    for name, ptx in compiler.ptx:
        for instructions in entries(ptx).values():
            allowed = set() if name == "finish_sums_kernel" else TOLERANT
            assert set(inexact(instructions)) <= allowed, name
            assert name != "gelu_kernel" or divisions(instructions) > 0
            packs = (widest_access(instructions, kind) >= 128 for kind in ("ld", "st"))
            if all(packs):
                wide.add(name)
    assert wide >= names - {"finish_sums_kernel"}
