"""Random crops and flips as the published loaders apply them: one image at a time, or together."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional
from torchvision.transforms import RandomHorizontalFlip, RandomResizedCrop


def augment_each(images: Tensor, scale: tuple[float, float]) -> Tensor:
    """Crop, resize and flip every image of (B, C, H, W) on its own; differentiable."""
    crop = RandomResizedCrop(tuple(images.shape[-2:]), scale=scale, antialias=False)
    flip = RandomHorizontalFlip()
    return torch.stack([flip(crop(image)) for image in images])


def augment_together(images: Tensor, scale: tuple[float, float]) -> Tensor:
    """``augment_each`` with the same random numbers, as one bilinear sampling of the batch."""
    height, width = images.shape[-2:]
    rows, columns = [], []
    for image in images:
        top, left, tall, wide = RandomResizedCrop.get_params(image, list(scale), [3 / 4, 4 / 3])
        rows.append(_positions(top, tall, height))
        across = _positions(left, wide, width)
        columns.append(across.flip(0) if torch.rand(1) < 0.5 else across)
    x, y = torch.stack(columns), torch.stack(rows)
    grid = torch.stack(torch.broadcast_tensors(x[:, None, :], y[:, :, None]), dim=-1)
    return functional.grid_sample(images, grid.to(images), align_corners=False)


def _positions(start: int, length: int, size: int) -> Tensor:
    """Where ``size`` pixels lie that ``length`` pixels from ``start`` on are stretched to, (size,).

    In the coordinates of ``grid_sample``; a crop's own first and last pixel end its interpolation.
    """
    centres = (torch.arange(size, dtype=torch.float64) + 0.5) * (length / size) - 0.5
    return (2 * (start + centres.clamp(0, length - 1)) + 1) / size - 1
