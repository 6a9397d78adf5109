"""ReLU and fake quantization in one pass."""

from collections.abc import Iterator
from typing import Any

import torch

from synq_fast.testing.case import EXACT, Nearest, OpCase, Sample, constant, nbytes, noise
from synq_fast.testing.cases import fake_quantize
from synq_fast.testing.cases._quantization import (
    channel_ranges,
    parts,
    special_values,
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
    y: torch.Tensor = namespace.relu_fake_quantize(x, low, high, bits, **options)
    return y


def inputs() -> Iterator[Sample]:
    """Yields activations with and without an upper bound."""
    clip = {"bits": 3, "ste": "clip", "upper": 1.2}
    yield Sample("typical", (noise(4, 6, seed=1), constant(-1.0), constant(1.5)), clip)
    for part in parts():
        options = {
            "bits": part.choose(4, 8),
            "axis": part.axis,
            "ste": part.choose("identity", "clip", "clip"),
            "upper": part.choose(None, None, 1.5),
        }
        tensors = part.x, *channel_ranges(part.x, part.axis)
        yield Sample(part.reason, tensors, options, **part.flags)
    for bits in (2, 4, 8, 16):
        for low, high in ((0.0, 3.7), (-1.3, 2.1)):
            tensors = ties(bits, low, high), constant(low), constant(high)
            yield Sample(f"ties of {bits} bits", tensors, {"bits": bits, "upper": 3.0})
    edges = torch.tensor([0.0, -0.0, 1.5, 1e-40, -1e-40], dtype=torch.float32, device="cpu")
    x = torch.cat([special_values(), edges])
    for low, high in ((0.0, 1.0), (-1.0, 2.0), (0.0, 0.0), (float("nan"), 1.0), (0.0, 1e30)):
        for ste in ("identity", "clip"):
            for upper in (None, 1.5):
                options = {"ste": ste, "upper": upper}
                tensors = x, constant(low), constant(high)
                yield Sample(f"special values in {low} to {high}", tensors, options, special=True)


def activated(x: torch.Tensor, upper: float | None) -> torch.Tensor:
    """Returns `relu(x)` or its bounded form, with zero gradient at both bounds."""
    y = torch.nn.functional.relu(x)
    return y if upper is None else torch.where(y >= upper, torch.full_like(y, upper), y)


def oracle(
    x: torch.Tensor,
    low: torch.Tensor,
    high: torch.Tensor,
    *,
    upper: float | None = None,
    **options: Any,
) -> torch.Tensor:
    """The two ops in a row."""
    return fake_quantize.oracle(activated(x, upper), low, high, **options)


def nearest(x: torch.Tensor, *_: torch.Tensor) -> Any:
    """ATen's ops in a row."""
    return lambda: torch.fake_quantize_per_tensor_affine(x.relu(), 0.4, 8, 0, 15)


CASE = OpCase(
    name="relu_fake_quantize",
    call=call,
    inputs=inputs,
    oracle=oracle,
    values=(EXACT,),
    gradients=(EXACT,),
    bytes_moved=lambda sample: 2 * nbytes(sample.tensors[0]),
    nearest=Nearest(
        "relu + fake_quantize_per_tensor_affine",
        nearest,
        lambda n, *x: n.relu_fake_quantize(*x, 4),
    ),
    keeps_layout=True,
    same_type=True,
    elementwise=True,
    second_derivative=True,
    variants=({"upper": None, "ste": "identity"},),
)
