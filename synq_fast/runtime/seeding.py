"""Random numbers that depend on what they are for, not on what ran before.

Every shard and every step draws from a generator of its own, so a resumed run continues bit for
bit without stored random states, and so does a run that is spread over several processes.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

import torch


def generator_for(seed: int, *purpose: str | int) -> torch.Generator:
    """A CPU generator for one purpose, e.g. ``generator_for(0, "finetune", step)``."""
    digest = hashlib.sha256(repr((seed, *purpose)).encode()).digest()
    return torch.Generator("cpu").manual_seed(int.from_bytes(digest[:8], "little") >> 1)


@lru_cache(maxsize=4)
def _order(seed: int, count: int, purpose: tuple[str | int, ...]) -> torch.Tensor:
    return torch.randperm(count, generator=generator_for(seed, *purpose), device="cpu")


def shuffled(count: int, size: int, step: int, seed: int, *purpose: str | int) -> torch.Tensor:
    """The numbers (size,) int64 below ``count`` of a step; each pass is in a new order."""
    start = step * size
    stop = start + size
    passes = range(start // count, (stop - 1) // count + 1)
    orders = ((p * count, _order(seed, count, (*purpose, p))) for p in passes)
    return torch.cat([order[max(0, start - at) : stop - at] for at, order in orders])


def normal_images(count: int, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Standard normal images (count, *shape), float32, on the CPU whatever the defaults are."""
    return torch.randn(count, *shape, generator=generator, dtype=torch.float32, device="cpu")
