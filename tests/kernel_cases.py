"""Inputs on which every fake quantization kernel must equal the reference bit for bit."""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

DTYPES = (torch.float32, torch.float16, torch.bfloat16)

# Triton's interpreter is slow, and half types differ in loads and stores alone.
LARGEST_HALF = 4096


def interpretable(shape: Sequence[int], dtype: torch.dtype) -> bool:
    """Says whether the interpreter takes an input of this shape and type in reasonable time."""
    return dtype == torch.float32 or math.prod(shape) <= LARGEST_HALF


SIZES = {
    1: "one element",
    17: "less than any block, odd",
    2048: "one Triton block exactly",
    2049: "one element beyond it",
    10241: "first size too large for one CUDA block's shared memory in float32",
    40001: "many blocks of both kinds, odd",
}

SHAPES = {
    (9,): "a vector, each element a channel",
    (3, 5, 7): "odd everywhere: no row is aligned",
    (2, 8, 4, 4): "the common image, aligned",
    (4, 3, 9, 9): "odd rows, three channels",
    (1, 6, 5): "a dimension of one",
    (5, 1, 4): "one channel",
    (90, 70): "a matrix, unaligned in half precision",
    (700, 48): "more rows than a device of one multiprocessor holds, channels that divide its grid",
    (3, 11000): "rows too long for shared memory, aligned",
    (2, 3, 5501): "channels in two long odd pieces",
}


class Case(NamedTuple):
    name: str
    x: torch.Tensor
    bits: int
    axis: int | None


def cases(dtype: torch.dtype) -> Iterator[Case]:
    """Yields finite inputs: sizes, shapes, axes, memory formats, bits."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return (torch.randn(shape, generator=generator) * 2 + 0.5).to(dtype)

    for size in SIZES:
        yield Case(f"size {size}", normal(size), 8, None)
    for shape in SHAPES:
        # A channel is a program of its own in some kernels, and the interpreter is slow.
        for axis in (axis for axis, channels in enumerate(shape) if channels <= 100):
            yield Case(f"shape {shape} axis {axis}", normal(*shape), 4, axis)
    for shape in ((2, 8, 4, 4), (4, 3, 9, 9), (2, 64, 5, 5)):
        x = normal(*shape).to(memory_format=torch.channels_last)
        for axis in (None, 0, 1, 2, -1):
            yield Case(f"channels_last {shape} axis {axis}", x, 4, axis)
    yield Case("strided", normal(8, 9, 10).transpose(0, 2)[::2, 1:], 4, 1)
    yield Case("expanded", normal(1, 9).expand(4, 9), 4, 0)
    for bits in (2, 3, 8, 9, 16):
        yield Case(f"{bits} bits", normal(6, 50), bits, None)
        yield Case(f"{bits} bits per channel", normal(6, 50), bits, 0)


def special_values(dtype: torch.dtype) -> torch.Tensor:
    """Returns NaN, infinities, ties, zeros of both signs and extremes; an odd number of them."""
    values = [float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 1e30, -1e30, 1e-30, -1e-40]
    values += [i / 2 for i in range(-20, 21)]
    return torch.tensor(values + values + [0.25]).to(dtype)


SPECIAL_RANGES = {
    "half steps are ties": (-8.0, 7.0),
    "from zero": (0.0, 15.0),
    "empty at zero": (0.0, 0.0),
    "empty elsewhere": (3.0, 3.0),
    "narrower than the least width": (1.0, 1.0 + 1.2e-7),
    "zero point beyond 2^23": (1e6, 1e6 + 1.0),
    "zero point between 2^22 and 2^23, where halves exist": (279620.3, 279621.3),
    "the same, negative": (-279621.3, -279620.3),
    "infinite above": (0.0, float("inf")),
    "NaN above": (-1.0, float("nan")),
    "wide": (-1e-3, 1e30),
}


def assert_same_bits(actual: torch.Tensor, expected: torch.Tensor, name: str) -> None:
    """Asserts equal dtype, shape and bits; one NaN is as good as another."""
    assert actual.dtype == expected.dtype, f"{name}: {actual.dtype} instead of {expected.dtype}"
    assert actual.shape == expected.shape, f"{name}: {actual.shape} instead of {expected.shape}"
    if actual.is_floating_point():
        integer = torch.int32 if actual.dtype == torch.float32 else torch.int16
        both_nan = actual.isnan() & expected.isnan()
        same = (actual.contiguous().view(integer) == expected.contiguous().view(integer)) | both_nan
    else:
        same = actual == expected
    assert bool(same.all()), (
        f"{name}: {int((~same).sum())} of {same.numel()} differ, "
        f"first {actual[~same][:3].tolist()} instead of {expected[~same][:3].tolist()}"
    )
