"""Images moved around the edges of their frame."""

from __future__ import annotations

import torch
from torch import Tensor


def random_roll(limit: int, generator: torch.Generator) -> Tensor:
    """Draw a move in rows and in columns, up to ``limit`` pixels each, and a mirroring or none.

    Args:
        limit: pixels, at least 1.
        generator: CPU generator that decides, so that devices agree.

    Returns:
        (3,) int64 on the CPU: the moves, and 0 or 1.
    """
    moves = torch.randint(-limit, limit + 1, (2,), generator=generator, device="cpu")
    mirrored = torch.randint(2, (1,), generator=generator, device="cpu")
    return torch.cat([moves, mirrored])


def roll(images: Tensor, drawn: Tensor) -> Tensor:
    """Move all images (B, C, H, W) alike; what leaves on one side enters on the other.

    Args:
        images: gradients reach them.
        drawn: of ``random_roll``, on their device.
    """
    height, width = images.shape[2:]
    rows = (torch.arange(height, device=images.device) - drawn[0]) % height
    columns = torch.arange(width, device=images.device)
    columns = torch.where(drawn[2] == 1, width - 1 - columns, columns)
    columns = (columns - drawn[1]) % width
    return images.index_select(2, rows).index_select(3, columns)
