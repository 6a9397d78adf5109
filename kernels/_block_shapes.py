"""How many elements a program handles and with how many warps, where no bit depends on it.

That is so of elementwise kernels, and of minima and maxima. How a sum is divided is part of what it
is, on every device: those shapes stand beside the sums (`_tiles.py`, `_channel_sums.py`, the rows
of norms, of softmax and of losses) and are chosen by nobody.

The table is block_shapes.json, written by `python -m benchmarks.block_shapes`.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch

PATH = Path(__file__).with_name("block_shapes.json")

Key = tuple[str, torch.dtype, str]


class BlockShape(NamedTuple):
    """Elements of a program, a power of two, and its warps."""

    elements: int
    warps: int


def read_shapes(path: Path) -> dict[Key, BlockShape]:
    """Returns the shapes of a table by kernel, dtype and layout."""
    return {
        (kernel, getattr(torch, dtype), layout): BlockShape(*shape)
        for kernel, layouts in json.loads(path.read_text())["shapes"].items()
        for layout, dtypes in layouts.items()
        for dtype, shape in dtypes.items()
    }


SHAPES = read_shapes(PATH)


def layout_name(by_column: bool) -> str:
    """Returns how a table names memory whose channels are innermost, or whose pieces of one are."""
    return "columns" if by_column else "rows"


def block_shape(kernel: str, dtype: torch.dtype, layout: str = "flat") -> BlockShape:
    """Returns the shape of a kernel's programs.

    Raises:
        LookupError: The table has none.
    """
    try:
        return SHAPES[kernel, dtype, layout]
    except KeyError:
        raise LookupError(
            f"{PATH.name} has no shape of {kernel} for {dtype} and layout {layout}; "
            "add a case to benchmarks/block_shapes.py and run `python -m benchmarks.block_shapes`"
        ) from None


@contextmanager
def tried(key: Key, shape: BlockShape) -> Iterator[None]:
    """Gives a kernel another shape for a while."""
    before = SHAPES.get(key)
    SHAPES[key] = shape
    try:
        yield
    finally:
        if before is None:
            del SHAPES[key]
        else:
            SHAPES[key] = before
