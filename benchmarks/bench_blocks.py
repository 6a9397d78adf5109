"""One step of block reconstruction beside the same mathematics in plain eager PyTorch."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from . import harness
from .reconstruction import EAGER_LAYOUTS, both_sides, difference
from .tables import Table, targets_table

# What a step must be at least, in times of each column.
TARGET = 1.5
# Where convolutions round differently, a few of the block's millions of codes are others.
AGREEMENT = 1e-3


@pytest.mark.parametrize("rounding", ["soft", "straight"])
def bench_blocks(
    rounding: str, compare: Callable[..., harness.Comparison], show: Callable[[Table], None]
) -> None:
    """The second residual block of ResNet-18: 64 channels, 56 px; the images' choice included."""
    loop, sides = both_sides(rounding)
    for layout, side in sides.items():
        distance = difference(loop.iteration, side)
        assert distance < AGREEMENT, f"{layout}: gradients differ by {distance:.1e} of their norm"
        assert torch.isfinite(side.advance()).all()
    columns: dict[str, Callable[[], object]] = {"ours": loop.advance}
    columns |= {f"plain eager, {layout}": side.advance for layout, side in sides.items()}
    row = compare(
        f"ResNet-18 block, 64 channels, 56 px, batch {loop.iteration.recipe.batch_size}, "
        f"{rounding} rounding",
        columns,
        ours="ours",
        clock="wall",
        rounds=9,
        warmup=2,
    )
    show(targets_table(row, {f"plain eager, {layout}": TARGET for layout in EAGER_LAYOUTS}))
