"""Regions of images, enlarged to images of their own with classes of their own (SARDFQ, MSR)."""

from __future__ import annotations

import torch
from torch import Tensor

PLACES = 4
"""Regions of an image come from its quarters, at most one from each."""


def place_classes(labels: Tensor, classes: int, generator: torch.Generator) -> Tensor:
    """A class for each place of an image, (B, PLACES) int64 on the CPU.

    Other than its label (B,) and those of the other places, as far as there are enough classes.
    """
    order = torch.rand(len(labels), classes, generator=generator, dtype=torch.float32, device="cpu")
    order = order.scatter(1, labels.cpu()[:, None], 2.0).argsort(1)
    others = max(1, classes - 1)
    return order[:, torch.arange(PLACES, device="cpu") % others]


def draw_regions(
    images: int, most: int, grid: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Draw regions that do not overlap, of whole patches: from one to ``most`` of each image.

    All images have as many. Each is in a quarter of its own, between half and all of the quarter's
    height and width: so that a place of an image keeps its class, wherever in it a step looks. That
    is a guess; the paper says no more than that regions do not overlap.

    Args:
        images: how many.
        most: 1 to ``PLACES``.
        grid: patches along a side, at least 2.
        generator: on the CPU.

    Returns:
        Top, left, bottom and right (R, B, 4) int64 in patches, the last two exclusive; and the
        places (R, B) int64, 0 to 3 row by row. Both are on the CPU.
    """
    count = int(torch.randint(1, most + 1, (), generator=generator, device="cpu"))
    lots = torch.rand(PLACES, images, generator=generator, dtype=torch.float32, device="cpu")
    places = lots.argsort(0)[:count]
    start = torch.stack([places // 2, places % 2], -1)
    middle = grid // 2
    room = torch.where(start == 0, middle, grid - middle)
    size = (2, *start.shape)
    draws = torch.rand(size, generator=generator, dtype=torch.float32, device="cpu")
    least = (room + 1) // 2
    extent = least + (draws[0] * (room - least + 1)).long()
    corner = start * middle + (draws[1] * (room - extent + 1)).long()
    return torch.cat([corner, corner + extent], -1), places


def enlarged(images: Tensor, regions: Tensor) -> Tensor:
    """Regions of images (B, C, H, W), at the images' size: (R * B, C, H, W).

    Bilinear, as ``torch.nn.functional.interpolate`` of each region alone: no value and no gradient
    crosses its edges.

    Args:
        images: gradients reach the regions.
        regions: (R, B, 4) top, left, bottom and right in pixels, on the images' device.
    """
    height, width = images.shape[2:]
    rows = _bilinear(regions[..., 0], regions[..., 2], height)
    columns = _bilinear(regions[..., 1], regions[..., 3], width)
    found = rows[:, :, None] @ images[None] @ columns[:, :, None].mT
    return found.flatten(0, 1).contiguous(memory_format=torch.channels_last)


def _bilinear(start: Tensor, stop: Tensor, size: int) -> Tensor:
    """Weights (R, B, size, size) that stretch the entries from start to stop (R, B) to all."""
    ticks = torch.arange(size, dtype=torch.float32, device=start.device)
    start, stop = start[..., None].float(), stop[..., None].float()
    at = start - 0.5 + (ticks + 0.5) * ((stop - start) / size)
    at = torch.minimum(torch.maximum(at, start), stop - 1)
    return (1 - (at[..., None] - ticks).abs()).clamp_min(0)
