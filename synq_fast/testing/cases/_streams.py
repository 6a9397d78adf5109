"""Rows of codes of every width, and what their streams are bit by bit."""

from collections.abc import Iterator
from typing import NamedTuple

import torch

WIDTHS = range(2, 9)
SHAPES = {
    (3, 21): "rows that end within a group",
    (1, 1): "one code",
    (2, 2): "rows that end within a group, and at 4 bits with a byte",
    (3, 8): "a group a row",
    (2, 48): "pairs of groups",
    (5, 130): "longer than a vector, with a rest",
    (1, 1037): "one long row with a rest",
    (70, 27): "many short rows",
    (1, 8 * 1024 + 12): "two blocks of Triton's words, a group and a part of one",
    (9, 8 * 32 - 1): "more than one block of Triton's groups",
    (0, 5): "no row",
    (4, 0): "no code",
}
LARGE = {(3, 70_001): "rows for several threads", (64, 4608): "one stream for several threads"}


class Rows(NamedTuple):
    """What a sample is made of."""

    reason: str
    shape: tuple[int, int]
    bits: int
    large: bool


def rows() -> Iterator[Rows]:
    """Yields the typical shape first, then all in each width."""
    yield Rows("typical", (3, 21), 3, False)
    for bits in WIDTHS:
        for shapes, large in ((SHAPES, False), (LARGE, True)):
            for shape, reason in shapes.items():
                yield Rows(f"{reason}, {bits} bits", shape, bits, large)


def integers(*shape: int, low: int, high: int, dtype: torch.dtype) -> torch.Tensor:
    """Returns numbers from `low` to `high - 1` on the CPU, the same every time."""
    generator = torch.Generator("cpu").manual_seed(sum(shape) + high)
    return torch.randint(low, high, shape, generator=generator, device="cpu").to(dtype)


def to_bits(values: torch.Tensor, width: int) -> torch.Tensor:
    """Returns numbers `(C, N)` as zeros and ones `(C, N * width)`, the lowest bit first."""
    places = torch.arange(width, dtype=torch.int64, device="cpu")
    return ((values.long()[:, :, None] >> places) & 1).flatten(1)


def from_bits(bits: torch.Tensor, width: int) -> torch.Tensor:
    """Returns the numbers of so many bits each; missing last bits are zero."""
    missing = -bits.shape[1] % width
    padded = torch.nn.functional.pad(bits, (0, missing))
    places = torch.arange(width, dtype=torch.int64, device="cpu")
    count = padded.shape[1] // width
    return (padded.view(len(bits), count, width) << places).sum(2)
