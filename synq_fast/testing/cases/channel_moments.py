"""Mean and variance of every channel of every image."""

from collections.abc import Iterator
from typing import Any

import torch

from synq_fast.testing.case import Nearest, OpCase, Sample, Tolerance, nbytes, noise

SHAPES = {
    (2, 3): "no position to average",
    (1, 1): "one element",
    (3, 5, 7): "odd",
    (2, 8, 14, 14): "an image",
    (5, 8, 7, 7): "one warp a channel",
    (2, 70, 5, 3): "more columns than a block has",
    (2, 64, 4, 4): "aligned rows and columns",
    (3, 7, 5, 6, 4): "a volume",
    (0, 3, 4, 4): "no image",
    (2, 0, 4, 4): "no channel",
    (2, 3, 0, 4): "no position: the mean of nothing is NaN",
}
LONG = {
    (1, 2, 9001): "parts of long runs, odd",
    (1, 2, 12000): "the same, aligned",
    (1, 33, 20, 30): "parts of columns",
    (2, 64, 15, 20): "parts of packs of columns",
    (700, 3, 2): "more channels than blocks",
}
LARGE = {
    (1, 3, 70001): "one long run a channel",
    (2, 700, 3, 3): "more channels than a block holds",
    (1, 5, 300, 61): "one image of several parts",
    (17, 40, 20, 20): "shared between threads",
}


def call(namespace: Any, x: torch.Tensor) -> Any:
    """Calls the op."""
    return namespace.channel_moments(x)


def inputs() -> Iterator[Sample]:
    """Yields images, some far from zero, where a variance could cancel."""
    yield Sample("typical", (noise(2, 3, 4, 5, seed=1),))
    for shapes, large in ((SHAPES | LONG, False), (LARGE, True)):
        for shape, reason in shapes.items():
            empty = 0 in shape
            x = noise(*shape, scale=3.0)
            yield Sample(reason, (x,), special=empty, every_layout=True, large=large)
    for shape in ((2, 8, 14, 14), (1, 5, 300, 61), (2, 700, 3, 3), (17, 40, 20, 20)):
        for memory_format in (torch.contiguous_format, torch.channels_last):
            for ratio in (1e2, 1e4):
                x = noise(*shape, scale=1e-3, mean=1e-3 * ratio)
                tensors = (x.to(memory_format=memory_format),)
                yield Sample(f"a mean of {ratio} deviations", tensors, large=x.numel() > 10_000)
    x = torch.full((2, 4, 40, 40), 10.0, dtype=torch.float32, device="cpu")
    x[:, 1, ::2], x[:, 2, 0, 0], x[:, 3] = 10.0 * (1 + 2.0**-7), 11.0, 0.1
    yield Sample("all but equal, in half types too", (x,), every_layout=True, large=True)
    x = noise(2, 6, 112, 112, scale=1e-3, mean=10.0)
    x[:, :3, 0], x[:, 3:, 0, 0] = 0, -5
    yield Sample("first values far from the rest", (x,), every_layout=True, large=True)
    x = noise(2, 4, 9, 9)
    x[0, 1, 3, 3], x[1, 2, 0, 0] = float("nan"), float("inf")
    x[1, 3, 0, :2] = torch.tensor([float("inf"), -float("inf")], device="cpu")
    yield Sample("NaN and infinity stay in their channel", (x,), special=True, every_layout=True)
    x = noise(1, 4, 9001)
    x[0, 0, 0] = x[0, 1, 5000] = float("inf")
    x[0, 2, 7] = float("nan")
    yield Sample("the same in long runs", (x,), special=True)


def oracle(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The definition."""
    flat = x.reshape(*x.shape[:2], -1)
    return flat.mean(2), flat.var(2, correction=0)


def units(sample: Sample) -> tuple[Any, ...]:
    """Values of `x` round a mean, which the gradient takes in float32."""
    (x,) = sample.tensors
    largest = float(x.nan_to_num(0, 0, 0).abs().max()) if x.numel() else 0.0
    return 1.0, 1.0, 1.0 + largest


def nearest(x: torch.Tensor) -> Any:
    """ATen's op over the same dimensions."""
    others = tuple(range(2, x.ndim))
    return lambda: torch.var_mean(x, others, correction=0)


CASE = OpCase(
    name="channel_moments",
    call=call,
    inputs=inputs,
    oracle=oracle,
    # Of differences of about one from the mean: at most 32 of them are added up in float32.
    values=(Tolerance(atol=2e-6, rtol=2e-6), Tolerance(atol=1e-9, rtol=2e-5)),
    gradients=(Tolerance(atol=1e-6, rtol=1e-5),),
    units=units,
    bytes_moved=lambda sample: nbytes(sample.tensors[0]),
    nearest=Nearest("var_mean", nearest),
)
