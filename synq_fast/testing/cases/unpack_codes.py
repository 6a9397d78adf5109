"""Codes from a dense stream of bits."""

from collections.abc import Iterator
from typing import Any

import torch

from synq_fast.testing.case import EXACT, Nearest, OpCase, Sample
from synq_fast.testing.cases._streams import from_bits, integers, rows, to_bits


def call(namespace: Any, packed: torch.Tensor, *, bits: int = 4, length: int | None = None) -> Any:
    """Calls the op, by default for as many codes as the bytes hold."""
    return namespace.unpack_codes(packed, bits, _length(packed, bits, length))


def inputs() -> Iterator[Sample]:
    """Yields streams of each width; what follows the codes in a row's last byte is noise."""
    for reason, (count, length), bits, large in rows():
        packed = integers(count, -(-length * bits // 8), low=0, high=256, dtype=torch.uint8)
        options = {"bits": bits, "length": length}
        yield Sample(reason, (packed,), options, large=large, every_layout=not large)


def oracle(packed: torch.Tensor, *, bits: int = 4, length: int | None = None) -> torch.Tensor:
    """The definition, bit by bit."""
    length = _length(packed, bits, length)
    stored = from_bits(to_bits(packed, 8)[:, : length * bits], bits)
    codes: torch.Tensor = stored - 2 ** (bits - 1)
    return codes.to(torch.int8)


def nearest(packed: torch.Tensor) -> Any:
    """What unpacking is at 8 bits."""
    return lambda: torch.bitwise_xor(packed, 128)


def bytes_moved(sample: Sample) -> int:
    """Returns the bytes of the streams and of the codes."""
    (packed,), options = sample.tensors, sample.options
    length = _length(packed, int(options.get("bits", 4)), options.get("length"))
    return packed.numel() + len(packed) * length


def _length(packed: torch.Tensor, bits: int, length: int | None) -> int:
    return packed.shape[1] * 8 // bits if length is None else length


CASE = OpCase(
    name="unpack_codes",
    call=call,
    inputs=inputs,
    oracle=oracle,
    values=(EXACT,),
    bytes_moved=bytes_moved,
    cast=(),
    nearest=Nearest("bitwise_xor", nearest),
    variants=({"bits": 4, "length": 15}, {"bits": 8, "length": 8}),
)
