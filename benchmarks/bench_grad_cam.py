"""Class activation maps from activations and gradients to the size of the image."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from synq_fast import ops, reference

from . import columns, harness

# Activations, map, grid of tokens.
NETWORKS = [
    ((16, 512, 7, 7), (224, 224), None),
    ((32, 2048, 7, 7), (224, 224), None),
    ((64, 64, 8, 8), (32, 32), None),
    ((16, 196, 384), (224, 224), (14, 14)),
]
CASES = harness.sizes(cpu=NETWORKS, cuda=[*NETWORKS, ((256, 2048, 7, 7), (224, 224), None)])
KINDS = ["grad_cam", "grad_cam_plus_plus", "layer_cam", "hires_cam"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", harness.dtypes(), ids=str)
@pytest.mark.parametrize("layout", harness.MEMORY_FORMATS)
@pytest.mark.parametrize(("shape", "size", "grid"), CASES, ids=str)
def bench_grad_cam(
    shape: tuple[int, ...],
    size: tuple[int, int],
    grid: tuple[int, int] | None,
    layout: str,
    dtype: torch.dtype,
    kind: str,
    compare: Callable[..., harness.Comparison],
) -> None:
    """Ours against eager and compiled, and copies of the activations and of the map."""
    generator = torch.Generator().manual_seed(0)
    a, g = (harness.laid(torch.rand(shape, generator=generator), layout, dtype) for _ in "ag")
    score = (torch.ones(shape[0], device=a.device),) if kind == "grad_cam_plus_plus" else ()
    arguments = (a, g, *score, size)
    function = getattr(reference, kind)

    ours, omitted = columns.our_columns(getattr(ops, kind), *arguments, grid=grid)
    expected = function(*arguments, grid=grid)
    for name, call in ours.items():
        torch.testing.assert_close(call(), expected, atol=5e-5, rtol=0, msg=f"{name} differs")

    rows: dict[str, Callable[[], object]] = dict(ours)
    rows["reference, eager"] = lambda: function(*arguments, grid=grid)
    compiled, reason = columns.compiled_column(function, *arguments, grid=grid)
    if compiled is None:
        omitted["reference, torch.compile"] = reason
    else:
        # The compiler sums up to 2048 channels in another order, and the stretch enlarges that.
        torch.testing.assert_close(compiled(), expected, atol=2e-4, rtol=0)
        rows["reference, torch.compile"] = compiled
    coarse = torch.rand(shape[0], 1, *(grid or shape[2:]), device=a.device)
    rows["aten upsample_bilinear2d alone"] = lambda: torch.nn.functional.interpolate(
        coarse, size, mode="bilinear", align_corners=False
    )
    moved = 2 * a.nbytes + expected.nbytes
    rows["copy of as many bytes"] = columns.copy_column(moved)
    compare(
        f"{kind} {'x'.join(map(str, shape))} {layout} to {size[0]}x{size[1]}"
        + harness.kind("contiguous", dtype),
        rows,
        ours=next(iter(ours), None),
        copy="copy of as many bytes",
        bytes_moved=moved,
        omitted=omitted,
    )
