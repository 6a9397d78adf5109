"""The soft rounding of weights, and its regulariser."""

import math
from collections.abc import Iterator
from typing import Any

import torch

from synq_fast.testing.case import OpCase, Sample, Tolerance, constant, nbytes, noise, uniform
from synq_fast.testing.cases._quantization import over_channels, parts

# Where the share of a step reaches its bounds.
EDGE = math.log(11.0)


def call(
    namespace: Any,
    v: torch.Tensor,
    scale: torch.Tensor,
    zero_point: torch.Tensor,
    exponent: torch.Tensor,
    base: torch.Tensor,
    *,
    bits: int = 4,
    axis: int | None = None,
) -> Any:
    """Calls the op; what is trained comes first."""
    return namespace.soft_round(v, base, scale, zero_point, bits, exponent, axis=axis)


def decided(v: torch.Tensor) -> torch.Tensor:
    """Moves values to where float32 and float64 agree on which side of an edge they lie."""
    for edge in (EDGE, -EDGE):
        v = torch.where((v - edge).abs() < 1e-3, v * 1.01, v)
    return v


def codes_like(v: torch.Tensor, bits: int, seed: int = 0) -> torch.Tensor:
    """Returns int8 codes of every level, and of those one beyond each end where there are any."""
    beyond = 1 if bits < 8 else 0
    low, high = -(2 ** (bits - 1)) - beyond, 2 ** (bits - 1) + beyond
    codes = uniform(*v.shape, seed=seed, low=low, high=high).floor()
    return torch.empty_like(v, dtype=torch.int8).copy_(codes)


def inputs() -> Iterator[Sample]:
    """Yields variables on both sides of the edges, with parameters for the tensor or a channel."""
    v = decided(noise(4, 6, seed=1))
    grid = uniform(6, low=1.0, high=4.0), noise(6, scale=2.0)
    yield Sample("typical", (v, *grid, constant(3.0), codes_like(v, 3)), {"bits": 3, "axis": 1})
    for part in parts():
        bits, power = part.choose(4, 2, 8, 3), constant(part.choose(20.0, 2.0, 8.5))
        v = decided(part.x)
        count = 1 if part.axis is None else v.shape[part.axis]
        scale, zero = uniform(count, low=0.5, high=9.0), noise(count, seed=3, scale=20.0)
        tensors = v, scale, zero, power, codes_like(v, bits)
        yield Sample(part.reason, tensors, {"bits": bits, "axis": part.axis}, **part.flags)
    v = decided(noise(5, 8, 3, 3, scale=3.0)).to(memory_format=torch.channels_last)
    grid = uniform(5, low=1.0, high=3.0), noise(5)
    codes = codes_like(v, 4).contiguous()
    yield Sample("codes laid out otherwise", (v, *grid, constant(4.0), codes), {"axis": 0})
    for exponent in (1.0, 1.5, 2.0, 20.0, 100.0):
        v = torch.linspace(-3, 3, 1000, dtype=torch.float32, device="cpu")
        tensors = v, constant(7.5), constant(-0.5), constant(exponent), codes_like(v, 4)
        yield Sample(f"exponent {exponent}", tensors)
    for offset in (-2.5, -0.3, 0.5, 1.5, 1e4):
        v = decided(noise(50))
        tensors = v, constant(3.0), constant(offset), constant(2.0), codes_like(v, 4)
        yield Sample(f"zero point {offset}", tensors)
    extremes = (0.0, 20.0, 89.0, 200.0, 3e38, 1e-30, 1e-40, math.inf)
    values = [sign * value for value in extremes for sign in (1, -1)]
    for more in ([], [math.nan]):
        v = torch.tensor(values + more, dtype=torch.float32, device="cpu").repeat(3)
        tensors = v, constant(2.0), constant(1.0), constant(3.0), codes_like(v, 4)
        yield Sample(f"extremes {more}", tensors, special=bool(more))
    for numbers in ((math.nan, 0.0, 3.0), (1.0, math.nan, 3.0), (1.0, 0.0, math.nan)):
        v = decided(noise(20))
        scale, zero, power = (constant(number) for number in numbers)
        reason = f"scale, zero point, exponent {numbers}"
        yield Sample(reason, (v, scale, zero, power, codes_like(v, 4)), special=True)


def oracle(
    v: torch.Tensor,
    scale: torch.Tensor,
    zero_point: torch.Tensor,
    exponent: torch.Tensor,
    base: torch.Tensor,
    *,
    bits: int = 4,
    axis: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The definition, from a hyperbolic tangent."""
    s = over_channels(scale, v, axis)
    z = over_channels(zero_point.detach(), v, axis).round()
    exponent = exponent.detach()
    # 2 h - 1 = 1.2 tanh(v / 2), cut off at 1.
    signed = (1.2 * torch.tanh(v / 2)).clamp(-1, 1)
    codes = (base + (signed + 1) / 2).clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    away = torch.where(signed < 0, -signed, signed)
    # The slope in the middle is 0, whatever the power.
    safe = torch.where(away == 0, torch.ones_like(away), away)
    powers = torch.where(away == 0, torch.zeros_like(away), safe.pow(exponent))
    return (codes + z) / s, (1 - powers).sum()


def units(sample: Sample) -> tuple[Any, ...]:
    """A step for weights; what the share's rounding errors do to powers and to sums."""
    v, scale, zero_point, exponent, _ = sample.tensors
    if v.numel() == 0:
        return 1.0, 1.0, 1.0, 1.0
    scale, zero_point, power = (x.double().nan_to_num(1.0) for x in (scale, zero_point, exponent))
    step = 1 / scale.min()
    codes = 2.0 ** (sample.options.get("bits", 4) - 1) + zero_point.abs().max()
    count = v.numel() / scale.numel()
    return step * codes, power * v.numel(), step + power * power, step * step * codes * count


CASE = OpCase(
    name="soft_round",
    call=call,
    inputs=inputs,
    oracle=oracle,
    values=(Tolerance(atol=2e-7), Tolerance(atol=4e-7)),
    gradients=(Tolerance(atol=1e-6, rtol=1e-6), Tolerance(atol=5e-7)),
    units=units,
    bytes_moved=lambda sample: 2 * nbytes(sample.tensors[0]) + nbytes(sample.tensors[4]),
    cast=(),
    laid_out=(0, 4),
    keeps_layout=True,
    same_type=True,
    elementwise=True,
)
