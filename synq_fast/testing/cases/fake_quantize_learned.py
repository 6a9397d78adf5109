"""Fake quantization over a learned grid."""

from collections.abc import Callable, Iterator
from typing import Any

import torch

from synq_fast.testing.case import (
    EXACT,
    Nearest,
    OpCase,
    Sample,
    Tolerance,
    constant,
    nbytes,
    noise,
    uniform,
)
from synq_fast.testing.cases._draws import drawn
from synq_fast.testing.cases._quantization import (
    channel_ranges,
    over_channels,
    parts,
    quantized,
    special_values,
    straight_through,
    ties,
)

# Per element of the sum, a few roundings of a term of at most about ten.
SUM = Tolerance(atol=3e-7, rtol=1e-5)
# Each half of the key, both, and what is negative as int64.
SEEDS = (0, 1, 2**32, 0x243F6A8885A308D3, 2**64 - 1, -(2**63))
# The start, every place within a counter, beyond 32 bits, and where the counter's lower half ends.
OFFSETS = (0, 1024, 3, 2**31 - 2, 2**34 - 7, 2**61 + 8)


def call(
    namespace: Any,
    x: torch.Tensor,
    scale: torch.Tensor,
    zero_point: torch.Tensor,
    *,
    bits: int = 4,
    **options: Any,
) -> torch.Tensor:
    """Calls the op."""
    y: torch.Tensor = namespace.fake_quantize_learned(x, scale, zero_point, bits, **options)
    return y


def learned_pair(x: torch.Tensor, axis: int | None, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns a scale and a fractional zero point that clip some of the data."""
    low, high = channel_ranges(x, axis)
    scale = (2**bits - 1) / (high - low)
    return scale, scale * low + 2 ** (bits - 1) + 0.3


def inputs() -> Iterator[Sample]:
    """Yields tensors with a pair for the tensor or for each channel."""
    typical = noise(4, 6, seed=1), uniform(1, low=1.0, high=4.0), noise(1)
    yield Sample("typical", typical, {"bits": 3, "gradient_scale": 0.5})
    for part in parts():
        bits = part.choose(4, 4, 8, 2)
        options = {"bits": bits, "axis": part.axis, "gradient_scale": part.choose(1.0, 0.5)}
        pair = learned_pair(part.x, part.axis, bits)
        yield Sample(part.reason, (part.x, *pair), options, **part.flags)
        drops = {"keep": part.choose(0.5, 0.875, 0.1), "seed": part.choose(*SEEDS)}
        drops["offset"] = part.choose(*OFFSETS)
        yield Sample(f"{part.reason}, dropped", (part.x, *pair), options | drops, **part.flags)
    for keep in (0.0, 1e-9, 1 - 2**-24, 1 - 2**-30):
        pair = constant(2.0), constant(0.3)
        options = {"keep": keep, "seed": constant(5).long()}
        yield Sample(f"keep {keep}, a seed in a tensor", (noise(41, 5), *pair), options)
    for bits in (2, 4, 8, 16):
        scale = constant((2**bits - 1) / 3.4)
        for zero in (-2.5, -0.5, -0.3, 0.0, 0.5, 1.5, 2.5, 279620.5):
            tensors = ties(bits, -1.3, 2.1), scale, constant(zero)
            yield Sample(f"ties, zero point {zero}", tensors, {"bits": bits})
    for numbers in ((7.5, 0.0), (2.0, -0.3), (0.5, 2.5), (1.0, 279620.5), (1e-3, 3.2),
                 (float("nan"), 0.0), (1.0, float("nan"))):  # fmt: skip
        special = special_values(), *(constant(value) for value in numbers)
        reason = f"scale {numbers[0]}, zero point {numbers[1]}"
        yield Sample(reason, special, special=True)
        options = {"keep": 0.5, "seed": 3}
        yield Sample(f"{reason}, dropped", special, options, special=True)
    tensors = uniform(2_000_000, high=0.1), constant(7.0), constant(0.0)
    yield Sample("a long sum", tensors, large=True)


def oracle(
    x: torch.Tensor,
    scale: torch.Tensor,
    zero_point: torch.Tensor,
    *,
    bits: int = 4,
    axis: int | None = None,
    gradient_scale: float = 1.0,
    keep: float = 1.0,
    seed: Any = None,
    offset: int = 0,
    rounding: Callable[..., tuple[torch.Tensor, ...]] = quantized,
) -> torch.Tensor:
    """The definition: float32 decides the codes, float64 sums the gradients.

    Codes are those of `rounding`.
    """
    s, z = (over_channels(v, x, axis) for v in (scale, zero_point))
    y32, codes, inside = rounding(x, s.detach(), z.detach().round(), bits)
    # Rounding passes gradients through to scale and zero point; a clipped code is a constant.
    whole = z + (z.round() - z).detach()
    within = ((x - y32.double()) / s).detach() * (s - s.detach()) * gradient_scale
    clipped = (codes.double() + whole) / s
    clipped = clipped * gradient_scale + clipped.detach() * (1 - gradient_scale)
    parameters = torch.where(inside, within, clipped)
    y = straight_through(x, y32, inside)
    y = y + parameters - parameters.detach()
    return y if seed is None else torch.where(drawn(x, seed, keep, offset), y, x)


def units(sample: Sample) -> tuple[Any, ...]:
    """What a code's rounding errors do to the sums."""
    x, scale, zero_point = sample.tensors
    count = max(x.numel() / max(scale.numel(), 1), 1)
    unit = (8 + zero_point.abs().double()) / scale.double().square() * count
    return 1.0, 1.0, unit, unit


def nearest(x: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor) -> Any:
    """ATen's op, which divides by its scale."""
    fused = torch._fake_quantize_learnable_per_tensor_affine
    return lambda: fused(x, scale, zero_point, 0, 15, 1.0)


CASE = OpCase(
    name="fake_quantize_learned",
    by_place=True,
    call=call,
    inputs=inputs,
    oracle=oracle,
    values=(EXACT,),
    gradients=(EXACT, SUM, SUM),
    units=units,
    bytes_moved=lambda sample: 2 * nbytes(sample.tensors[0]),
    nearest=Nearest(
        "_fake_quantize_learnable_per_tensor_affine",
        nearest,
        lambda n, *x: n.fake_quantize_learned(*x, 4),
    ),
    variants=({"keep": 0.5, "seed": 11},),
    keeps_layout=True,
    same_type=True,
    elementwise=True,
)
