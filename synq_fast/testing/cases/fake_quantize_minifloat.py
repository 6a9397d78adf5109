"""Fake quantization to small floats."""

from collections.abc import Iterator
from typing import Any

import torch

from synq_fast.testing.case import EXACT, Nearest, OpCase, Sample, constant, nbytes, noise
from synq_fast.testing.cases._quantization import (
    TIED_RANGES,
    grid_over,
    over_channels,
    ranged,
    specially_ranged,
    straight_through,
)

WIDTHS = range(3, 9)
# From the largest level to the one that would follow it.
TOP_STEP = 64


def call(
    namespace: Any,
    x: torch.Tensor,
    low: torch.Tensor,
    high: torch.Tensor,
    *,
    bits: int = 4,
    **options: Any,
) -> torch.Tensor:
    """Calls the op."""
    y: torch.Tensor = namespace.fake_quantize_minifloat(x, low, high, bits, **options)
    return y


def levels_of(bits: int) -> torch.Tensor:
    """Returns the level of each code in float64, by the words of the definition."""
    count = 2 ** (bits - 3)
    pairs = [divmod(code, count) for code in range(2**bits)]
    levels = [f if e == 0 else (count + f) * 2 ** (e - 1) for e, f in pairs]
    return torch.tensor(levels, dtype=torch.float64, device="cpu")


def nearest_levels(steps: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the nearest of the listed levels, by the middles between them, and what passes.

    Of a tie, the level with the even code; without a mantissa, the upper one but for zero. Steps
    are float64.
    """
    levels = levels_of(bits).to(steps.device)
    middles = (levels + torch.cat([levels[1:], levels[-1:] + TOP_STEP])) / 2
    below = torch.bucketize(steps.contiguous(), middles)
    upper = torch.bucketize(steps.contiguous(), middles, right=True)
    rounds_up = (below % 2 == 1) if bits > 3 else (below > 0)
    code = torch.where((upper > below) & rounds_up, upper, below)
    level = torch.where(steps.isnan(), steps, levels[code.clamp(max=2**bits - 1)])
    return level, ((steps >= -0.5) & (code < 2**bits)) | steps.isnan()


def places(bits: int, low: float, high: float) -> torch.Tensor:
    """Returns values at and next to levels, the middles between them, and beyond both ends."""
    levels = levels_of(bits)
    beyond = torch.tensor([-3.0, -1.5, -1.0, -0.5, -0.25], dtype=torch.float64, device="cpu")
    above = levels[-1] + TOP_STEP * torch.tensor([0.25, 0.5, 0.75, 1, 1.5], device="cpu")
    steps = torch.cat([beyond, levels, (levels[1:] + levels[:-1]) / 2, above]).float()
    scale, zero = grid_over(constant(low), constant(high), int(levels[-1]))
    exact = (steps + zero) / scale
    ends = constant(float("inf")), constant(float("-inf"))
    return torch.cat([exact, *(torch.nextafter(exact, end) for end in ends)])


def inputs() -> Iterator[Sample]:
    """Yields tensors of every kind of size, boundaries of levels, and what is no number."""
    typical = noise(4, 6, seed=1), constant(-1.0), constant(1.5)
    yield Sample("typical", typical, {"bits": 4, "ste": "clip"})
    yield from ranged((4, 3, 8, 5))
    for bits in WIDTHS:
        # The first has a whole step of one: its middles are exact ties.
        for index, ends in enumerate(((0.0, float(levels_of(bits)[-1])), *TIED_RANGES)):
            tensors = places(bits, *ends), *(constant(end) for end in ends)
            options = {"bits": bits, "ste": ("clip", "identity")[index % 2]}
            yield Sample(f"places of {bits} bits in {ends[0]} to {ends[1]}", tensors, options)
    yield from specially_ranged((3, 4, 5, 8))


def oracle(
    x: torch.Tensor,
    low: torch.Tensor,
    high: torch.Tensor,
    *,
    bits: int = 4,
    axis: int | None = None,
    ste: str = "identity",
) -> torch.Tensor:
    """The nearest of the listed levels, in float64; steps are those of float32."""
    pair = grid_over(low.float(), high.float(), int(levels_of(bits)[-1]))
    scale, zero = (over_channels(v, x, axis) for v in pair)
    level, passes = nearest_levels((scale * x.detach().float() - zero).double(), bits)
    y = (level.float() + zero) / scale
    return straight_through(x, y, passes if ste == "clip" else True)


def nearest(x: torch.Tensor, *_: torch.Tensor) -> Any:
    """ATen's op, whose steps are equal and whose scale and zero point are numbers."""
    return lambda: torch.fake_quantize_per_tensor_affine(x, 0.4, 8, 0, 15)


CASE = OpCase(
    name="fake_quantize_minifloat",
    call=call,
    inputs=inputs,
    oracle=oracle,
    values=(EXACT,),
    gradients=(EXACT,),
    bytes_moved=lambda sample: 2 * nbytes(sample.tensors[0]),
    nearest=Nearest(
        "fake_quantize_per_tensor_affine", nearest, lambda n, *x: n.fake_quantize_minifloat(*x, 4)
    ),
    keeps_layout=True,
    same_type=True,
    elementwise=True,
    second_derivative=True,
    variants=({"ste": "identity"},),
)
