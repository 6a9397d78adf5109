"""The norms of the differences of neighbouring pixels."""

import math
from collections.abc import Iterator
from typing import Any

import torch

from synq_fast.testing.case import Nearest, OpCase, Sample, Tolerance, nbytes, noise

SHAPES = {
    (1, 1, 1, 1): "a pixel without a neighbour",
    (2, 2, 1, 9): "a row",
    (2, 2, 9, 1): "a column",
    (3, 5, 7, 11): "odd sides",
    (2, 3, 33, 70): "rows longer than a vector",
    (2, 64, 6, 5): "many channels",
    (4, 8, 16, 16): "aligned",
    (1, 1, 2, 2): "one difference of each kind",
    (5, 1, 3, 4): "one channel, dense both ways",
    (0, 3, 5, 5): "no image",
    (2, 0, 5, 5): "no channel",
    (2, 3, 0, 5): "no row",
}
LARGE = {(3, 3, 224, 224): "images", (130, 3, 9, 9): "more images than blocks a group"}


def call(namespace: Any, x: torch.Tensor, **options: Any) -> Any:
    """Calls the op."""
    return namespace.total_variation(x, **options)


def inputs() -> Iterator[Sample]:
    """Yields images, reduced over the batch and one by one."""
    yield Sample("typical", (noise(2, 3, 4, 5, seed=1),))
    for reduction in ("batch", "image"):
        options = {"reduction": reduction}
        for shape, reason in SHAPES.items():
            x, empty = noise(*shape), 0 in shape
            yield Sample(reason, (x,), options, special=empty, every_layout=True)
        for shape, reason in LARGE.items():
            yield Sample(reason, (noise(*shape),), options, large=True, beyond_reference=True)
        constant = torch.full((2, 3, 5, 5), 0.7, dtype=torch.float32, device="cpu")
        yield Sample("no difference, whose norm has no slope", (constant,), options, special=True)
        for value in (math.nan, math.inf):
            x = noise(2, 1, 4, 4)
            x[1, 0, 1, 1] = value
            yield Sample(f"{value} in one image", (x,), options, special=True)


def oracle(x: torch.Tensor, reduction: str = "batch") -> torch.Tensor:
    """The definition, from shifted images."""
    dims = (0, 1, 2, 3) if reduction == "batch" else (1, 2, 3)
    height, width = x.shape[2:]
    total = x.new_zeros(() if reduction == "batch" else (len(x),))
    for down, right in ((0, 1), (1, 0), (1, 1), (1, -1)):
        left, end = max(-right, 0), width - max(right, 0)
        here = x[:, :, : max(height - down, 0), left : max(end, left)]
        there = x[:, :, down:, left + right : max(end, left) + right]
        squares = (there[..., : here.shape[-1]] - here).square().sum(dims)
        # The norm of nothing has no slope.
        root = torch.where(squares == 0, torch.ones_like(squares), squares).sqrt()
        total = total + torch.where(squares == 0, torch.zeros_like(squares), root)
    return total


def nearest(x: torch.Tensor) -> Any:
    """One of the four norms, from ATen's ops."""
    return lambda: torch.linalg.vector_norm(x[..., 1:] - x[..., :-1])


CASE = OpCase(
    name="total_variation",
    call=call,
    inputs=inputs,
    oracle=oracle,
    values=(Tolerance(rtol=1e-5, atol=1e-5),),
    gradients=(Tolerance(rtol=1e-5, atol=1e-6),),
    bytes_moved=lambda sample: nbytes(sample.tensors[0]),
    variants=({"reduction": "image"},),
    nearest=Nearest("sub + vector_norm", nearest),
)
