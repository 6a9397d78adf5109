"""Elements of one tensor or of another, by chance."""

import math
from collections.abc import Iterator
from typing import Any

import torch

from synq_fast.testing.case import EXACT, Nearest, OpCase, Sample, constant, nbytes, noise
from synq_fast.testing.cases._draws import drawn

SHAPES = {
    (0,): "empty",
    (2, 0, 3): "empty in the middle",
    (): "no dimension",
    (1,): "one element",
    (3,): "less than one counter",
    (9,): "two counters and a part of one",
    (33,): "a part of a vector",
    (513,): "one more than the CPU's block",
    (3, 5, 7): "odd everywhere",
    (2, 3, 4, 5): "an image",
    (4, 3, 9, 9): "odd rows, three channels",
    (90, 70): "a matrix, unaligned in half precision",
    (2049,): "one element beyond a Triton block",
    (40001,): "many blocks of Triton and CUDA, odd",
}
# Each half of the key, both, and what is negative as int64.
SEEDS = (0, 1, 2**32, 0x243F6A8885A308D3, 2**64 - 1, -(2**63))
OFFSETS = {
    4: "whole counters",
    3: "the last word of a counter",
    1024 * 7 + 2: "two words, beyond a Triton block",
    2**31 - 1: "beyond 32 bits within the tensor",
    2**34 - 6: "the counter's lower half ends within the tensor",
    2**61 + 4: "far",
}


def call(namespace: Any, a: torch.Tensor, b: torch.Tensor, **options: Any) -> Any:
    """Calls the op."""
    return namespace.random_mix(a, b, **options)


def inputs() -> Iterator[Sample]:
    """Yields pairs of tensors, which lie alike or not."""
    pair = noise(4, 6, seed=1), noise(4, 6, seed=2)
    yield Sample("typical", pair, {"keep": 0.5, "seed": 3})
    options: dict[str, Any]
    for turn, (shape, reason) in enumerate(SHAPES.items()):
        pair = noise(*shape), noise(*shape, seed=1)
        options = {"keep": (0.5, 0.875, 0.1)[turn % 3], "seed": SEEDS[turn % len(SEEDS)]}
        yield Sample(reason, pair, options, every_layout=True)
    for keep in (0.0, 1e-9, 1 - 2**-24, 1 - 2**-30, 1.0):
        pair = noise(41, 5), noise(41, 5, seed=1)
        options = {"keep": keep, "seed": constant(5).long()}
        yield Sample(f"keep {keep}, a seed in a tensor", pair, options)
    for offset, reason in OFFSETS.items():
        for shape in ((5, 3, 8, 9), (517,)):
            pair = noise(*shape), noise(*shape, seed=1)
            options = {"keep": 0.5, "seed": 2**33 + 1, "offset": offset}
            yield Sample(f"offset: {reason}", pair, options, every_layout=len(shape) > 1)
    image = noise(2, 6, 5, 4)
    others = {
        "channels_last": noise(2, 6, 5, 4, seed=1).to(memory_format=torch.channels_last),
        "expanded": noise(1, 6, 1, 4).expand(2, 6, 5, 4),
        "transposed": noise(4, 5, 6, 2).permute(3, 2, 1, 0),
    }
    for name, other in others.items():
        for first, second in ((image, other), (other, image)):
            yield Sample(f"beside one {name}", (first, second), {"keep": 0.5, "seed": 7})
    values = torch.tensor([math.nan, math.inf, -math.inf, -0.0, 0.0, 1e-40, 3e38] * 5, device="cpu")
    yield Sample("special", (values, values.flip(0)), {"keep": 0.5, "seed": 9}, special=True)
    pair = noise(40, 33, 50), noise(40, 33, 50, seed=1)
    yield Sample("several threads", pair, {"keep": 0.5, "seed": 1}, large=True)


def oracle(
    a: torch.Tensor, b: torch.Tensor, *, keep: float, seed: Any, offset: int = 0
) -> torch.Tensor:
    """The definition, with draws in Python's own integers."""
    return torch.where(drawn(a, seed, keep, offset), a, b)


def nearest(a: torch.Tensor, b: torch.Tensor) -> Any:
    """The same with a generator that the device keeps."""
    return lambda: torch.where(torch.rand_like(a) < 0.5, a, b)


CASE = OpCase(
    name="random_mix",
    by_place=True,
    call=call,
    inputs=inputs,
    oracle=oracle,
    values=(EXACT,),
    gradients=(EXACT, EXACT),
    bytes_moved=lambda sample: 3 * nbytes(sample.tensors[0]),
    nearest=Nearest("where(rand_like)", nearest),
    cast=(0, 1),
    laid_out=(0, 1),
    keeps_layout=True,
    same_type=True,
    elementwise=True,
)
