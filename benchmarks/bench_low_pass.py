"""Low-pass filters of images: ours beside transforms, products, the published chain."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from synq_fast import ops, reference

from . import columns, harness
from .baselines.published_losses import low_pass_full, low_pass_mask

# What networks read, with the cutoffs of the recipes first; then other sides, odd ones too.
GAUSSIAN = {
    (16, 3, 224, 224): 80.0,
    (256, 3, 32, 32): 8.0,
    (64, 3, 96, 96): 30.0,
    (16, 3, 160, 160): 50.0,
    (16, 3, 256, 256): 80.0,
    (8, 3, 299, 299): 80.0,
    (64, 3, 33, 47): 10.0,
}
OTHERS = {(16, 3, 224, 224): 80.0, (256, 3, 32, 32): 8.0}


def _cached_mask(shape: tuple[int, ...], cutoff: float, kind: str) -> Callable[[Tensor], Tensor]:
    height, width = shape[-2:]
    impulse = torch.zeros(height, width, dtype=torch.float64)
    impulse[0, 0] = 1
    response = torch.fft.rfft2(reference.low_pass(impulse, cutoff, kind=kind)).real
    mask = response.float().to(harness.DEVICE)

    def call(x: Tensor) -> Tensor:
        return torch.fft.irfft2(torch.fft.rfft2(x).mul_(mask), s=(height, width))

    return call


def _circulant(n: int, cutoff: float) -> Tensor:
    frequency = torch.fft.fftfreq(n, 1 / n, dtype=torch.float64)
    taps = torch.fft.ifft(torch.exp(-(frequency**2) / (2 * cutoff**2))).real
    index = torch.arange(n)
    return taps[(index[:, None] - index) % n].float().to(harness.DEVICE)


def _products(shape: tuple[int, ...], cutoff: float) -> Callable[[Tensor], Tensor]:
    left, right = (_circulant(n, cutoff) for n in shape[-2:])

    def call(x: Tensor) -> Tensor:
        return torch.matmul(left, torch.matmul(x, right))

    return call


def _published(cutoff: float) -> Callable[[Tensor], Tensor]:
    def call(x: Tensor) -> Tensor:
        return low_pass_full(x, low_pass_mask(*x.shape[-2:], cutoff, x))

    return call


GPU_ONLY = harness.sizes(cpu=[], cuda=[("gaussian", (256, 3, 224, 224), 80.0)])
CASES = [*GPU_ONLY, *(("gaussian", shape, cutoff) for shape, cutoff in GAUSSIAN.items())] + [
    (kind, shape, cutoff) for kind in ("butterworth", "ideal") for shape, cutoff in OTHERS.items()
]


@pytest.mark.parametrize("dtype", harness.dtypes(), ids=str)
@pytest.mark.parametrize("layout", harness.layouts())
@pytest.mark.parametrize(
    ("kind", "shape", "cutoff"),
    CASES,
    ids=lambda v: "x".join(map(str, v)) if isinstance(v, tuple) else str(v),
)
def bench_low_pass(
    kind: str,
    shape: tuple[int, ...],
    cutoff: float,
    layout: str,
    dtype: torch.dtype,
    compare: Callable[..., harness.Comparison],
) -> None:
    """Ours against the reference, a cached mask, plain products, the published chain and a copy."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    x = harness.laid(x, layout, dtype)
    ours, omitted = columns.our_columns(ops.low_pass, x, cutoff, kind=kind)
    rows: dict[str, Callable[[], object]] = dict(ours)
    rows["reference, eager"] = lambda: reference.low_pass(x, cutoff, kind=kind)
    compiled, reason = columns.compiled_column(reference.low_pass, x, cutoff, kind=kind)
    if compiled is None:
        omitted["reference, torch.compile"] = reason
    else:
        rows["reference, torch.compile"] = compiled
    others = {"rfft2, cached mask, irfft2": _cached_mask(shape, cutoff, kind)}
    if kind == "gaussian":
        others["two circulant products, matmul"] = _products(shape, cutoff)
        others["published chain"] = _published(cutoff)
    for name, function in others.items():
        # Transforms know no bfloat16.
        rows[name] = lambda function=function: function(x.float()).to(dtype)

    expected = reference.low_pass(x.double(), cutoff, kind=kind)
    rounding = 0.0 if dtype == torch.float32 else 2e-2
    for name, call in rows.items():
        error = (call() - expected).abs().max().item()
        assert error <= 5e-6 + rounding or not name.startswith("ours"), f"{name} is off by {error}"
        assert error <= 1e-4 + rounding, f"{name} is off by {error}"
    rows["clone"] = x.clone
    compare(
        f"{kind} {'x'.join(map(str, shape))} cutoff {cutoff:g}{harness.kind(layout, dtype)}",
        rows,
        ours=next(iter(ours), None),
        copy="clone",
        bytes_moved=columns.bytes_of("low_pass", x),
        omitted=omitted,
        rounds=15,
        calls=1 if math.prod(shape) > 1_000_000 else 3,
    )
