"""Inter-head similarity of attention's logits, alone and with its gradient; and memory."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from synq_fast import ops, reference

from . import columns, harness
from .peak_memory import peak_bytes

# A block of DeiT-tiny and of ViT-base for some of MimiQ's 32 images, and Swin-tiny's windows.
LOGITS = [(32, 3, 196, 196), (8, 12, 196, 196), (256, 6, 49, 49)]
SHAPES = harness.sizes(cpu=LOGITS, cuda=[*LOGITS, (64, 12, 196, 196)])
PUBLISHED_LIMIT = 1 << 30

Function = Callable[[Tensor], Tensor]


def _published(logits: Tensor) -> Tensor:
    """The published code's covariances: a (B, N, H, H, M) tensor of products."""
    x = logits.transpose(1, 2)
    low, high = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)
    a = (x - low) / (high - low + 1e-8)
    mean, variance = a.mean(-1), a.var(-1, correction=0)
    products = (a.unsqueeze(3) * a.unsqueeze(2)).mean(-1)
    covariance = products - mean.unsqueeze(3) * mean.unsqueeze(2)
    one, other = mean.unsqueeze(3), mean.unsqueeze(2)
    similarity = (2 * one * other + 1e-4) / (one.square() + other.square() + 1e-4)
    spread = variance.unsqueeze(3) + variance.unsqueeze(2) + 9e-4
    return (1 - (similarity * (2 * covariance + 9e-4) / spread).square()).mean()


@pytest.mark.parametrize("dtype", harness.dtypes(), ids=str)
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "with_backward"])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s)))
def bench_inter_head_similarity_loss(
    shape: tuple[int, ...],
    backward: bool,
    dtype: torch.dtype,
    compare: Callable[..., harness.Comparison],
) -> None:
    """Ours against the reference, eager and compiled, the published expression and a copy."""
    generator = torch.Generator().manual_seed(0)
    shared = torch.randn(shape[0], 1, *shape[2:], generator=generator)
    logits = (shared + torch.randn(shape, generator=generator)).to(harness.DEVICE, dtype)
    leaf = logits.clone().requires_grad_(backward)

    def step(function: Function, given: Tensor = leaf) -> Tensor:
        loss = function(given)
        return torch.autograd.grad(loss, given)[0] if backward else loss

    wide = logits.double().requires_grad_(backward)
    expected = step(reference.inter_head_similarity_loss, wide)
    ours, omitted = columns.our_columns(step, ops.inter_head_similarity_loss)
    rows: dict[str, Callable[[], object]] = dict(ours)
    rows["reference, eager"] = lambda: step(reference.inter_head_similarity_loss)
    if 4 * math.prod(shape) * shape[1] <= PUBLISHED_LIMIT:
        rows["published, all products"] = lambda: step(_published)
    else:
        omitted["published, all products"] = "needs more than 1 GiB for the products alone"
    for name, call in rows.items():
        distance = (call().double() - expected).norm() / expected.norm()
        # In half precision the expressions beside ours are off by their own roundings.
        limit = 2e-5 if dtype == torch.float32 else 1e-2 if name.startswith("ours") else 1.0
        assert distance < limit, f"{name} is {distance:.1e} from the reference in float64"
    compiled, reason = columns.compiled_column(reference.inter_head_similarity_loss, leaf, own=True)
    if compiled is None:
        omitted["reference, torch.compile"] = reason
    else:
        rows["reference, torch.compile"] = lambda: step(lambda _: compiled())
    rows["clone"] = logits.clone
    compare(
        f"{'with backward' if backward else 'forward'} {'x'.join(map(str, shape))}"
        + harness.kind("contiguous", dtype),
        rows,
        ours=next(iter(ours), None),
        copy="clone",
        # Read once, and by the backward once more; it writes the gradient.
        bytes_moved=logits.nbytes * (3 if backward else 1),
        omitted=omitted,
    )


_CALL = """
from synq_fast import {module}
logits = torch.randn({shape}, generator=torch.Generator().manual_seed(0))

def run(logits):
    leaf = logits.clone().requires_grad_()
    return torch.autograd.grad({module}.inter_head_similarity_loss(leaf), leaf)

call = lambda: run(logits)
warm_up = lambda: run(logits[:1, :, :9])
"""


@pytest.mark.skipif(harness.DEVICE.type != "cpu", reason="counts resident memory")
def bench_peak_memory() -> None:
    """Peak resident memory of a call with its gradient, beyond the logits, in fresh processes."""
    shape = (32, 3, 196, 196)
    ours, eager = (
        peak_bytes(_CALL.format(module=module, shape=shape)) for module in ("ops", "reference")
    )
    print(f"\npeak memory, {shape}: ours {ours / 2**20:.1f} MiB, eager {eager / 2**20:.1f} MiB")
    assert 2 * ours < eager
