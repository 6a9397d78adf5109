"""Kinds of noise, each of a root mean square of one standard deviation of the images."""

from __future__ import annotations

import torch
from torch import Tensor

from synq_fast.runtime.seeding import generator_for

KINDS = ("white", "high-frequency", "low-frequency", "salt-and-pepper", "blocks")
_HIGH, _LOW = 0.25, 0.125
"""Cycles per pixel: from where high frequencies are, and up to where low ones."""
_BLOCKS = 8
"""Blocks along the shorter side."""


def noisy(
    images: Tensor, kind: str, strength: float, valid: tuple[Tensor, Tensor], seed: int
) -> Tensor:
    """Images (N, C, H, W) with noise.

    ``white`` is Gaussian and independent in every pixel and channel. ``high-frequency`` and
    ``low-frequency`` are what of it lies above a quarter of a cycle per pixel and below an eighth,
    without the mean of the image. ``blocks`` has one Gaussian value for each of 8 blocks along the
    shorter side, in each channel. All of these are scaled to a root mean square of ``strength``
    standard deviations of the images (of all their pixels). ``salt-and-pepper`` sets pixels, in
    all channels, to the least or the largest valid value, so many that the mean square of what
    changes is the same, or all of them.

    Args:
        images: as a network takes them.
        kind: one of ``KINDS``.
        strength: root mean square of the noise in standard deviations of the images.
        valid: what black and white are in each channel: (C, 1, 1) each.
        seed: decides the noise; noises of other strengths are multiples of each other.
    """
    generator = generator_for(seed, "noise", kind)
    size = strength * images.double().std()
    if kind == "salt-and-pepper":
        return _salt_and_pepper(images, float(size), valid, generator)
    noise = _drawn(kind, images.shape, generator).to(images.device)
    return (images + size * noise).to(images.dtype)


def _drawn(kind: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Noise of mean square one, float64."""
    height, width = shape[2:]
    if kind == "blocks":
        side = max(1, min(height, width) // _BLOCKS)
        rows, columns = -(-height // side), -(-width // side)
        values = torch.randn(*shape[:2], rows, columns, generator=generator, dtype=torch.float64)
        wide = values.repeat_interleave(side, 2).repeat_interleave(side, 3)
        return wide[:, :, :height, :width]
    white = torch.randn(shape, generator=generator, dtype=torch.float64)
    if kind == "white":
        return white
    y, x = torch.meshgrid(torch.fft.fftfreq(height), torch.fft.rfftfreq(width), indexing="ij")
    radius = (y.square() + x.square()).sqrt()
    kept = radius >= _HIGH if kind == "high-frequency" else (radius <= _LOW) & (radius > 0)
    band: Tensor = torch.fft.irfft2(torch.fft.rfft2(white) * kept, s=(height, width))
    return band / band.square().mean().sqrt()


def _salt_and_pepper(
    images: Tensor, size: float, valid: tuple[Tensor, Tensor], generator: torch.Generator
) -> Tensor:
    low, high = (end.to(images.device) for end in valid)
    change = ((images - low).square() + (images - high).square()).double().mean() / 2
    share = min(1.0, size**2 / float(change))
    count, _, height, width = images.shape
    drawn = torch.rand(2, count, 1, height, width, generator=generator).to(images.device)
    extreme = torch.where(drawn[1] < 0.5, low, high)
    return torch.where(drawn[0] < share, extreme, images)
