"""Mean and variance of every channel of every image."""

from collections.abc import Callable
from typing import Any

import torch

from synq_fast import reference
from synq_fast.ops._checks import DTYPES
from synq_fast.ops._op import Op, differentiable_once, like

Tensor = torch.Tensor
Pair = tuple[Tensor, Tensor]


def _check(x: Tensor) -> None:
    if x.dtype not in DTYPES:
        raise TypeError(f"x must be float32, float16 or bfloat16, got {x.dtype}")
    if x.ndim < 2:
        raise ValueError(f"x must have shape (B, C, ...), got {tuple(x.shape)}")


def _fake(x: Tensor) -> Pair:
    _check(x)
    mean, variance = (x.new_empty(x.shape[:2], dtype=torch.float32) for _ in range(2))
    return mean, variance


def _fake_backward(
    of_mean: Tensor | None, of_variance: Tensor | None, x: Tensor, mean: Tensor
) -> Tensor:
    _check(x)
    given = {
        "the gradient of mean": of_mean,
        "the gradient of variance": of_variance,
        "mean": mean,
    }
    for name, value in given.items():
        if value is None:
            continue
        if value.shape != x.shape[:2] or value.dtype != torch.float32:
            raise ValueError(
                f"{name} must be float32 of shape {tuple(x.shape[:2])}, got "
                f"{value.dtype} {tuple(value.shape)}"
            )
    return torch.empty_like(x)


def _reference(x: Tensor) -> Pair:
    _check(x)
    mean, variance = reference.channel_moments(x)
    return mean, variance


def _reference_backward(
    of_mean: Tensor | None, of_variance: Tensor | None, x: Tensor, mean: Tensor
) -> Tensor:
    _fake_backward(of_mean, of_variance, x, mean)
    shape = (*x.shape[:2], *(1 for _ in x.shape[2:]))
    positions = max(x.shape[2:].numel(), 1)
    result = torch.zeros_like(x, dtype=torch.float32)
    if of_variance is not None:
        result = (x.float() - mean.reshape(shape)) * (of_variance * 2 / positions).reshape(shape)
    if of_mean is not None:
        result = result + (of_mean / positions).reshape(shape)
    return like(result.to(x.dtype), x)


def _autograd(suffix: str) -> tuple[Callable[..., None], Callable[..., Any]]:
    def setup(ctx: Any, inputs: tuple[Tensor], output: Pair) -> None:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(inputs[0], output[0])

    def backward(ctx: Any, of_mean: Tensor | None, of_variance: Tensor | None) -> Tensor | None:
        if of_mean is None and of_variance is None:
            return None
        op = getattr(torch.ops.synq_fast.channel_moments_backward, suffix)
        x, mean = ctx.saved_tensors
        result: Tensor = op(of_mean, of_variance, x, mean.detach())
        return result

    return setup, backward


OPS = {
    "channel_moments": Op(
        "(Tensor x) -> (Tensor mean, Tensor variance)",
        _fake,
        _reference,
        _autograd,
        triton_arguments=1,
    ),
    "channel_moments_backward": Op(
        "(Tensor? of_mean, Tensor? of_variance, Tensor x, Tensor mean) -> Tensor",
        _fake_backward,
        _reference_backward,
        differentiable_once("channel_moments"),
        triton_arguments=4,
    ),
}
