"""The Triton kernels of the BN-statistics losses compile for every GPU and spill nothing."""

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
    """Calls every launcher on both layouts, on channels of one part and of many."""
    from synq_fast import kernels

    scale, stored = torch.zeros(()), torch.zeros(32)
    for size in (8, 128):
        image = torch.zeros(4, 32, size, size, dtype=dtype)
        for x in (image, image.to(memory_format=torch.channels_last)):
            _, _, statistics = kernels.bn_statistics_loss(x, stored, stored)
            kernels.bn_statistics_loss_backward(scale, scale, x, statistics)
            kernels.bn_statistics_loss_backward(None, scale, x, statistics)
            layers, weights = [x, x, x[:2]], [1.0, 0.5, 0.5]
            loss, rows = kernels.bn_statistics_losses(layers, [stored] * 3, [stored] * 3, weights)
            kernels.bn_statistics_losses_backward(loss, layers, rows, weights)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_launches(compiler: Compiler, dtype: torch.dtype) -> None:
    launch_all(dtype)
    assert {name for name, _ in compiler.ptx} == {
        "finish_kernel",
        "gradient_kernel",
        "layers_finish_kernel",
        "layers_gradient_kernel",
        "layers_partials_kernel",
        "partials_kernel",
        "total_kernel",
        "words_kernel",
    }
    kernels = resources(compiler.log.getvalue())
    assert kernels
    assert [kernel for kernel in kernels if kernel.spilled_bytes > 0] == []
    assert [kernel for kernel in kernels if kernel.registers > MAXIMUM_REGISTERS] == []
    wide, waiting = set(), {"partials_kernel": [], "layers_partials_kernel": []}
    for name, ptx in compiler.ptx:
        for instructions in entries(ptx).values():
            if name in waiting:
                waiting[name].append(wide_accesses(instructions, "ld"))
            wrong = inexact(instructions)
            assert not [w for w in wrong if w.startswith(("atom", "red"))], name
            if widest_access(instructions, "ld") >= 128:
                wide.add((name, "ld"))
            if widest_access(instructions, "st") >= 128:
                wide.add((name, "st"))
    gradients = {"gradient_kernel", "layers_gradient_kernel"}
    assert wide >= {(name, kind) for name in gradients for kind in ("ld", "st")}
    # Of large images, four rows of a lane at a time in both layouts.
    assert all(sum(count >= 4 for count in counts) >= 2 for counts in waiting.values())
