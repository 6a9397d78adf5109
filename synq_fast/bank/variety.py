"""Sharpness, contrast and brightness of synthetic images, drawn anew for each image of a batch."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from synq_fast.fields import factor, number
from synq_fast.runtime.seeding import generator_for

# A blurred image gets at most so many times its contrast back: what is left may be next to nothing.
_MOST_GAIN = 3.0


@dataclass(frozen=True)
class Variety:
    """What the same image may look like in another batch.

    Photographs have even surfaces, bright and dark; optimized images are full of detail at one
    brightness, and a network that is trained on them alone learns nothing of the former.
    """

    softest: float = number(
        0.0,
        "least cut-off of a Gaussian low-pass of each image's own, log-uniform up to sharpest, "
        "which gives blurred images their contrast back; 0: none",
        1,
        1e6,
        "cycles per image",
        or_zero=True,
    )
    sharpest: float = number(120.0, "largest of these cut-offs", 1, 1e6, "cycles per image")
    contrast: float = number(
        0.0, "of each image, multiplied by 1 plus or minus up to this, at random", 0, 0.9
    )
    brightness: float = factor(
        0.0, "up to so many of its deviations are added to each image or taken from it, at random"
    )

    @property
    def changes(self) -> bool:
        """Whether images change at all."""
        return self.softest > 0 or self.contrast > 0 or self.brightness > 0


ALIKE = Variety()
"""Images look the same in each batch."""


def drawn_looks(count: int, seed: int, step: int) -> Tensor:
    """What chance decides about the looks of a batch: (count, 3) in 0 to 1, float32 on the CPU."""
    generator = generator_for(seed, "looks", step)
    return torch.rand(count, 3, generator=generator, dtype=torch.float32, device="cpu")


def varied(
    images: Tensor, looks: Tensor, recipe: Variety, valid: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    """Images as their looks say, within the valid pixels.

    Args:
        images: (B, C, H, W) in normalised space, float32.
        looks: (B, 3) of ``drawn_looks``, on the same device.
        recipe: how far they may change.
        valid: least and largest value of each channel (C, 1, 1); None: nothing is cut off.
    """
    sharp, contrast, brightness = looks.view(-1, 3, 1, 1, 1).unbind(1)
    if recipe.softest:
        low, high = math.log(recipe.softest), math.log(recipe.sharpest)
        images = _blurred(images, torch.exp(low + (high - low) * sharp))
    # By the image's own mean and deviation, so that it does not matter how pixels are normalised.
    mean = images.mean((1, 2, 3), keepdim=True)
    deviation = images.std((1, 2, 3), correction=0, keepdim=True)
    images = mean + (images - mean) * (1 + recipe.contrast * (2 * contrast - 1))
    images = images + deviation * (recipe.brightness * (2 * brightness - 1))
    if valid is not None:
        images = images.clamp(*valid)
    return images.contiguous(memory_format=torch.channels_last)


def _blurred(images: Tensor, cutoff: Tensor) -> Tensor:
    """Images (B, C, H, W) under Gaussians (B, 1, 1, 1), at the contrast that they had."""
    height, width = images.shape[-2:]
    rows = torch.fft.fftfreq(height, 1 / height, device=images.device)[:, None]
    columns = torch.fft.rfftfreq(width, 1 / width, device=images.device)
    response = torch.exp(-(rows.square() + columns.square()) / (2 * cutoff.square()))
    blurred: Tensor = torch.fft.irfft2(torch.fft.rfft2(images) * response, s=(height, width))
    mean: Tensor = blurred.mean((2, 3), keepdim=True)
    before, after = (v.std((1, 2, 3), correction=0, keepdim=True) for v in (images, blurred))
    gain = (before / after.clamp_min(1e-12)).clamp(1.0, _MOST_GAIN)
    return (blurred - mean) * gain + mean
