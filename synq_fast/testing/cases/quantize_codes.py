"""Integer codes of a given range."""

from collections.abc import Iterator
from typing import Any

import torch

from synq_fast.testing.case import EXACT, Nearest, OpCase, Sample, nbytes
from synq_fast.testing.cases import fake_quantize
from synq_fast.testing.cases._quantization import grid_of, over_channels, quantized


def call(
    namespace: Any,
    x: torch.Tensor,
    low: torch.Tensor,
    high: torch.Tensor,
    *,
    bits: int = 4,
    **options: Any,
) -> Any:
    """Calls the op."""
    return namespace.quantize_codes(x, low, high, bits, **options)


def inputs() -> Iterator[Sample]:
    """Yields those of `fake_quantize`: whose values are these codes'."""
    for sample in fake_quantize.ranges():
        options = {key: value for key, value in sample.options.items() if key != "ste"}
        yield sample._replace(options=options)


def oracle(
    x: torch.Tensor,
    low: torch.Tensor,
    high: torch.Tensor,
    *,
    bits: int = 4,
    axis: int | None = None,
    groups: int | None = None,
) -> tuple[torch.Tensor, ...]:
    """The definition, in float32."""
    grid = grid_of(low, high, bits)
    scale, zero = (over_channels(v, x, axis) for v in grid)
    shape = () if axis is None else low.shape
    return quantized(x, scale, zero, bits)[1], *(v.reshape(shape) for v in grid)


def nearest(x: torch.Tensor, *_: torch.Tensor) -> Any:
    """ATen's op, whose scale and zero point are numbers."""
    return lambda: torch.quantize_per_tensor(x, 0.4, 8, torch.qint8)


CASE = OpCase(
    name="quantize_codes",
    call=call,
    inputs=inputs,
    oracle=oracle,
    values=(EXACT, EXACT, EXACT),
    bytes_moved=lambda sample: nbytes(sample.tensors[0]) * 5 // 4,
    nearest=Nearest("quantize_per_tensor", nearest),
    keeps_layout=True,
    elementwise=True,
    variants=({"bits": 12},),
)
