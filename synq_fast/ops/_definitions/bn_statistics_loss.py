"""The losses on batch-normalisation statistics, of one layer and of a network."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from synq_fast.ops._checks import DTYPES
from synq_fast.ops._op import Op, differentiable_once, like
from synq_fast.reference.bn_statistics_loss import mean_and_variance

Tensor = torch.Tensor
Triple = tuple[Tensor, Tensor, Tensor]


def _check(x: Tensor) -> None:
    if x.dtype not in DTYPES:
        raise TypeError(f"x must be float32, float16 or bfloat16, got {x.dtype}")
    if x.ndim < 2 or x.numel() == 0:
        raise ValueError(f"x must have shape (N, C, ...) and not be empty, got {tuple(x.shape)}")


def _check_layer(x: Tensor, running_mean: Tensor, running_var: Tensor) -> None:
    _check(x)
    for name, value in (("running_mean", running_mean), ("running_var", running_var)):
        if value.shape != x.shape[1:2]:
            raise ValueError(f"{name} must have shape ({x.shape[1]},), got {tuple(value.shape)}")


def _statistics(x: Tensor, running_mean: Tensor, running_var: Tensor) -> Tensor:
    """Returns per channel the mean and the two differences, (3, C) in float64."""
    mean, var = (value.double() for value in mean_and_variance(x.float()))
    return torch.stack([mean, mean - running_mean, var - running_var])


def _gradient(
    x: Tensor, statistics: Tensor, mean_loss: Tensor | None, var_loss: Tensor | None
) -> Tensor:
    """Returns the gradient of x, which is affine in x per channel."""
    mean, mean_error, var_error = statistics
    count = x.numel() // x.shape[1]
    factor = 2 / x.shape[1] / count
    slope = 2 * factor * var_error * (0.0 if var_loss is None else var_loss)
    offset = factor * mean_error * (0.0 if mean_loss is None else mean_loss)
    shape = (-1, *(1 for _ in x.shape[2:]))
    near, slope, offset = (value.float().view(shape) for value in (mean, slope, offset))
    return like(((x.float() - near) * slope + offset).to(x.dtype), x)


def _scalar(x: Tensor) -> Tensor:
    return x.new_empty((), dtype=torch.float32)


def _fake(x: Tensor, running_mean: Tensor, running_var: Tensor) -> Triple:
    _check_layer(x, running_mean, running_var)
    return _scalar(x), _scalar(x), x.new_empty((3, x.shape[1]), dtype=torch.float64)


def _fake_backward(
    mean_loss: Tensor | None, var_loss: Tensor | None, x: Tensor, statistics: Tensor
) -> Tensor:
    _check(x)
    return torch.empty_like(x)


def _fake_losses(
    inputs: Sequence[Tensor],
    running_means: Sequence[Tensor],
    running_vars: Sequence[Tensor],
    weights: Sequence[float],
) -> tuple[Tensor, Tensor]:
    if not inputs or len({len(inputs), len(running_means), len(running_vars), len(weights)}) > 1:
        raise ValueError("inputs, statistics and weights must have one entry per layer")
    for layer in zip(inputs, running_means, running_vars, strict=True):
        _check_layer(*layer)
    x, channels = inputs[0], sum(x.shape[1] for x in inputs)
    return _scalar(x), x.new_empty((3, channels), dtype=torch.float64)


def _fake_losses_backward(
    loss: Tensor, inputs: Sequence[Tensor], statistics: Tensor, weights: Sequence[float]
) -> list[Tensor]:
    return [torch.empty_like(x) for x in inputs]


def _reference(x: Tensor, running_mean: Tensor, running_var: Tensor) -> Triple:
    _check_layer(x, running_mean, running_var)
    statistics = _statistics(x, running_mean, running_var)
    mean_loss, var_loss = statistics[1:].square().mean(1).float().unbind()
    return mean_loss.clone(), var_loss.clone(), statistics


def _reference_backward(
    mean_loss: Tensor | None, var_loss: Tensor | None, x: Tensor, statistics: Tensor
) -> Tensor:
    return _gradient(x, statistics, mean_loss, var_loss)


def _reference_losses(
    inputs: Sequence[Tensor],
    running_means: Sequence[Tensor],
    running_vars: Sequence[Tensor],
    weights: Sequence[float],
) -> tuple[Tensor, Tensor]:
    _fake_losses(inputs, running_means, running_vars, weights)
    layers = [
        _statistics(*layer) for layer in zip(inputs, running_means, running_vars, strict=True)
    ]
    losses = [layer[1:].square().mean(1).sum() for layer in layers]
    total = sum(weight * loss for weight, loss in zip(weights, losses, strict=True))
    return torch.as_tensor(total).float(), torch.cat(layers, 1)


def _reference_losses_backward(
    loss: Tensor, inputs: Sequence[Tensor], statistics: Tensor, weights: Sequence[float]
) -> list[Tensor]:
    layers = statistics.split([x.shape[1] for x in inputs], 1)
    return [
        _gradient(x, layer, loss * weight, loss * weight)
        for x, layer, weight in zip(inputs, layers, weights, strict=True)
    ]


def _autograd(suffix: str) -> tuple[Callable[..., None], Callable[..., Any]]:
    def setup(ctx: Any, inputs: tuple[Tensor, ...], output: Triple) -> None:
        ctx.mark_non_differentiable(output[2])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(inputs[0], output[2])

    def backward(
        ctx: Any, mean_loss: Tensor | None, var_loss: Tensor | None, _: Any
    ) -> tuple[Tensor | None, None, None]:
        if mean_loss is None and var_loss is None:
            return None, None, None
        op = getattr(torch.ops.synq_fast.bn_statistics_loss_backward, suffix)
        return op(mean_loss, var_loss, *ctx.saved_tensors), None, None

    return setup, backward


def _autograd_losses(suffix: str) -> tuple[Callable[..., None], Callable[..., Any]]:
    def setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs[0], output[1])
        ctx.weights = inputs[3]

    def backward(ctx: Any, loss: Tensor | None, _: Any) -> tuple[Any, ...]:
        *inputs, statistics = ctx.saved_tensors
        nothing = [None] * len(inputs)
        if loss is None:
            return nothing, nothing, nothing, None
        op = getattr(torch.ops.synq_fast.bn_statistics_losses_backward, suffix)
        return op(loss, inputs, statistics, ctx.weights), nothing, nothing, None

    return setup, backward


# `statistics`, (3, channels) in float64: per channel the mean, its difference from the running mean
# and that of the variance.
OPS = {
    "bn_statistics_loss": Op(
        "(Tensor x, Tensor running_mean, Tensor running_var)"
        " -> (Tensor mean_loss, Tensor var_loss, Tensor statistics)",
        _fake,
        _reference,
        _autograd,
        triton_arguments=3,
    ),
    "bn_statistics_loss_backward": Op(
        "(Tensor? mean_loss, Tensor? var_loss, Tensor x, Tensor statistics) -> Tensor",
        _fake_backward,
        _reference_backward,
        differentiable_once("bn_statistics_loss"),
        triton_arguments=4,
    ),
    "bn_statistics_losses": Op(
        "(Tensor[] inputs, Tensor[] running_means, Tensor[] running_vars, float[] weights)"
        " -> (Tensor loss, Tensor statistics)",
        _fake_losses,
        _reference_losses,
        _autograd_losses,
        triton_arguments=4,
    ),
    "bn_statistics_losses_backward": Op(
        "(Tensor loss, Tensor[] inputs, Tensor statistics, float[] weights) -> Tensor[]",
        _fake_losses_backward,
        _reference_losses_backward,
        differentiable_once("bn_statistics_losses"),
        triton_arguments=4,
    ),
}
