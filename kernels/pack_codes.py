"""Codes of 2 to 8 bits as a dense stream of bits."""

import torch
import triton
import triton.language as tl

from synq_fast.kernels._code_words import launch, load_bytes, locate, pack_word, store_bytes


@triton.jit
def pack_words_kernel(
    codes_ptr, packed_ptr, BITS: tl.constexpr, PIECES: tl.constexpr, BLOCK: tl.constexpr
):
    """A program packs BLOCK words, each into its pieces."""
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    word = pack_word(tl.load(codes_ptr + place), BITS)
    for i in tl.static_range(PIECES):
        piece = (word >> (i * (8 * BITS // PIECES))).to(packed_ptr.dtype.element_ty)
        tl.store(packed_ptr + place * PIECES + i, piece)


@triton.jit
def pack_bytes_kernel(
    codes_ptr, packed_ptr, first, rows, length, groups, BITS: tl.constexpr, BLOCK: tl.constexpr
):
    """A program packs BLOCK groups, from the first on."""
    source, target, codes, size, mask = locate(first, rows, length, groups, BITS, BLOCK)
    word = pack_word(load_bytes(codes_ptr + source, codes, mask), BITS)
    if BITS < 8:
        word = word & ((tl.full((BLOCK,), 1, tl.int64) << (codes * BITS)) - 1)
    store_bytes(packed_ptr + target, word, size, mask)


def pack_codes(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Returns the rows' streams, uint8."""
    codes = codes.contiguous()
    rows, length = codes.shape
    packed = codes.new_empty((rows, (length * bits + 7) // 8), dtype=torch.uint8)
    launch((pack_words_kernel, pack_bytes_kernel), codes, packed, bits)
    return packed
