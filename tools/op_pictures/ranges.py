"""Ops that find a range."""

from __future__ import annotations

import torch
from matplotlib.figure import Figure

from synq_fast import ops

from .canvas import FLOAT, MUTED, QUANTIZED, THIRD, curve, features, label, one_of_each, panels


def search_range() -> Figure:
    """A histogram of a layer's values, and both ends of a range that cuts its tails off.

    Beside it the error of each of 80 candidates, with its minimum where that range is.
    """
    figure, (left, right) = panels(2)
    x = features("layer3.0.bn1", one_of_each(*range(10)))
    low, high = ops.search_range(x, 4)
    left.hist(x.flatten().numpy(), 60, color=FLOAT)
    left.set_yscale("log")
    for bound in (low, high):
        left.axvline(bound.item(), color=QUANTIZED)
    label(left, "values, and the range found for 4 bits", "x", "count")
    shrunk = 1 - 0.01 * torch.arange(80)
    errors = torch.stack(
        [
            (ops.fake_quantize(x, x.min() * s, x.max() * s, 4) - x).abs().pow(2.4).mean()
            for s in shrunk
        ]
    )
    curve(right, shrunk, errors, color=FLOAT)
    right.set_yscale("log")
    right.axvline((high / x.max()).item(), color=QUANTIZED, label="search_range")
    label(right, "mean of |error| ** 2.4", "share of the whole range")
    right.legend()
    return figure


def _states(steps: int) -> tuple[torch.Tensor, ...]:
    """Extrema of batches, states after each, and the ranges read from them, each (steps, 2)."""
    generator = torch.Generator().manual_seed(0)
    low, high, step = torch.zeros(()), torch.zeros(()), torch.zeros((), dtype=torch.int64)
    seen, states, read = [], [], []
    for _ in range(steps):
        batch = torch.randn(64, generator=generator) + 0.5
        ops.update_range(batch, low, high, step)
        seen.append(torch.stack([batch.min(), batch.max()]))
        states.append(torch.stack([low, high]))
        read.append(torch.stack(ops.read_range(low, high, step)))
    return torch.stack(seen), torch.stack(states), torch.stack(read)


def update_range() -> Figure:
    """Minimum and maximum of forty batches as scattered dots, and the running range.

    It grows from zero and settles at their means.
    """
    figure, (axes,) = panels(1)
    seen, states, _ = _states(40)
    steps = torch.arange(1, 41)
    for bound, name in enumerate(("minimum", "maximum")):
        colour = (FLOAT, THIRD)[bound]
        axes.scatter(steps, seen[:, bound], s=10, color=colour, label=f"{name} of the batch")
        curve(axes, steps, states[:, bound], f"state_{name[:3]}", color=colour)
    label(axes, "beta=0.9", "step")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def read_range() -> Figure:
    """The running range, which begins at zero and nears the batches' extrema slowly.

    The range that is read from it is right from the first step on.
    """
    figure, (axes,) = panels(1)
    _, states, read = _states(40)
    steps = torch.arange(1, 41)
    for bound in range(2):
        state, found = ("state", "read_range") if bound == 0 else ("", "")
        curve(axes, steps, states[:, bound], state, color=MUTED, linestyle="--", linewidth=1.2)
        curve(axes, steps, read[:, bound], found)
    label(axes, "beta=0.9", "step")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure
