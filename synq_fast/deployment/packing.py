"""Codes of 2 to 8 bits as a dense stream of bits."""

from __future__ import annotations

import torch
from torch import Tensor

_GROUP = 8
"""So many codes fill whole bytes at any width."""


def packed_bytes(length: int, bits: int) -> int:
    """Bytes of a row of ``length`` codes."""
    return (length * bits + 7) // 8


def pack(codes: Tensor, bits: int) -> Tensor:
    """Rows of codes as streams of bits, each row from a new byte on.

    Code ``q`` is kept as ``q + 2^(bits-1)``, the first in the lowest bits of the first byte.

    Args:
        codes: (C, N) int8, from ``-2^(bits-1)`` to ``2^(bits-1) - 1``.
        bits: 2 to 8.

    Returns:
        (C, ceil(N bits / 8)) uint8.
    """
    rows, length = codes.shape
    groups = -(-length // _GROUP)
    # Kept in int64, where eight codes of 8 bits reach the sign and shifts still give their bytes.
    values = torch.zeros(rows, groups * _GROUP, dtype=torch.int64, device=codes.device)
    values[:, :length] = codes.long() + 2 ** (bits - 1)
    places = torch.arange(_GROUP, device=codes.device)
    words = (values.view(rows, groups, _GROUP) << (places * bits)).sum(2)
    parts = (words[:, :, None] >> (places[:bits] * 8)) & 255
    return parts.to(torch.uint8).flatten(1)[:, : packed_bytes(length, bits)].contiguous()


def unpack(packed: Tensor, bits: int, length: int) -> Tensor:
    """The codes (C, length) int8 that ``pack`` made rows (C, ceil(length bits / 8)) of."""
    rows = len(packed)
    groups = -(-length // _GROUP)
    whole = torch.zeros(rows, groups * bits, dtype=torch.int64, device=packed.device)
    whole[:, : packed.shape[1]] = packed.long()
    places = torch.arange(_GROUP, device=packed.device)
    words = (whole.view(rows, groups, bits) << (places[:bits] * 8)).sum(2)
    values = (words[:, :, None] >> (places * bits)) & (2**bits - 1)
    codes = values.flatten(1)[:, :length] - 2 ** (bits - 1)
    result: Tensor = codes.to(torch.int8)
    return result
