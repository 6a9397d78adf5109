"""The Triton kernels of the channels' moments compile for every GPU and spill nothing."""

import pytest
import torch

from tests.compile.ptx_checks import entries, inexact, resources, wide_accesses, widest_access
from tests.compile.test_triton_compile import (
    DTYPES,
    MAXIMUM_REGISTERS,
    Compiler,
    compiler,
    pytestmark,
)

__all__ = ["compiler", "pytestmark"]  # used by pytest


def launch_all(dtype: torch.dtype) -> None:
    """Calls the launchers on both layouts, with one part a channel, with several and with many."""
    from synq_fast import kernels

    for shape in ((64, 32, 16, 16), (64, 32, 14, 14), (1, 32, 256, 256)):
        image = torch.zeros(shape, dtype=dtype)
        gradient = torch.zeros(shape[:2])
        for x in (image, image.to(memory_format=torch.channels_last)):
            kernels.channel_moments(x)
            kernels.channel_moments_backward(gradient, gradient, x, gradient)
            kernels.channel_moments_backward(None, gradient, x, gradient)
            kernels.channel_moments_backward(gradient, None, x, gradient)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_launches(compiler: Compiler, dtype: torch.dtype) -> None:
    launch_all(dtype)
    names = {"finish_moments_kernel", "moments_backward_kernel", "moments_kernel"}
    assert {name for name, _ in compiler.ptx} == names
    kernels = resources(compiler.log.getvalue())
    assert kernels
    assert [kernel for kernel in kernels if kernel.spilled_bytes > 0] == []
    assert [kernel for kernel in kernels if kernel.registers > MAXIMUM_REGISTERS] == []
    wide, waiting = set(), []
    for name, ptx in compiler.ptx:
        for instructions in entries(ptx).values():
            if name == "moments_kernel":
                waiting.append(wide_accesses(instructions, "ld"))
            wrong = inexact(instructions)
            assert not [w for w in wrong if w.startswith(("atom", "red"))], name
            if widest_access(instructions, "ld") >= 128:
                wide.add(name)
    assert wide >= {"moments_kernel", "moments_backward_kernel"}
    # All but rows of 14 x 14 halves, which no 16 bytes divide; several rows of a lane at a time.
    assert sum(count >= 1 for count in waiting) >= len(waiting) - (dtype != torch.float32)
    assert sum(count >= dtype.itemsize for count in waiting) >= 4
