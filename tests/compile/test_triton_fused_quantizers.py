"""The Triton kernels of transformers' quantizers compile for every GPU."""

import itertools

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

# Exponentials and means are right to a few units; the quantizer after them is exact.
EXPONENTIALS = {"ex2.approx.f32", "ex2.approx.ftz.f32"}
MEANS = {"div.full.f32", "div.full.ftz.f32", "sqrt.approx.f32", "sqrt.approx.ftz.f32"}
TOLERANT = {
    "activation_kernel": EXPONENTIALS,
    "activation_gradient_kernel": EXPONENTIALS,
    "norm_kernel": MEANS,
    "norm_gradient_kernel": MEANS,
    "norm_total_kernel": set(),
    "softmax_kernel": EXPONENTIALS | MEANS,
    "softmax_gradient_kernel": EXPONENTIALS | MEANS,
}
# Of these, registers leave a thread four elements of a row at a time.
NARROW = {"norm_gradient_kernel", "softmax_gradient_kernel"}
WIDE = {
    *("activation_kernel", "activation_gradient_kernel", "log_kernel", "sums_kernel"),
    *("tensor_kernel", "channel_kernel"),
    *("norm_kernel", "softmax_kernel", *NARROW),
}
DIVIDING = ("activation_kernel", "log_kernel", "norm_kernel", "softmax_kernel")


def launch_all(x: torch.Tensor) -> None:
    """Calls the launchers, both ways."""
    from synq_fast import kernels

    one = torch.ones(1)
    for activation, minifloat in itertools.product(range(3), (False, True)):
        given = x, one, one, activation, 4, minifloat
        kernels.activation_fake_quantize(*given)
        kernels.activation_fake_quantize_backward(x, *given, 0.5)
    for scale, axis in ((one, None), (torch.ones(x.shape[0]), 0)):
        kernels.fake_quantize_log(x, scale, 4, axis)
        kernels.fake_quantize_log_backward(x, x, scale, 4, axis)
        kernels.fake_quantize_minifloat(x, scale, scale, 4, axis)
        kernels.fake_quantize_minifloat_backward(x, x, scale, scale, 4, axis)
    row = torch.ones(x.shape[-1])
    arguments = x, row, row, one, one, 4, 1e-6
    kernels.layer_norm_fake_quantize(*arguments)
    kernels.layer_norm_fake_quantize_backward(x, *arguments, 0.5)
    for log2 in (False, True):
        kernels.softmax_fake_quantize(x, one, 4, 0.5, log2)
        kernels.softmax_fake_quantize_backward(x, x, one, 4, 0.5, log2, 0.5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_launches(compiler: Compiler, dtype: torch.dtype) -> None:
    for shape in ((4, 16, 1024), (3, 5, 7), (5, 1)):
        launch_all(torch.zeros(shape, dtype=dtype))
    names = {name for name, _ in compiler.ptx}
    assert names == {*TOLERANT, *WIDE, "finish_sums_kernel"}
    assert compiler.fused == []
    kernels = resources(compiler.log.getvalue())
    assert kernels
    assert [kernel for kernel in kernels if kernel.spilled_bytes > 0] == []
    assert [kernel for kernel in kernels if kernel.registers > MAXIMUM_REGISTERS] == []
    wide = set()
    for name, ptx in compiler.ptx:
        for instructions in entries(ptx).values():
            assert set(inexact(instructions)) <= TOLERANT.get(name, set()), name
            assert not name.endswith(DIVIDING) or divisions(instructions) > 0
            if all(widest_access(instructions, kind) >= 128 for kind in ("ld", "st")):
                wide.add(name)
    assert wide >= (WIDE if dtype == torch.float32 else WIDE - NARROW)
