"""The Triton kernels of packing compile for every GPU, spill nothing and read words."""

from collections.abc import Iterable

import torch

from tests.compile.ptx_checks import entries, inexact, resources, widest_access
from tests.compile.test_triton_compile import MAXIMUM_REGISTERS, Compiler, compiler, pytestmark

__all__ = ["compiler", "pytestmark"]  # used by pytest


# Words in one piece, and in several; one stream, and rows that end within a byte.
WIDTHS, SHAPES = (3, 4, 6, 8), ((64, 4608), (33, 27))


def launch_all(widths: Iterable[int], shapes: Iterable[tuple[int, int]]) -> None:
    """Calls the launchers on each shape in each width."""
    from synq_fast import kernels

    for bits in widths:
        for shape in shapes:
            codes = torch.zeros(shape, dtype=torch.int8)
            packed = torch.zeros(shape[0], -(-shape[1] * bits // 8), dtype=torch.uint8)
            kernels.pack_codes(codes, bits)
            kernels.unpack_codes(packed, bits, shape[1])


def test_launches(compiler: Compiler) -> None:
    launch_all(WIDTHS, SHAPES)
    by_words = {"pack_words_kernel", "unpack_words_kernel"}
    assert {name for name, _ in compiler.ptx} == by_words | {
        "pack_bytes_kernel",
        "unpack_bytes_kernel",
    }
    kernels = resources(compiler.log.getvalue())
    assert kernels
    assert [kernel for kernel in kernels if kernel.spilled_bytes > 0] == []
    assert [kernel for kernel in kernels if kernel.registers > MAXIMUM_REGISTERS] == []
    for name, ptx in compiler.ptx:
        for instructions in entries(ptx).values():
            assert inexact(instructions) == [], name
            if name in by_words:
                side = "ld" if name == "pack_words_kernel" else "st"
                assert widest_access(instructions, side) == 128, name
