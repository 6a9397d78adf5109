"""Inputs of the losses on batch-normalisation statistics."""

from collections.abc import Iterator
from typing import Any

import torch

from synq_fast.testing.case import Sample, noise, uniform

SHAPES = {
    (1, 1): "one element: no variance",
    (2, 1, 5): "one channel",
    (6, 5): "no inner dimension: channels are innermost",
    (70, 5): "channels innermost, rows folded, some left over",
    (5, 300): "more columns than one group holds",
    (4, 3, 2, 2): "pieces shorter than a vector",
    (3, 16, 4, 4): "pieces of exactly one vector",
    (3, 5, 7, 11): "odd everywhere",
    (2, 3, 4, 5, 6): "a volume",
    (2, 8, 28, 28): "an image",
    (2, 3, 70, 71): "pieces longer than a block",
}
LARGE = {
    (16, 12, 57, 57): "shared between threads",
    (300, 24, 9): "many short pieces",
    (16, 64, 32, 32): "sums over 16384 elements per channel",
    (40, 8, 20, 20): "grids of any size",
}


def stored(channels: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns a stored mean and variance."""
    return noise(channels, seed=2), uniform(channels, seed=2, low=1.0, high=2.0)


def layers() -> Iterator[Sample]:
    """Yields one layer's data with a mean unlike zero, and stored statistics."""
    for shapes, large in ((SHAPES, False), (LARGE, True)):
        for shape, reason in shapes.items():
            tensors = noise(*shape, scale=2.0, mean=0.5), *stored(shape[1])
            yield Sample(reason, tensors, every_layout=True, large=large)
    tensors = noise(1100, 8, scale=2.0, mean=0.5), *stored(8)
    yield Sample("channels innermost, packs of columns in several parts", tensors)
    for value in (float("nan"), float("inf")):
        for shape in ((3, 5), (2, 3, 5, 8)):
            x = noise(*shape)
            x[1, 2] = value
            yield Sample(f"{value}", (x, *stored(shape[1])), special=True)


def loss_terms(
    x: torch.Tensor, mean: torch.Tensor, var: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The definition."""
    others = [dim for dim in range(x.ndim) if dim != 1]
    own_mean = x.mean(others)
    shape = [-1 if dim == 1 else 1 for dim in range(x.ndim)]
    own_var = (x - own_mean.view(shape)).square().mean(others)
    return (own_mean - mean).square().mean(), (own_var - var).square().mean()


def nearest(x: torch.Tensor, *_: torch.Tensor) -> Any:
    """ATen's pass over the data, without the losses."""
    others = [dim for dim in range(x.ndim) if dim != 1]
    return lambda: torch.var_mean(x, others, correction=0)
