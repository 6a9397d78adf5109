"""Random crops and flips as the published loaders apply them: one image at a time."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.transforms import RandomHorizontalFlip, RandomResizedCrop


def augment_each(images: Tensor, scale: tuple[float, float]) -> Tensor:
    """Crop, resize and flip every image of (B, C, H, W) on its own; differentiable."""
    crop = RandomResizedCrop(tuple(images.shape[-2:]), scale=scale, antialias=False)
    flip = RandomHorizontalFlip()
    return torch.stack([flip(crop(image)) for image in images])
