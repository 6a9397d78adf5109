"""The Triton kernels of the class activation maps compile, and spill nothing."""

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

__all__ = ["compiler", "pytestmark"]


def launch_all(dtype: torch.dtype) -> None:
    """Calls every launcher on every kind of map and layout."""
    from synq_fast import kernels

    image, score = torch.zeros(2, 64, 8, 8, dtype=dtype), torch.zeros(2)
    grad = torch.zeros(2, 1, 64, 64)
    for memory_format in (torch.contiguous_format, torch.channels_last):
        x = image.to(memory_format=memory_format)
        last = x.stride(1) == 1
        # The types differ in their loads and stores alone.
        for kind in range(4) if dtype == torch.float32 else (1, 2):
            arguments = (x, x, score if kind == 1 else None, kind, 64, 64, 0.0, 0.0)
            _, weights, coarse = kernels.grad_cam(*arguments)
            weights = x if kind >= 2 else weights
            kernels.grad_cam_backward(grad, weights, coarse, kind, 0.0, 0.0, last, dtype)
        # More positions than a program holds of a channel.
        large = x.tile(1, 1, 3, 3).contiguous(memory_format=memory_format)
        for kind in (0, 1):
            kernels.grad_cam(large, large, score if kind == 1 else None, kind, 64, 64, 0.0, 0.0)
        kernels.cam_alignment_loss(x, x, grad.to(dtype), 0.0, 0.0, True)
        weights, slope = torch.zeros(2, 64), torch.zeros(2, 1, 8, 8)
        kernels.cam_alignment_loss_backward(torch.zeros(()), weights, slope, last, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_launches(compiler: Compiler, dtype: torch.dtype) -> None:
    launch_all(dtype)
    assert {name for name, _ in compiler.ptx} == {
        "shares_kernel",
        "join_kernel",
        "weights_kernel",
        "coarse_kernel",
        "stretch_kernel",
        "map_kernel",
        "interval_kernel",
        "slope_kernel",
        "loss_kernel",
        "spread_kernel",
    }
    assert compiler.fused == []
    kernels = resources(compiler.log.getvalue())
    assert [kernel for kernel in kernels if kernel.spilled_bytes > 0] == []
    assert [kernel for kernel in kernels if kernel.registers > MAXIMUM_REGISTERS] == []
    wide = set()
    for name, ptx in compiler.ptx:
        for instructions in entries(ptx).values():
            # exp is approximate, to a part in 10^6: it scales a whole map.
            assert [wrong for wrong in inexact(instructions) if "ex2" not in wrong] == [], name
            if widest_access(instructions, "st") >= 128:
                wide.add(name)
    assert wide >= {"map_kernel", "spread_kernel"}
