"""Fake quantization over a given range."""

from collections.abc import Iterator
from typing import Any

import torch

from synq_fast.testing.case import EXACT, Nearest, OpCase, Sample, constant, nbytes, noise
from synq_fast.testing.cases._quantization import (
    EVERY_WIDTH,
    TIED_RANGES,
    grid_of,
    over_channels,
    quantized,
    ranged,
    specially_ranged,
    straight_through,
    ties,
)


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
    y: torch.Tensor = namespace.fake_quantize(x, low, high, bits, **options)
    return y


def ranges() -> Iterator[Sample]:
    """Yields tensors with given ranges, for this op and for `quantize_codes`."""
    clip = {"bits": 3, "ste": "clip"}
    yield Sample("typical", (noise(4, 6, seed=1), constant(-1.0), constant(1.5)), clip)
    yield from ranged((3, 8, 2, 9, 16))
    for shape, axis, groups in (((6, 35), 0, 3), ((5, 12, 7), 1, 4), ((5, 12, 7), -2, 1)):
        x, steps = noise(*shape), torch.arange(groups, dtype=torch.float32, device="cpu")
        options = {"bits": 4, "ste": "clip", "axis": axis, "groups": groups}
        bounds = -0.5 - steps, 0.4 + steps
        yield Sample(f"{groups} groups of channels", (x, *bounds), options, every_layout=True)
    for index, bits in enumerate(EVERY_WIDTH):
        low, high = TIED_RANGES[index % len(TIED_RANGES)]
        tensors = ties(bits, low, high), constant(low), constant(high)
        options = {"bits": bits, "ste": ("clip", "identity")[index % 2]}
        yield Sample(f"ties of {bits} bits in {low} to {high}", tensors, options)
    tensors = ties(16, -1.3, 2.1, every=True), constant(-1.3), constant(2.1)
    yield Sample("every tie of 16 bits", tensors, {"bits": 16, "ste": "clip"}, large=True)
    yield from specially_ranged((2, 4, 8, 16))


def oracle(
    x: torch.Tensor,
    low: torch.Tensor,
    high: torch.Tensor,
    *,
    bits: int = 4,
    axis: int | None = None,
    groups: int | None = None,
    ste: str = "identity",
) -> torch.Tensor:
    """The definition, in float32, and the straight-through gradient."""
    scale, zero = (over_channels(v, x, axis) for v in grid_of(low, high, bits))
    y, _, inside = quantized(x, scale, zero, bits)
    return straight_through(x, y, inside if ste == "clip" else True)


def nearest(x: torch.Tensor, *_: torch.Tensor) -> Any:
    """ATen's op, whose scale and zero point are numbers."""
    return lambda: torch.fake_quantize_per_tensor_affine(x, 0.4, 8, 0, 15)


CASE = OpCase(
    name="fake_quantize",
    call=call,
    inputs=ranges,
    oracle=oracle,
    values=(EXACT,),
    gradients=(EXACT,),
    bytes_moved=lambda sample: 2 * nbytes(sample.tensors[0]),
    nearest=Nearest(
        "fake_quantize_per_tensor_affine", nearest, lambda n, *x: n.fake_quantize(*x, 4)
    ),
    keeps_layout=True,
    same_type=True,
    elementwise=True,
    second_derivative=True,
    variants=({"ste": "identity"},),
)
