"""Low-pass filters in the frequency domain."""

from collections.abc import Callable
from typing import Any

import torch

from synq_fast import reference
from synq_fast.ops._op import Op

Tensor = torch.Tensor
KINDS = ("gaussian", "butterworth", "ideal")
METHODS = ("auto", "matrix", "spectrum")


def _fake(x: Tensor, cutoff: float, kind: str, order: int, method: str = "auto") -> Tensor:
    if x.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise TypeError(f"low_pass: x must be float32, float16 or bfloat16, got {x.dtype}")
    if x.ndim < 2:
        raise ValueError(f"low_pass: x must have shape (..., H, W), got {tuple(x.shape)}")
    for name, value, allowed in (("kind", kind, KINDS), ("method", method, METHODS)):
        if value not in allowed:
            raise ValueError(f"low_pass: {name} must be one of {', '.join(allowed)}, got {value!r}")
    channels_last = torch.channels_last
    if x.ndim == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=channels_last):
        return torch.empty_like(x, memory_format=channels_last)
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _reference(x: Tensor, cutoff: float, kind: str, order: int, method: str = "auto") -> Tensor:
    y = reference.low_pass(x, cutoff, kind=kind, order=order)
    return _fake(x, cutoff, kind, order, method).copy_(y)


def _autograd(suffix: str) -> tuple[Callable[..., None], Callable[..., Any]]:
    def setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, *ctx.arguments = inputs

    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        # A real and even filter is its own adjoint.
        op = getattr(torch.ops.synq_fast.low_pass, suffix)
        return op(gradient, *ctx.arguments), None, None, None, None

    return setup, backward


OPS = {
    "low_pass": Op(
        # The method is for measurements; "auto" takes the one that was found the faster.
        '(Tensor x, float cutoff, str kind, int order, str method="auto") -> Tensor',
        _fake,
        _reference,
        _autograd,
        triton_arguments=5,
    ),
}
