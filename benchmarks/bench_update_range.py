"""A batch's extrema folded into a running range: large tensors, and what a call costs."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from synq_fast import ops, reference

from . import columns, harness

# A call's overhead; a small layer; a batch of activations; one above glibc's 32 MiB threshold.
BATCHES = [(64, 64), (65536,), (16, 64, 56, 56), (64, 64, 56, 56)]
SHAPES = harness.sizes(cpu=BATCHES, cuda=[*BATCHES, (256, 64, 56, 56)])
CALLS = {(64, 64): 1000, (65536,): 100}


def _state(shape: tuple[int, ...] = ()) -> tuple[Tensor, Tensor, Tensor]:
    low, high = (torch.zeros(shape, device=harness.DEVICE) for _ in range(2))
    return low, high, torch.zeros(shape, dtype=torch.int64, device=harness.DEVICE)


def _aten(x: Tensor) -> Callable[[], object]:
    """The moving average of ATen's fused observer, with its fake quantization off."""
    low, high, _ = _state((1,))
    on, off = (torch.full((1,), flag, device=harness.DEVICE) for flag in (1, 0))
    scale = torch.ones(1, device=harness.DEVICE)
    zero_point = torch.zeros(1, dtype=torch.int32, device=harness.DEVICE)
    return lambda: torch.fused_moving_avg_obs_fake_quant(
        x, on, off, low, high, scale, zero_point, 0.1, 0, 15, -1, False, False
    )


@pytest.mark.parametrize("dtype", harness.dtypes(), ids=str)
@pytest.mark.parametrize("layout", harness.layouts())
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s)))
def bench_update_range(
    shape: tuple[int, ...],
    layout: str,
    dtype: torch.dtype,
    compare: Callable[..., harness.Comparison],
) -> None:
    """Ours, registered and public, against the references, ATen's observer and aminmax."""
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    x = harness.laid(drawn, layout, dtype)
    expected = _state()
    reference.update_range(x, *expected)

    omitted: dict[str, str] = {}
    rows: dict[str, Callable[[], object]] = {}
    for backend in ("cpu",) if harness.DEVICE.type == "cpu" else ("cuda", "triton"):
        reason = ops.available_backends()[backend]
        if reason is not None:
            omitted[f"ours ({backend})"] = reason
            continue
        state = _state()
        with ops.backend(backend):
            ops.update_range(x, *state)
        for actual, value in zip(state, expected, strict=True):
            assert torch.equal(actual, value), f"{backend} differs from the reference"
        overload = "triton" if backend == "triton" else "default"
        registered = getattr(torch.ops.synq_fast.update_range, overload)
        rows[f"ours ({backend}), registered op"] = lambda op=registered, state=state: op(
            x, *state, 0.9
        )
    public = _state()
    rows["ours, public function"] = lambda: ops.update_range(x, *public)

    eager, fused = _state(), _state()
    rows["reference, eager"] = lambda: reference.update_range(x, *eager)
    compiled, reason = columns.compiled_column(reference.update_range, x, *fused)
    if compiled is None:
        omitted["reference, torch.compile"] = reason
    else:
        rows["reference, torch.compile"] = compiled
    if dtype == torch.float32:
        rows["aten fused_moving_avg_obs_fake_quant"] = _aten(x)
    else:
        omitted["aten fused_moving_avg_obs_fake_quant"] = "float32 alone"
    rows["aten aminmax"] = x.aminmax
    rows["clone"] = x.clone
    compare(
        "x".join(map(str, shape)) + harness.kind(layout, dtype),
        rows,
        ours=next(iter(rows)),
        copy="clone",
        bytes_moved=columns.bytes_of("update_range", x),
        omitted=omitted,
        calls=CALLS.get(shape, 1),
    )
