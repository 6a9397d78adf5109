"""BN-statistics losses of a layer and of a network, forward and backward."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from synq_fast import ops, reference

from . import columns, harness

# 51 MB, above glibc's 32 MiB threshold; CIFAR's first stage; a deep layer with short pieces.
LAYERS = [(64, 64, 56, 56), (128, 16, 32, 32), (16, 512, 7, 7)]
SHAPES = harness.sizes(cpu=LAYERS, cuda=[*LAYERS, (256, 64, 56, 56)])
# Channels, side and number of the BatchNorm inputs of ResNet-20.
RESNET20 = [(16, 32, 7), (32, 16, 7), (64, 8, 7)]


def _var_mean(x: Tensor, running_mean: Tensor, running_var: Tensor) -> tuple[Tensor, Tensor]:
    """The definition on ATen's own var_mean."""
    var, mean = torch.var_mean(x, [d for d in range(x.ndim) if d != 1], correction=0)
    return (mean - running_mean).square().mean(), (var - running_var).square().mean()


def _stored(channels: int) -> tuple[Tensor, Tensor]:
    device = harness.DEVICE
    return torch.randn(channels, device=device), torch.rand(channels, device=device) + 0.5


@pytest.mark.parametrize("dtype", harness.dtypes(), ids=str)
@pytest.mark.parametrize("memory_format", harness.MEMORY_FORMATS)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s)))
def bench_bn_statistics_loss(
    shape: tuple[int, ...],
    memory_format: str,
    dtype: torch.dtype,
    compare: Callable[..., harness.Comparison],
) -> None:
    """Ours against eager, compiled, the same on var_mean, and a copy of the input."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(harness.DEVICE)
    x = x.to(dtype, memory_format=harness.MEMORY_FORMATS[memory_format]).requires_grad_()
    stored = _stored(shape[1])

    def step(losses: Callable[..., tuple[Tensor, Tensor]]) -> Tensor:
        return torch.autograd.grad(sum(losses(x, *stored)), x)[0]

    ours, omitted = columns.our_columns(step, ops.bn_statistics_loss)
    expected = step(reference.bn_statistics_loss)
    tolerance = (1e-4 if dtype == torch.float32 else 1e-2) * expected.abs().max().item()
    for name, call in ours.items():
        torch.testing.assert_close(call(), expected, rtol=0, atol=tolerance, msg=name)
    rows: dict[str, Callable[[], object]] = dict(ours)
    rows["reference, eager"] = lambda: step(reference.bn_statistics_loss)
    for name, function in (("reference", reference.bn_statistics_loss), ("var_mean", _var_mean)):
        # The compiled part is the loss: its backward is compiled with it.
        compiled, reason = columns.compiled_column(function, x, *stored)
        if compiled is None:
            omitted[f"{name}, torch.compile"] = reason
        else:
            rows[f"{name}, torch.compile"] = lambda whole=compiled: step(lambda *_: whole())
    rows["aten var_mean, eager"] = lambda: step(_var_mean)
    detached = x.detach()
    rows["clone"] = detached.clone
    compare(
        f"{'x'.join(map(str, shape))} {memory_format}{harness.kind('contiguous', dtype)}",
        rows,
        ours=next(iter(ours), None),
        copy="clone",
        bytes_moved=3 * x.nbytes,
        omitted=omitted,
        calls=1 if math.prod(shape) > 10**7 else 5,
    )


@pytest.mark.parametrize("batch", [32, 256])
def bench_network(batch: int, compare: Callable[..., harness.Comparison]) -> None:
    """The 21 layers of ResNet-20 in one op, against one op per layer and the reference."""
    layers = [size for *size, count in RESNET20 for _ in range(count)]
    inputs = [
        torch.randn(batch, channels, side, side, device=harness.DEVICE)
        .contiguous(memory_format=torch.channels_last)
        .requires_grad_()
        for channels, side in layers
    ]
    means, variances = zip(*(_stored(channels) for channels, _ in layers), strict=True)

    def one_by_one(loss: Callable[..., tuple[Tensor, Tensor]]) -> Tensor:
        terms = [sum(loss(*layer)) for layer in zip(inputs, means, variances, strict=True)]
        return torch.stack(terms).sum() / len(terms)

    def step(losses: Callable[[], Tensor]) -> tuple[Tensor, ...]:
        return torch.autograd.grad(losses(), inputs)

    ours, omitted = columns.our_columns(
        step, lambda: ops.bn_statistics_losses(inputs, means, variances)
    )
    expected = step(lambda: one_by_one(reference.bn_statistics_loss))
    for name, call in ours.items():
        for actual, wanted in zip(call(), expected, strict=True):
            tolerance = 1e-4 * wanted.abs().max().item()
            torch.testing.assert_close(actual, wanted, rtol=0, atol=tolerance, msg=name)
    rows: dict[str, Callable[[], object]] = dict(ours)
    rows["ours, one op per layer"] = lambda: step(lambda: one_by_one(ops.bn_statistics_loss))
    rows["reference, eager"] = lambda: step(lambda: one_by_one(reference.bn_statistics_loss))
    rows["aten var_mean, eager"] = lambda: step(lambda: one_by_one(_var_mean))
    moved = 3 * 4 * sum(x.numel() for x in inputs)
    rows["copy of as many bytes"] = columns.copy_column(moved)
    compare(
        f"resnet20 statistics, batch {batch}",
        rows,
        ours=next(iter(ours), None),
        copy="copy of as many bytes",
        bytes_moved=moved,
        omitted=omitted,
    )
