"""What follows a convolution in a frozen network: BatchNorm, residual, ReLU, quantizer."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from synq_fast import ops, reference

from . import columns, harness

BITS = 4
(SHAPE,) = harness.sizes(cpu=[(16, 64, 56, 56)], cuda=[(256, 64, 56, 56)])
EPS = 1e-5


@pytest.mark.parametrize("dtype", harness.dtypes(), ids=str)
@pytest.mark.parametrize("op", ["relu", "affine_relu", "affine_residual_relu"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward and backward"])
def bench_relu_fake_quantize(
    op: str,
    layout: str,
    backward: bool,
    dtype: torch.dtype,
    compare: Callable[..., harness.Comparison],
) -> None:
    """One pass against the compiled reference, our ops in a row, and eager PyTorch before ours."""
    memory_format = harness.MEMORY_FORMATS[layout]
    generator = torch.Generator().manual_seed(0)
    x, residual, gradient = (
        torch.randn(SHAPE, generator=generator)
        .to(dtype)
        .to(harness.DEVICE, memory_format=memory_format)
        for _ in range(3)
    )
    x.requires_grad_(backward)
    residual.requires_grad_(backward)
    added = op == "affine_residual_relu"
    low, high = (torch.tensor(bound, device=harness.DEVICE) for bound in (0.0, 2.5))
    gamma, beta, mean = torch.randn(3, SHAPE[1], generator=generator).to(harness.DEVICE).unbind()
    variance = torch.ones(SHAPE[1], device=harness.DEVICE)
    weight = gamma / torch.sqrt(variance + EPS)
    bias = beta - mean * weight

    def run(function: Callable[..., Tensor], *arguments: object) -> list[Tensor]:
        y = function(*arguments)
        inputs = (x, residual) if added else x
        return [y, *(torch.autograd.grad(y, inputs, gradient) if backward else ())]

    def normalised() -> Tensor:
        y = functional.batch_norm(x, mean, variance, gamma, beta, eps=EPS)
        return y + residual if added else y

    if op == "relu":
        name, arguments = "relu_fake_quantize", (x, low, high, BITS)
        unfused = {"relu, then ours": lambda: ops.fake_quantize(torch.relu(x), low, high, BITS)}
    else:
        name, arguments = "affine_relu_fake_quantize", (x, weight, bias, low, high, BITS)
        unfused = {
            "batch_norm, then our relu_fake_quantize": lambda: ops.relu_fake_quantize(
                normalised(), low, high, BITS
            ),
            "batch_norm, relu, then our fake_quantize": lambda: ops.fake_quantize(
                torch.relu(normalised()), low, high, BITS
            ),
        }
    definition, function = (getattr(module, name) for module in (reference, ops))
    if added:
        definition, function = (partial(f, residual=residual) for f in (definition, function))
    expected = run(definition, *arguments)
    ours, omitted = columns.our_columns(run, function, *arguments)
    for column, call in ours.items():
        assert all(map(torch.equal, call(), expected)), f"{column} differs from the reference"

    rows: dict[str, Callable[[], object]] = dict(ours)
    rows["reference, eager"] = lambda: run(definition, *arguments)
    compiled, reason = columns.compiled_column(definition, *arguments)
    if compiled is None:
        omitted["reference, torch.compile"] = reason
    else:
        rows["reference, torch.compile"] = lambda: run(compiled)
    for column, call in unfused.items():
        rows[column] = lambda call=call: run(call)
    rows["clone"] = x.detach().clone
    compare(
        f"{op} {'x'.join(map(str, SHAPE))} {layout}{harness.kind('contiguous', dtype)}, "
        f"{'forward and backward' if backward else 'forward'}",
        rows,
        ours=next(iter(ours), None),
        copy="clone",
        bytes_moved=((8 if added else 5) if backward else 2 + added) * x.nbytes,
        omitted=omitted,
    )
