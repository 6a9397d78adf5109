"""Codes of 2 to 8 bits from a dense stream of bits."""

import torch

from synq_fast.reference.pack_codes import GROUP


def unpack_codes(packed: torch.Tensor, bits: int, length: int) -> torch.Tensor:
    """Returns the codes of streams of bits; see `synq_fast.ops.unpack_codes`."""
    rows = packed.shape[0]
    groups = -(-length // GROUP)
    whole = torch.nn.functional.pad(packed.long(), (0, groups * bits - packed.shape[1]))
    places = torch.arange(GROUP, dtype=torch.int64, device=packed.device)
    words = (whole.view(rows, groups, bits) << (places[:bits] * 8)).sum(2)
    values = (words[:, :, None] >> (places * bits)) & (2**bits - 1)
    codes: torch.Tensor = values.view(rows, groups * GROUP)[:, :length] - 2 ** (bits - 1)
    return codes.to(torch.int8).contiguous()
