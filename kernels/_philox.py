"""What elements draw: Philox 4x32-10 as in csrc/philox.h, and as `tl.randint4x` has it."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl


class Chance(NamedTuple):
    """With which probability elements are kept, and what decides it.

    The first element of memory draws what element `offset` of a longer one does.
    """

    seed: torch.Tensor
    keep: float
    offset: int = 0

    @property
    def threshold(self) -> int:
        """What a draw of a kept element is below."""
        return round(self.keep * 2**24)

    @property
    def by_quads(self) -> bool:
        """Whether the first element draws the first word of a counter."""
        return self.offset % 4 == 0


@triton.jit
def philox(quad, seed):
    """Returns the four words of the counters `quad`, int64, as uint32."""
    a = quad.to(tl.uint32)
    b = (quad >> 32).to(tl.uint32)
    c = tl.zeros_like(a)
    d = tl.zeros_like(a)
    low = seed.to(tl.uint32)
    high = (seed >> 32).to(tl.uint32)
    for _ in tl.static_range(10):
        # The whole product: older versions of Triton cannot interpret `umulhi`.
        first = a.to(tl.uint64) * 0xD2511F53
        second = c.to(tl.uint64) * 0xCD9E8D57
        a = (second >> 32).to(tl.uint32) ^ b ^ low
        b = second.to(tl.uint32)
        c = (first >> 32).to(tl.uint32) ^ d ^ high
        d = first.to(tl.uint32)
        low = (low.to(tl.uint64) + 0x9E3779B9).to(tl.uint32)
        high = (high.to(tl.uint64) + 0xBB67AE85).to(tl.uint32)
    return a, b, c, d


@triton.jit
def below(a, b, c, d, threshold):
    """Returns which words are kept, those of a counter side by side in the last axis."""
    words = tl.interleave(tl.interleave(a, c), tl.interleave(b, d))
    return (words >> 8).to(tl.int32) < threshold


@triton.jit
def kept_quads(quad, seed, threshold):
    """Returns what is kept of four elements for each counter, side by side in the last axis."""
    a, b, c, d = philox(quad, seed)
    return below(a, b, c, d, threshold)


@triton.jit
def kept_between(quad, turn, seed, threshold):
    """Returns what is kept of four elements each, the first with word `turn` of its counter.

    `turn`, 1 to 3, is the same for all: two counters for four elements, where one for each would
    take more registers than there are.
    """
    _, b, c, d = philox(quad, seed)
    e, f, g, _ = philox(quad + 1, seed)
    one = tl.where(turn == 1, b, tl.where(turn == 2, c, d))
    two = tl.where(turn == 1, c, tl.where(turn == 2, d, e))
    three = tl.where(turn == 1, d, tl.where(turn == 2, e, f))
    four = tl.where(turn == 1, e, tl.where(turn == 2, f, g))
    return below(one, two, three, four, threshold)


@triton.jit
def kept_block(start, seed, threshold, offset, QUADS: tl.constexpr, BLOCK: tl.constexpr):
    """Returns what is kept of BLOCK elements from `start`, a multiple of four, on.

    QUADS: the offset is a multiple of four too.
    """
    first = start.to(tl.int64) + offset
    quad = first // 4 + tl.arange(0, BLOCK // 4)
    if QUADS:
        kept = kept_quads(quad, seed, threshold)
    else:
        kept = kept_between(quad, first % 4, seed, threshold)
    return kept


@triton.jit
def kept_each(place, seed, threshold):
    """Returns what is kept of elements anywhere: a counter for each."""
    a, b, c, d = philox(place // 4, seed)
    turn = place % 4
    word = tl.where(turn < 2, tl.where(turn == 0, a, b), tl.where(turn == 2, c, d))
    return (word >> 8).to(tl.int32) < threshold
