"""Arguments of the ops that draw random numbers: a probability, a seed and an offset."""

import torch

from synq_fast.ops._tensor_checks import check_number, check_same_device
from synq_fast.reference._philox import as_seed


def check_keep(keep: object) -> None:
    """Raises unless `keep` is a probability."""
    check_number("keep", keep, least=0, most=1)


def check_seed(seed: object, name: str, x: torch.Tensor) -> None:
    """Raises unless `seed` is an int64 tensor with one element on the device of `x`."""
    if not isinstance(seed, torch.Tensor):
        raise TypeError(f"seed must be an int or an int64 tensor, got {type(seed).__name__}")
    if seed.dtype != torch.int64:
        raise TypeError(f"seed must be int64, got {seed.dtype}; convert it with .long()")
    if seed.numel() != 1:
        raise ValueError(f"seed must hold one number, got shape {tuple(seed.shape)}")
    check_same_device("seed", seed, name, x)


def check_offset(offset: object) -> None:
    """Raises unless the places of a tensor's elements can begin at `offset`."""
    if not isinstance(offset, int):
        raise TypeError(f"offset must be an int, got {offset!r} ({type(offset).__name__})")
    if not 0 <= offset < 2**62:
        raise ValueError(f"offset must be an element's place, from 0 to 2^62 - 1, got {offset}")


def to_seed(seed: object, device: torch.device) -> torch.Tensor:
    """Returns a seed as a tensor on a device; checks what the registered op cannot see any more."""
    if isinstance(seed, torch.Tensor):
        return seed
    if seed is None:
        return as_seed(None, device)
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(
            f"seed must be an int or an int64 tensor, got {seed!r} ({type(seed).__name__})"
        )
    if not -(2**63) <= seed < 2**64:
        raise ValueError(f"seed must have at most 64 bits, got {seed}")
    return as_seed(seed, device)
