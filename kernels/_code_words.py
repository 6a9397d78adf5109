"""Eight codes of 2 to 8 bits in a word of 64 bits, as csrc/code_word.h has them, and their launch.

Where all rows make one stream and memory is aligned, whole blocks of groups are read as words,
without masks, which would split 128-bit accesses. What is left, and everything else, goes byte by
byte.
"""

import torch
import triton
import triton.language as tl

from synq_fast.kernels._block_shapes import block_shape
from synq_fast.kernels._layout import on_device_of

GROUP = tl.constexpr(8)
GROUPS = 256


@triton.jit
def every(value: tl.constexpr, STEP: tl.constexpr):
    """A word with the value in its lowest bits and every STEP bits after them, as int64."""
    total: tl.constexpr = value * ((2**64 - 1) // (2**STEP - 1))
    return tl.full((), total - 2**64 if total >= 2**63 else total, tl.int64)


@triton.jit
def pack_word(word, BITS: tl.constexpr):
    """Codes in bytes to codes side by side; bits beyond a code's width are dropped."""
    word = word ^ every(2 ** (BITS - 1), 8)
    if BITS < 8:
        # Masks also drop the copies of the sign that shifts bring in.
        word = word & every(2**BITS - 1, 8)
        low = every(2**BITS - 1, 16)
        word = (word & low) | ((word >> (8 - BITS)) & (low << BITS))
        low = every(2 ** (2 * BITS) - 1, 32)
        word = (word & low) | ((word >> (2 * (8 - BITS))) & (low << (2 * BITS)))
        low = every(2 ** (4 * BITS) - 1, 64)
        word = (word & low) | ((word >> (4 * (8 - BITS))) & (low << (4 * BITS)))
    return word


@triton.jit
def unpack_word(word, BITS: tl.constexpr):
    """Codes side by side to codes in bytes; what lies above them is ignored."""
    half = every(2 ** (BITS - 1), 8)
    if BITS == 8:
        return word ^ half
    low = every(2 ** (4 * BITS) - 1, 64)
    word = (word & low) | ((word & (low << (4 * BITS))) << (4 * (8 - BITS)))
    low = every(2 ** (2 * BITS) - 1, 32)
    word = (word & low) | ((word & (low << (2 * BITS))) << (2 * (8 - BITS)))
    low = every(2**BITS - 1, 16)
    word = (word & low) | ((word & (low << BITS)) << (8 - BITS))
    # The highest bit keeps the difference from borrowing of the next byte.
    top = every(128, 8)
    return ((word | top) - half) ^ top


@triton.jit
def load_bytes(place, count, mask):
    """At most eight bytes as a word."""
    word = tl.zeros_like(count).to(tl.int64)
    for i in tl.static_range(8):
        byte = tl.load(place + i, mask=mask & (i < count), other=0)
        word |= (byte.to(tl.int64) & 255) << (8 * i)
    return word


@triton.jit
def store_bytes(place, word, count, mask):
    """The first bytes of a word."""
    for i in tl.static_range(8):
        byte = ((word >> (8 * i)) & 255).to(place.dtype.element_ty)
        tl.store(place + i, byte, mask=mask & (i < count))


@triton.jit
def locate(first, rows, length, groups, BITS: tl.constexpr, BLOCK: tl.constexpr):
    """Where groups' codes and bytes begin, how many they are, and which groups exist."""
    place = first + tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    row = place // groups
    group = place - row * groups
    codes = tl.minimum(length - group * GROUP, GROUP)
    packed = row * ((length * BITS + 7) // 8) + group * BITS
    return (
        row * length + group * GROUP,
        packed,
        codes,
        (codes * BITS + 7) // 8,
        place < rows * groups,
    )


def word_views(
    codes: torch.Tensor, packed: torch.Tensor, bits: int, words: int
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Returns flat tensors as words of codes and as the widest pieces of theirs, if aligned."""
    size = bits & -bits
    piece = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[size]
    for x, unit in ((codes, 8), (packed, size)):
        if x.data_ptr() % unit or x.storage_offset() % unit:
            return None
    return codes[: 8 * words].view(torch.int64), packed[: bits * words].view(piece)


def launch(
    kernels: tuple,
    codes: torch.Tensor,
    packed: torch.Tensor,
    bits: int,
) -> None:
    """Launches a kernel of words and one of bytes on contiguous tensors."""
    rows, length = codes.shape
    if rows * length == 0:
        return
    if length * bits % 8 == 0:
        rows, length = 1, rows * length
    by_words, by_bytes = kernels
    codes, packed = codes.view(-1), packed.view(-1)
    groups = triton.cdiv(length, 8)
    block, warps = block_shape(by_words.fn.__name__, torch.int8)
    words = length // (8 * block) * block if rows == 1 else 0
    views = word_views(codes, packed, bits, words)
    with on_device_of(codes):
        if words and views is not None:
            by_words[(words // block,)](
                *views, BITS=bits, PIECES=bits // (bits & -bits), BLOCK=block, num_warps=warps
            )
        else:
            words = 0
        rest = rows * groups - words
        if rest:
            by_bytes[(triton.cdiv(rest, GROUPS),)](
                codes, packed, words, rows, length, groups, BITS=bits, BLOCK=GROUPS, num_warps=4
            )
