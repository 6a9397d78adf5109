"""Differentiable image transforms on a whole batch at once."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional


def random_crops(count: int, scale: tuple[float, float], generator: torch.Generator) -> Tensor:
    """Draw a crop and a mirroring per image: affine maps (count, 2, 3) float32 on the CPU.

    Areas are uniform in ``scale``, positions uniform, aspect ratios log-uniform in 3/4 to 4/3 as
    far as a crop of the area fits into the image, mirroring has probability 1/2: torchvision's
    RandomResizedCrop and RandomHorizontalFlip, except that torchvision draws an unfit pair of area
    and aspect ratio again.

    Args:
        count: number of images.
        scale: smallest and largest share of the area that a crop keeps, in (0, 1].
        generator: CPU generator that decides the crops, so that devices agree.
    """
    draws = torch.rand(5, count, generator=generator, dtype=torch.float32, device="cpu")
    area = scale[0] + (scale[1] - scale[0]) * draws[0]
    # Wider than 1 / area and the crop would be wider than the image.
    widest = (-area.log()).clamp(max=math.log(4 / 3))
    aspect = torch.exp(widest * (2 * draws[1] - 1))
    width, height = (area * aspect).sqrt().clamp(max=1), (area / aspect).sqrt().clamp(max=1)
    mirror = torch.where(draws[2] < 0.5, -1.0, 1.0).to(draws.dtype)
    # affine_grid spans [-1, 1]: a crop of relative size w can move its centre by 1 - w.
    crops = torch.zeros(count, 2, 3, dtype=torch.float32, device="cpu")
    crops[:, 0, 0], crops[:, 1, 1] = width * mirror, height
    crops[:, 0, 2] = (1 - width) * (2 * draws[3] - 1)
    crops[:, 1, 2] = (1 - height) * (2 * draws[4] - 1)
    return crops


def crop(images: Tensor, crops: Tensor) -> Tensor:
    """Sample every image (B, C, H, W) at its own crop (B, 2, 3), at the images' size.

    Sampling is bilinear, in one call for the batch, with gradients to the images.
    """
    grid = functional.affine_grid(crops, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, padding_mode="border", align_corners=False)
