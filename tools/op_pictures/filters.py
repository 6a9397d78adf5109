"""Ops on images."""

from __future__ import annotations

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional

from synq_fast import ops

from .canvas import (
    FLOAT,
    QUANTIZED,
    THIRD,
    curve,
    image,
    label,
    one_of_each,
    panels,
)

_CUTOFF = 10.0


def _noisy_digits() -> Tensor:
    """Four digits in a square with noise, (48, 48)."""
    tiles = functional.pad(one_of_each(2, 0, 7, 4)[:, 0], (4, 4, 4, 4)).unflatten(0, (2, 2))
    clean = tiles.permute(0, 2, 1, 3).reshape(48, 48)
    return clean + 0.2 * torch.randn(48, 48, generator=torch.Generator().manual_seed(0))


def low_pass() -> Figure:
    """Four digits with noise, the Gaussian's mask, and the digits after two filters.

    The mask is darkest around frequency zero, where most passes. The Gaussian
    blurs, the ideal filter leaves ripples. Last, the gain over the distance from frequency zero:
    the Gaussian falls smoothly, Butterworth more steeply, the ideal one at once.
    """
    figure, axes = panels(5, 1.75, [1, 1, 1, 1, 1.5])
    before = _noisy_digits()
    impulse = torch.zeros(48, 48)
    impulse[0, 0] = 1.0
    masks = {
        kind: torch.fft.fft2(ops.low_pass(impulse, _CUTOFF, kind=kind)).real
        for kind in ("gaussian", "butterworth", "ideal")
    }
    image(axes[0], before, "before")
    image(axes[1], torch.fft.fftshift(masks["gaussian"]), "gaussian mask", cmap="Blues")
    for panel, kind in zip(axes[2:4], ("gaussian", "ideal"), strict=True):
        image(panel, ops.low_pass(before, _CUTOFF, kind=kind), kind)
    distance = torch.arange(24)
    for (kind, mask), colour in zip(masks.items(), (QUANTIZED, THIRD, FLOAT), strict=True):
        curve(axes[4], distance, mask[0, :24], kind, color=colour)
    label(axes[4], f"gain, cutoff {_CUTOFF:g}", "cycles per image")
    axes[4].set_ylim(-0.05, 2.2)
    axes[4].legend(loc="upper right", fontsize=7)
    return figure


def total_variation() -> Figure:
    """Four images with the value above each.

    It is zero for a flat image, grows from a blurred digit to the digit itself, and is greatest
    with noise.
    """
    figure, axes = panels(4, 2.0)
    digit = one_of_each(5)
    noise = 0.2 * torch.randn(digit.shape, generator=torch.Generator().manual_seed(0))
    shown = {
        "flat": torch.full_like(digit, 0.4),
        "blurred": ops.low_pass(digit, 2.0),
        "digit": digit,
        "with noise": digit + noise,
    }
    for panel, (name, pixels) in zip(axes, shown.items(), strict=True):
        image(panel, pixels[0, 0], f"{name}: {ops.total_variation(pixels).item():.1f}")
    return figure
