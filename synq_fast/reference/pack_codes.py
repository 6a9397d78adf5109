"""Codes of 2 to 8 bits as a dense stream of bits."""

import torch

GROUP = 8
"""So many codes fill whole bytes at any width."""


def packed_bytes(length: int, bits: int) -> int:
    """Returns the bytes of a row of `length` codes."""
    return (length * bits + 7) // 8


def pack_codes(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Returns rows as streams of bits; see `synq_fast.ops.pack_codes`."""
    rows, length = codes.shape
    groups = -(-length // GROUP)
    # In int64, where eight codes of 8 bits reach the sign and shifts still give their bytes.
    values = (codes.long() + 2 ** (bits - 1)) & (2**bits - 1)
    values = torch.nn.functional.pad(values, (0, groups * GROUP - length))
    places = torch.arange(GROUP, dtype=torch.int64, device=codes.device)
    words = (values.view(rows, groups, GROUP) << (places * bits)).sum(2)
    parts = (words[:, :, None] >> (places[:bits] * 8)) & 255
    packed = parts.to(torch.uint8).view(rows, groups * bits)
    return packed[:, : packed_bytes(length, bits)].contiguous()
