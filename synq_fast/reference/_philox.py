"""Philox 4x32-10, and which elements of a tensor its draws keep."""

import torch

Words = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
MASK = 0xFFFFFFFF
# A draw is an integer below 2^24, as many as float32 tells apart in [0, 1).
DRAW_BITS = 24


def _product(factor: int, word: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the high and the low 32 bits of a product; no step of it overflows int64."""
    low = (factor & 0xFFFF) * word
    upper = (factor >> 16) * word + (low >> 16)
    return upper >> 16, (upper & 0xFFFF) << 16 | low & 0xFFFF


def philox(counter: Words, key: tuple[torch.Tensor, torch.Tensor]) -> Words:
    """Returns four random words for each counter; all words are int64 with 32 bits."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        high0, low0 = _product(0xD2511F53, c0)
        high1, low1 = _product(0xCD9E8D57, c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = k0 + 0x9E3779B9 & MASK, k1 + 0xBB67AE85 & MASK
    return c0, c1, c2, c3


def as_seed(seed: torch.Tensor | int | None, device: torch.device) -> torch.Tensor:
    """Returns a seed of 64 bits, signed or not, as an int64 tensor."""
    if isinstance(seed, torch.Tensor):
        return seed
    if seed is None:
        raise ValueError("keep below 1 needs seed, an int of 64 bits or an int64 tensor")
    signed = seed - 2**64 if seed >= 2**63 else seed
    # Filled on the device: a copy from the host would synchronise it.
    return torch.full((), signed, dtype=torch.int64, device=device)


def draws(seed: torch.Tensor, count: int, offset: int = 0) -> torch.Tensor:
    """Returns `count` draws of a seed, from draw `offset` on."""
    seed = seed.reshape(())
    skipped = offset % 4
    quad = torch.arange((skipped + count + 3) // 4, dtype=torch.int64, device=seed.device)
    quad = quad + offset // 4
    zero = torch.zeros_like(quad)
    words = philox((quad & MASK, quad >> 32, zero, zero), (seed & MASK, seed >> 32 & MASK))
    return torch.stack(words, -1).flatten()[skipped : skipped + count] >> (32 - DRAW_BITS)


def kept(x: torch.Tensor, seed: torch.Tensor | int, keep: float, offset: int = 0) -> torch.Tensor:
    """Returns where the draw is below `keep`, in the shape of `x`.

    Draw `offset` + i belongs to the element at place i of the memory of `empty_like(x)`.
    """
    # Beside `x` itself, whose memory holds a whole batch below `torch.func.vmap`.
    memory = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="meta")
    flags = draws(as_seed(seed, x.device), x.numel(), offset) < round(keep * 2**DRAW_BITS)
    laid_out: torch.Tensor = flags.as_strided(x.shape, torch.empty_like(memory).stride())
    return laid_out
