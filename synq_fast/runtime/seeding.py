"""Random numbers that depend on what they are for, not on what ran before.

Every shard and every step draws from a generator of its own, so a resumed run continues bit for
bit without stored random states, and so does a run that is spread over several processes.
"""

from __future__ import annotations

import hashlib

import torch


def generator_for(seed: int, *purpose: str | int) -> torch.Generator:
    """A CPU generator for one purpose, e.g. ``generator_for(0, "finetune", step)``."""
    digest = hashlib.sha256(repr((seed, *purpose)).encode()).digest()
    return torch.Generator("cpu").manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def normal_images(count: int, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Standard normal images (count, *shape), float32, on the CPU whatever the defaults are."""
    return torch.randn(count, *shape, generator=generator, dtype=torch.float32, device="cpu")
