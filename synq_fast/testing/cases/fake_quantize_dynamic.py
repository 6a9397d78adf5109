"""Fake quantization over the tensor's own range."""

from collections.abc import Iterator
from typing import Any

import torch

from synq_fast.testing.case import EXACT, Nearest, OpCase, Sample, constant, nbytes, noise
from synq_fast.testing.cases._quantization import (
    grid_of,
    over_channels,
    parts,
    quantized,
    special_values,
    straight_through,
)

# Each is a way of its own to read the tensor, on some backend.
WAYS = {
    ((3, 50_001), 0): "rows longer than a core keeps",
    ((700, 300), 0): "many short rows",
    ((64, 600), 1): "columns side by side",
    ((9000, 24), 1): "columns too long to keep",
    ((300, 12, 3, 3), 1): "short pieces",
    ((4, 12, 40, 40), 1): "long pieces",
    ((5, 12, 300, 70), 1): "pieces of channels longer than a core keeps",
    ((40_000,), 0): "an element each",
}
GROUPS = {
    ((6, 35), 0, 3): "rows",
    ((5, 12, 7), 1, 4): "pieces",
    ((5, 12, 7), -2, 1): "all channels in one group",
    ((40, 12), 1, 3): "columns",
    ((2, 12, 5, 5), 1, 12): "as many groups as channels",
    ((2, 6, 9000), 1, 2): "long pieces",
}


def call(namespace: Any, x: torch.Tensor, *, bits: int = 4, **options: Any) -> Any:
    """Calls the op."""
    return namespace.fake_quantize_dynamic(x, bits, **options)


def inputs() -> Iterator[Sample]:
    """Yields tensors whose range is found along every axis."""
    yield Sample("typical", (noise(4, 6, seed=1),), {"axis": 1, "symmetric": True})
    for part in parts():
        options = {
            "bits": part.choose(4, 8, 3, 16, 2),
            "axis": part.axis,
            "symmetric": part.choose(False, True),
            "ste": part.choose("identity", "clip", "clip"),
        }
        # An empty tensor has no range to be clipped by.
        yield Sample(part.reason, (part.x,), options, **part.flags, special=part.x.numel() == 0)
    for (shape, axis), reason in WAYS.items():
        for symmetric in (False, True):
            options = {"axis": axis, "symmetric": symmetric}
            yield Sample(reason, (noise(*shape),), options, large=True)
    for index, ((shape, axis, groups), reason) in enumerate(GROUPS.items()):
        options = {"axis": axis, "groups": groups, "symmetric": bool(index % 2)}
        yield Sample(f"groups: {reason}", (noise(*shape),), options, every_layout=len(shape) == 4)
    for value in (float("nan"), float("inf"), -float("inf")):
        for size_of, along in (((5, 40), None), ((5, 40), 0), ((40, 5), 1), ((20000,), None),
                            ((1500, 20), 1), ((3, 11000), 0)):  # fmt: skip
            x = noise(*size_of)
            x[-1] = value
            yield Sample(f"{value} in a row of {size_of}", (x,), {"axis": along}, special=True)
    for size in (1, 3, 64, 300, 40000):
        for place in sorted({0, size // 2, size - 1}):
            x = noise(3, size)
            x[1, place] = float("nan")
            yield Sample("NaN spoils its channel alone", (x,), {"axis": 0}, special=True)
    for x in (special_values()[4:], constant(0.7).expand(5), constant(0.0).expand(4),
              constant(-0.0).expand(4), noise(20001).clamp(-1, 1) * 3e38):  # fmt: skip
        yield Sample("special values, none at all, wider than the largest float", (x,),
                     special=True)  # fmt: skip


def oracle(
    x: torch.Tensor,
    *,
    bits: int = 4,
    axis: int | None = None,
    groups: int | None = None,
    symmetric: bool = False,
    ste: str = "identity",
) -> tuple[torch.Tensor, ...]:
    """The definition, in float32; no element of the tensor is clipped by its own range."""
    flat = x.detach().float().reshape(1, -1)
    if axis is not None:
        rows = x.shape[axis] if groups is None else groups
        flat = x.detach().float().movedim(axis, 0).reshape(rows, -1)
    low, high = flat.amin(1), flat.amax(1)
    if symmetric:
        high = torch.maximum(-low, high).clamp(min=5e-9)
        low = -(high * (1 + 2.0**-20))
    scale, zero = (over_channels(v, x, axis) for v in grid_of(low, high, bits))
    y, _, inside = quantized(x, scale, zero, bits)
    shape = () if axis is None else low.shape
    y = straight_through(x, y, inside if ste == "clip" else True)
    return y, low.reshape(shape), high.reshape(shape)


def nearest(x: torch.Tensor) -> Any:
    """ATen's op, which also averages the range."""
    on = torch.ones(1, dtype=torch.int64, device=x.device)
    low, high, scale = (torch.ones(1, dtype=torch.float32, device=x.device) for _ in range(3))
    zero = torch.zeros(1, dtype=torch.int32, device=x.device)
    fused = torch.fused_moving_avg_obs_fake_quant
    return lambda: fused(x, on, on, low, high, scale, zero, 1.0, 0, 15, 0, False, False)


CASE = OpCase(
    name="fake_quantize_dynamic",
    call=call,
    inputs=inputs,
    oracle=oracle,
    values=(EXACT, EXACT, EXACT),
    gradients=(EXACT,),
    bytes_moved=lambda sample: 2 * nbytes(sample.tensors[0]),
    nearest=Nearest(
        "fused_moving_avg_obs_fake_quant", nearest, lambda n, x: n.fake_quantize_dynamic(x, 4)
    ),
    keeps_layout=True,
    same_type=True,
    second_derivative=True,
    variants=({"axis": None, "symmetric": False, "ste": "clip"}, {"axis": 0, "groups": 2}),
)
