"""The products of codes compile for tensor cores of every GPU and spill nothing."""

import re

import pytest
import torch

from tests.compile.ptx_checks import entries, inexact, resources, widest_access
from tests.compile.test_triton_compile import Compiler, compiler, pytestmark

__all__ = ["compiler", "pytestmark"]  # used by pytest

MAXIMUM_REGISTERS = 255  # the tiles of a product live in registers
GRID = (0.1, -131, 124, -3)
# Rows, columns, depth: tiles of each kind, a mask along the sums, and codes that come one by one.
SHAPES = ((50176, 512, 128), (200704, 64, 64), (4096, 64, 80), (256, 1000, 2048), (1, 10, 64))
ODD = (5000, 301, 77)
PRODUCT = re.compile(r"(?:mma\.sync|wgmma\.mma_async)\.\S*\.s8\.s8\S*")


def launch_all() -> None:
    """Calls the launchers with each kind of result, behind a sum too."""
    from synq_fast import kernels

    for rows, columns, depth in (*SHAPES, ODD):
        x, weight = (torch.empty(n, depth, dtype=torch.int8) for n in (rows, columns))
        added = torch.empty(rows, columns, dtype=torch.int8)
        parts = x, weight, torch.empty(columns, dtype=torch.int32), torch.empty(columns)
        kernels.int8_product(*parts, GRID, None, None, torch.float32)
        kernels.int8_product(*parts, GRID, added, GRID, torch.float32)
        kernels.int8_product(*parts, None, None, None, torch.float32)
    kernels.int8_product(*parts, None, None, None, torch.bfloat16)
    for dtype in (torch.float32, torch.bfloat16):
        kernels.int8_codes(torch.empty(4096, dtype=dtype), GRID)


def test_launches(compiler: Compiler, request: pytest.FixtureRequest) -> None:
    launch_all()
    assert {name for name, _ in compiler.ptx} == {"codes_kernel", "product_kernel"}
    assert compiler.fused == []
    found = resources(compiler.log.getvalue())
    assert len(found) == len(compiler.ptx)
    assert [kernel for kernel in found if kernel.spilled_bytes > 0] == []
    assert [kernel for kernel in found if kernel.registers > MAXIMUM_REGISTERS] == []
    kinds = set()
    for name, ptx in compiler.ptx:
        for instructions in entries(ptx).values():
            # Remainders alone are fused, as they are written.
            assert set(inexact(instructions)) <= {"fma.rn.f32"}, name
            if name == "codes_kernel":
                assert any(i.startswith("fma.rn.f32") for i in instructions)
                assert widest_access(instructions, "ld") >= 128
                continue
            assert PRODUCT.search(ptx)
            kinds |= {i for i in instructions if i.startswith(("cp.async.cg", "wgmma.mma"))}
    assert any(kind.startswith("cp.async.cg") for kind in kinds)
    # Groups of warps multiply together on Hopper, the only architecture with such products.
    hopper = request.node.callspec.params["compiler"] == 90
    assert any(kind.startswith("wgmma") for kind in kinds) == hopper
