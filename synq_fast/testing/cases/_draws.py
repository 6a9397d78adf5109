"""The draws of the random ops once more, in Python's own integers."""

from typing import Any

import torch

# By seed and the counter that they begin with.
_DRAWN: dict[tuple[int, int], list[int]] = {}


def _words(counter: int, seed: int) -> list[int]:
    """Returns the four words of Philox 4x32-10."""
    a, b, c, d = counter & 0xFFFFFFFF, counter >> 32, 0, 0
    low, high = seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF
    for _ in range(10):
        first, second = a * 0xD2511F53, c * 0xCD9E8D57
        a, b = second >> 32 ^ b ^ low, second & 0xFFFFFFFF
        c, d = first >> 32 ^ d ^ high, first & 0xFFFFFFFF
        low, high = low + 0x9E3779B9 & 0xFFFFFFFF, high + 0xBB67AE85 & 0xFFFFFFFF
    return [a, b, c, d]


def drawn(x: torch.Tensor, seed: Any, keep: float, offset: int = 0) -> torch.Tensor:
    """Returns where the draw of an element's place in memory, from `offset` on, is below `keep`."""
    counter, skipped = divmod(offset, 4)
    known = _DRAWN.setdefault((int(seed), counter), [])
    while len(known) < skipped + x.numel():
        known += [word >> 8 for word in _words(counter + len(known) // 4, int(seed))]
    own = known[skipped : skipped + x.numel()]
    flags = torch.tensor(own, dtype=torch.int64, device="cpu") < round(keep * 2**24)
    memory = torch.empty_like(x, dtype=torch.bool, device="cpu")
    # In the order of its strides the tensor is contiguous.
    strides = memory.stride()
    order = sorted(range(x.ndim), key=lambda dim: -strides[dim])
    flags = flags.reshape([x.shape[dim] for dim in order])
    return flags.permute(sorted(range(x.ndim), key=order.__getitem__))
