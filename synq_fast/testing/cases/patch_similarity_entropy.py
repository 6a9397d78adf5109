"""The entropy of the similarities between an image's tokens."""

import math
from collections.abc import Iterator
from typing import Any

import torch

from synq_fast.testing.case import OpCase, Sample, Tolerance, nbytes, noise

# Shape and options; the bandwidths other than the default let the kernels overlap.
SHAPES: dict[str, tuple[tuple[int, int, int], dict[str, Any]]] = {
    "one token": ((2, 1, 5), {}),
    "one channel: similarities are 1 and -1": ((2, 6, 1), {}),
    "two points, less than a vector": ((3, 7, 5), {"points": 2}),
    "a whole block of tokens": ((2, 16, 16), {"bandwidth": 0.3}),
    "one more than a block, odd": ((1, 17, 33), {"points": 31, "bandwidth": 0.05}),
    "many points": ((2, 20, 9), {"points": 256, "bandwidth": 0.1}),
    "several blocks, a large eps": ((2, 50, 40), {"eps": 0.5, "bandwidth": 0.02}),
    "two blocks and a part of one": ((2, 70, 8), {"bandwidth": 0.05}),
    "packs in every type": ((3, 9, 272), {"bandwidth": 0.05, "points": 5}),
    "channels that no tile divides": ((2, 70, 67), {"bandwidth": 0.05}),
    "more channels than are read at a time": ((1, 5, 1030), {"bandwidth": 0.05}),
}
LARGE: dict[str, tuple[tuple[int, int, int], dict[str, Any]]] = {
    "a Swin window": ((4, 49, 96), {}),
    "DeiT-tiny": ((3, 196, 192), {}),
    "DeiT-small with a class token, odd": ((2, 197, 384), {"bandwidth": 0.05}),
}


def call(namespace: Any, tokens: torch.Tensor, **options: Any) -> torch.Tensor:
    """Calls the op."""
    entropy: torch.Tensor = namespace.patch_similarity_entropy(tokens, **options)
    return entropy


def make_tokens(*shape: int) -> torch.Tensor:
    """Returns tokens that share a direction per image, so that similarities spread over a range."""
    return noise(*shape) + 0.7 * noise(shape[0], 1, shape[2], seed=1)


def inputs() -> Iterator[Sample]:
    """Yields tokens of every kind of size."""
    yield Sample("typical", (noise(2, 5, 4, seed=1),), {"bandwidth": 0.1})
    for shapes, large in ((SHAPES, False), (LARGE, True)):
        for reason, (shape, options) in shapes.items():
            every_layout = shape[1] < 20
            yield Sample(
                reason, (make_tokens(*shape),), options, large=large, every_layout=every_layout
            )
    cut = torch.cat([make_tokens(4, 1, 10), make_tokens(4, 18, 10)], 1)[:, 1:]
    yield Sample("the class token cut off", (cut,))
    yield Sample("no image", (make_tokens(0, 5, 3),))
    tokens = make_tokens(2, 20, 8)
    for power in (2.0**50, 2.0**-15):
        yield Sample("large and small values", (tokens * power,))
    for value in (math.nan, math.inf, -math.inf):
        for place in ((0, 0, 0), (1, 33, 4), (2, 65, 2)):
            tokens = make_tokens(3, 66, 17)
            tokens[place] = value
            yield Sample(f"{value} at {place}", (tokens,), special=True)
    for alike in (torch.zeros_like(noise(2, 5, 3)), noise(1, 1, 2).expand(1, 6, 2)):
        yield Sample("tokens that are all alike", (alike,), {"bandwidth": 0.2})


def units(sample: Sample) -> tuple[Any, ...]:
    """The greatest entropy, and the noise of a gradient that vanishes, as that of one token."""
    (tokens,) = sample.tensors
    points = sample.options.get("points", 10)
    bandwidth = sample.options.get("bandwidth", 0.01)
    lengths = tokens.double().nan_to_num(1, 1, 1).norm(dim=-1).clamp(1e-8)
    shortest = float(lengths.min()) if lengths.numel() else 1.0
    return 2.0 + points / 10 * 0.02 / bandwidth, 1 / shortest


CASE = OpCase(
    name="patch_similarity_entropy",
    call=call,
    inputs=inputs,
    # A similarity is right to some 1e-7, and the kernels are as narrow as 0.01; relative to the
    # greatest entropy.
    values=(Tolerance(atol=2e-5),),
    gradients=(Tolerance(of_norm=2e-4, atol=1e-3),),
    units=units,
    # Finite differences move the range of all similarities, a constant to the gradient.
    gradcheck=False,
    maps=False,
    bytes_moved=lambda sample: nbytes(sample.tensors[0]),
)
