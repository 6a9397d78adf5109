"""How much the heads of attention differ in what they look at."""

import math
from collections.abc import Iterator
from typing import Any

import torch

from synq_fast.testing.case import Nearest, OpCase, Sample, Tolerance, nbytes, noise

SHAPES = {
    (1, 1, 1, 1): "one head, which is alike itself",
    (2, 1, 3, 7): "one head of several keys",
    (2, 3, 2, 1): "one key, whose range is zero",
    (2, 2, 4, 5): "two heads, fewer keys than any vector",
    (1, 3, 5, 16): "one vector of keys",
    (2, 4, 3, 33): "a vector and one key more, a tile of heads",
    (1, 5, 3, 70): "a tile of heads and one more",
    (1, 17, 2, 40): "more heads than a vector",
    (1, 6, 2, 270): "more keys than a block has",
    (0, 3, 5, 5): "no image",
    (2, 3, 0, 5): "no query",
}
LARGE = {
    (2, 3, 196, 196): "DeiT-tiny",
    (1, 12, 197, 197): "DeiT-base with its class token",
    (30, 4, 49, 49): "Swin windows",
    (1, 64, 3, 64): "the most heads",
    (1, 3, 2, 5003): "many keys",
}


def call(namespace: Any, logits: torch.Tensor) -> torch.Tensor:
    """Calls the op."""
    loss: torch.Tensor = namespace.inter_head_similarity_loss(logits)
    return loss


def make_logits(*shape: int, seed: int = 1) -> torch.Tensor:
    """Returns logits of heads that look at similar places, each row's ends once."""
    shared = noise(shape[0], 1, *shape[2:], seed=seed)
    logits = shared + noise(*shape, seed=seed + 1)
    # Ends that half types tell from their neighbours: their gradient goes to one place alone.
    for end, step in ((logits.argmax(-1, keepdim=True), 0.5), (logits.argmin(-1, True), -0.5)):
        logits.scatter_add_(-1, end, torch.full_like(end, step, dtype=torch.float32))
    return logits


def inputs() -> Iterator[Sample]:
    """Yields logits of every kind of size."""
    yield Sample("typical", (make_logits(2, 3, 4, 6),))
    for shapes, large in ((SHAPES, False), (LARGE, True)):
        for shape, reason in shapes.items():
            logits = make_logits(*shape) if 0 not in shape else noise(*shape)
            every_layout = not large and 0 not in shape
            yield Sample(reason, (logits,), large=large, every_layout=every_layout)
    yield Sample("the class token cut off", (make_logits(2, 3, 6, 11)[:, :, 1:, 2:],))
    swapped = make_logits(2, 4, 3, 9).transpose(1, 2).contiguous().transpose(1, 2)
    yield Sample("queries before heads in memory", (swapped,))
    logits = make_logits(2, 3, 3, 20)
    yield Sample("means far from zero", (logits + 100,))
    for power in (2.0**40, 2.0**-10):
        yield Sample("large and small values", (logits * power,))
    yield Sample("a shared row, and its contrary", (torch.cat([logits[:, :1], -logits], 1),))
    zeros = torch.zeros_like(logits)
    yield Sample("rows without a range", (zeros,))
    tied = zeros.clone()
    tied[..., 3], tied[..., 7], tied[..., 11], tied[..., 12] = 1.0, 1.0, -1.0, -1.0
    tied[:, 1, :, 5] = 0.5
    yield Sample("ends that several keys share", (tied,))
    for value in (math.nan, math.inf, -math.inf):
        for place in ((0, 0, 0, 0), (1, 2, 2, 19), (0, 1, 2, 16)):
            special = logits.clone()
            special[place] = value
            yield Sample(f"{value} at {place}", (special,), special=True)


def oracle(logits: torch.Tensor) -> torch.Tensor:
    """The definition, pair by pair; of equal ends the first gets the gradient."""
    if logits.numel() == 0:
        return logits.sum()
    low, high = (
        logits.gather(-1, end.unsqueeze(-1)) for end in (logits.argmin(-1), logits.argmax(-1))
    )
    a = (logits - low) / (high - low + 1e-8)
    mean = a.mean(-1)
    variance = a.var(-1, correction=0)
    total = logits.new_zeros(())
    count = logits.shape[1]
    for h in range(count):
        covariance = (a[:, h : h + 1] * a).mean(-1) - mean[:, h : h + 1] * mean
        one, spread = mean[:, h : h + 1], variance[:, h : h + 1]
        similarity = (2 * one * mean + 1e-4) / (one**2 + mean**2 + 1e-4)
        similarity = similarity * (2 * covariance + 9e-4) / (spread + variance + 9e-4)
        total = total + (1 - similarity**2).sum()
    return total / (logits.shape[0] * count**2 * logits.shape[2])


def units(sample: Sample) -> tuple[Any, ...]:
    """The rounding of values for a range of 1, and the greatest slope for a logit."""
    (logits,) = sample.tensors
    if logits.numel() == 0:
        return 1.0, 1.0
    x = logits.double().nan_to_num(0, 0, 0)
    width = x.amax(-1) - x.amin(-1) + 1e-8
    rows = x.shape[0] * x.shape[1] * x.shape[2]
    # A value off by a unit in the last place of the largest is off by this in a.
    off = torch.where(width > 1e-6, x.abs().amax(-1) / width, 1.0).max().clamp(1.0)
    return float(off), float(off / width.min()) / rows


def nearest(logits: torch.Tensor) -> Any:
    """The pairs' covariances alone, of rows that are centred already."""
    rows = logits.transpose(1, 2)
    return lambda: (rows @ rows.mT).square().mean()


CASE = OpCase(
    name="inter_head_similarity_loss",
    call=call,
    inputs=inputs,
    oracle=oracle,
    values=(Tolerance(atol=3e-6),),
    gradients=(Tolerance(rtol=5e-5, atol=3e-6),),
    units=units,
    bytes_moved=lambda sample: nbytes(sample.tensors[0]),
    maps=False,
    nearest=Nearest("matmul + square + mean", nearest),
)
