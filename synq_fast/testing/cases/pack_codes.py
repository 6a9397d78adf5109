"""Codes as a dense stream of bits."""

from collections.abc import Iterator
from typing import Any

import torch

from synq_fast.testing.case import EXACT, Nearest, OpCase, Sample
from synq_fast.testing.cases._streams import WIDTHS, from_bits, integers, rows, to_bits


def call(namespace: Any, codes: torch.Tensor, *, bits: int = 4) -> Any:
    """Calls the op."""
    return namespace.pack_codes(codes, bits)


def inputs() -> Iterator[Sample]:
    """Yields codes of each width, and some beyond it."""
    for reason, shape, bits, large in rows():
        half = 2 ** (bits - 1)
        codes = integers(*shape, low=-half, high=half, dtype=torch.int8)
        options = {"bits": bits}
        yield Sample(reason, (codes,), options, large=large, every_layout=not large)
    for bits in WIDTHS:
        for shape in ((2, 256), (3, 255)):
            codes = integers(*shape, low=-128, high=128, dtype=torch.int8)
            reason = f"codes of 8 bits in {bits}, whose neighbours must not change"
            yield Sample(reason, (codes,), {"bits": bits}, every_layout=True)


def oracle(codes: torch.Tensor, *, bits: int = 4) -> torch.Tensor:
    """The definition, bit by bit."""
    stored = (codes.long() + 2 ** (bits - 1)) % 2**bits
    return from_bits(to_bits(stored, bits), 8).to(torch.uint8)


def nearest(codes: torch.Tensor) -> Any:
    """What packing is at 8 bits."""
    return lambda: torch.bitwise_xor(codes, -128)


def bytes_moved(sample: Sample) -> int:
    """Returns the bytes of the codes and of the streams."""
    codes = sample.tensors[0]
    length = codes.shape[1]
    return codes.numel() + len(codes) * (-(-length * int(sample.options.get("bits", 4)) // 8))


CASE = OpCase(
    name="pack_codes",
    call=call,
    inputs=inputs,
    oracle=oracle,
    values=(EXACT,),
    bytes_moved=bytes_moved,
    cast=(),
    nearest=Nearest("bitwise_xor", nearest),
    variants=({"bits": 4}, {"bits": 8}),
)
