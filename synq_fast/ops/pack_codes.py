"""Codes of 2 to 8 bits as a dense stream of bits."""

import torch
from torch.overrides import has_torch_function_unary

from synq_fast.ops._overrides import overridden
from synq_fast.ops._registry import register
from synq_fast.ops._tensor_checks import check_dims, check_integer
from synq_fast.reference.pack_codes import pack_codes as _plain
from synq_fast.reference.pack_codes import packed_bytes

Tensor = torch.Tensor


def check_rows(name: str, value: object, dtype: torch.dtype) -> None:
    """Raises unless `value` is a matrix of this type."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")
    if value.dtype != dtype:
        raise TypeError(f"{name} must be {dtype}, got {value.dtype}")
    check_dims(name, value, "C, N" if dtype == torch.int8 else "C, bytes")


def _fake(codes: Tensor, bits: int) -> Tensor:
    check_integer("bits", bits, 2, 8)
    check_rows("codes", codes, torch.int8)
    rows, length = codes.shape
    return codes.new_empty((rows, packed_bytes(length, bits)), dtype=torch.uint8)


_op = register("pack_codes", "(Tensor codes, int bits) -> Tensor", fake=_fake, reference=_plain)


def pack_codes(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Packs integer codes into streams of bits, one a row; `unpack_codes` is the inverse.

    Code `q` is kept as `q + 2^(bits - 1)` in `bits` bits, the lowest first, in the lowest bits of
    the row's bytes that are still free: read as one little-endian number, a row is the sum of
    `(q_i + 2^(bits - 1)) * 2^(i * bits)`. Every row begins with a byte of its own, and what is left
    of its last byte is zero. Nothing is differentiable.

    Args:
        codes: `(C, N)` int8 from `-2^(bits - 1)` to `2^(bits - 1) - 1`, any strides. Of a code
            outside that range the lowest `bits` bits are kept, as where int8 itself overflows; its
            neighbours do not change. Values are not checked.
        bits: Width of a code, from 2 to 8.

    Returns:
        `(C, ceil(N * bits / 8))` uint8, contiguous.

    Raises:
        TypeError: `codes` is not an int8 tensor, or `bits` is not an int.
        ValueError: `codes` has not two dimensions, or `bits` is not allowed.
        BackendUnavailableError: The backend asked for cannot run here.

    Source: no paper's; the layout is defined here. As in the 4-bit tensors of ONNX, the first code
    lies in the lowest bits; unlike there, it is kept as its distance from the lowest code.
    """
    if has_torch_function_unary(codes):
        overriding: Tensor = overridden(pack_codes, locals())
        return overriding
    op = _op.on(codes)
    if op is None or isinstance(bits, bool):
        _op.check(codes, bits)
        return _plain(codes, bits)
    try:
        result: Tensor = op(codes, bits)
    except Exception as error:
        _op.refuse(error, codes, bits)
    return result
