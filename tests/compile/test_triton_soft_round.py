"""The Triton kernels of soft rounding compile for every GPU, spill nothing and store packs."""

import torch

from tests.compile.ptx_checks import divisions, entries, inexact, resources, widest_access
from tests.compile.test_triton_compile import MAXIMUM_REGISTERS, Compiler, compiler, pytestmark

__all__ = ["compiler", "pytestmark"]  # used by pytest

# Sigmoids and powers are right to a few units; what follows is exact.
POWERS = {"ex2.approx.f32", "ex2.approx.ftz.f32", "fma.rn.f32", "fma.rn.ftz.f32"}


def launch_all() -> None:
    """Calls the launchers on every kind of layout, with every set of incoming gradients."""
    from synq_fast import kernels

    scale, exponent = torch.ones(64), torch.ones(())
    for shape, axis in (((64, 64, 3, 3), 0), ((4096, 64), 1), ((64, 64), None)):
        v = torch.zeros(shape)
        grid = (scale[:1], scale[:1]) if axis is None else (scale, scale)
        arguments = v, v.to(torch.int8), *grid, exponent, 4, axis
        kernels.soft_round(*arguments)
        for gradients in ((v, exponent), (None, exponent), (v, None)):
            kernels.soft_round_backward(*gradients, *arguments)


def test_launches(compiler: Compiler) -> None:
    launch_all()
    names = {"rounding_kernel", "penalty_kernel", "scales_kernel"}
    assert {name for name, _ in compiler.ptx} == names
    kernels = resources(compiler.log.getvalue())
    assert kernels
    assert [kernel for kernel in kernels if kernel.spilled_bytes > 0] == []
    assert [kernel for kernel in kernels if kernel.registers > MAXIMUM_REGISTERS] == []
    for name, ptx in compiler.ptx:
        for instructions in entries(ptx).values():
            wrong = set(inexact(instructions))
            if name != "rounding_kernel":
                assert not [w for w in wrong if w.startswith(("atom", "red"))], name
                continue
            assert wrong <= POWERS
            assert divisions(instructions) > 0
            assert widest_access(instructions, "ld") >= 128
            assert widest_access(instructions, "st") >= 128
