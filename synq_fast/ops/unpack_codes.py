"""Codes of 2 to 8 bits from a dense stream of bits."""

import torch
from torch.overrides import has_torch_function_unary

from synq_fast.ops._overrides import overridden
from synq_fast.ops._registry import register
from synq_fast.ops._tensor_checks import check_integer, shape_text
from synq_fast.ops.pack_codes import check_rows
from synq_fast.reference.pack_codes import packed_bytes
from synq_fast.reference.unpack_codes import unpack_codes as _plain

Tensor = torch.Tensor


def _fake(packed: Tensor, bits: int, length: int) -> Tensor:
    check_integer("bits", bits, 2, 8)
    # Not a range: where a call is traced the length may be symbolic.
    if isinstance(length, bool) or not isinstance(length, (int, torch.SymInt)):
        raise TypeError(f"length must be an int, got {length!r} of type {type(length).__name__}")
    if length < 0:
        raise ValueError(f"length must be at least 0, got {length}")
    check_rows("packed", packed, torch.uint8)
    wanted = packed_bytes(length, bits)
    if packed.shape[1] != wanted:
        raise ValueError(
            f"packed must have {wanted} bytes a row, as {length} codes of {bits} bits fill, got "
            f"{shape_text(packed)}"
        )
    return packed.new_empty((packed.shape[0], length), dtype=torch.int8)


_op = register(
    "unpack_codes",
    "(Tensor packed, int bits, SymInt length) -> Tensor",
    fake=_fake,
    reference=_plain,
)


def unpack_codes(packed: torch.Tensor, bits: int, length: int) -> torch.Tensor:
    """Reads integer codes from the streams of bits that `pack_codes` makes.

    With every row of bytes read as one little-endian number r:

        code_i = floor(r / 2^(i * bits)) mod 2^bits - 2^(bits - 1)

    Nothing is differentiable.

    Args:
        packed: `(C, ceil(length * bits / 8))` uint8, any strides. What the last byte of a row has
            beyond the codes is ignored.
        bits: Width of a code, from 2 to 8.
        length: Codes of a row: the bytes alone do not tell.

    Returns:
        `(C, length)` int8 from `-2^(bits - 1)` to `2^(bits - 1) - 1`, contiguous.

    Raises:
        TypeError: `packed` is not a uint8 tensor, or `bits` or `length` is not an int.
        ValueError: `packed` has not two dimensions or another number of bytes a row, `bits` is not
            allowed, or `length` is negative.
        BackendUnavailableError: The backend asked for cannot run here.

    Source: the layout is that of `pack_codes`.
    """
    if has_torch_function_unary(packed):
        overriding: Tensor = overridden(unpack_codes, locals())
        return overriding
    op = _op.on(packed)
    if op is None or isinstance(bits, bool) or isinstance(length, bool):
        _op.check(packed, bits, length)
        return _plain(packed, bits, length)
    try:
        result: Tensor = op(packed, bits, length)
    except Exception as error:
        _op.refuse(error, packed, bits, length)
    return result
