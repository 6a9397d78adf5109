"""Codes of 2 to 8 bits from a dense stream of bits."""

import torch
import triton
import triton.language as tl

from synq_fast.kernels._code_words import launch, load_bytes, locate, store_bytes, unpack_word


@triton.jit
def unpack_words_kernel(
    codes_ptr, packed_ptr, BITS: tl.constexpr, PIECES: tl.constexpr, BLOCK: tl.constexpr
):
    """A program reads BLOCK words, each from its pieces."""
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    size: tl.constexpr = 8 * BITS // PIECES
    word = tl.zeros((BLOCK,), tl.int64)
    for i in tl.static_range(PIECES):
        piece = tl.load(packed_ptr + place * PIECES + i).to(tl.int64)
        if size < 64:
            piece = piece & (2**size - 1)
        word |= piece << (i * size)
    tl.store(codes_ptr + place, unpack_word(word, BITS))


@triton.jit
def unpack_bytes_kernel(
    codes_ptr, packed_ptr, first, rows, length, groups, BITS: tl.constexpr, BLOCK: tl.constexpr
):
    """A program reads BLOCK groups, from the first on."""
    target, source, codes, size, mask = locate(first, rows, length, groups, BITS, BLOCK)
    word = unpack_word(load_bytes(packed_ptr + source, size, mask), BITS)
    store_bytes(codes_ptr + target, word, codes, mask)


def unpack_codes(packed: torch.Tensor, bits: int, length: int) -> torch.Tensor:
    """Returns the rows' codes, int8."""
    packed = packed.contiguous()
    codes = packed.new_empty((packed.shape[0], length), dtype=torch.int8)
    launch((unpack_words_kernel, unpack_bytes_kernel), codes, packed, bits)
    return codes
